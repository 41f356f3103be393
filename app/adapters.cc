#include "adapters.h"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"
#include "creto/crypto/key_sealer.h"
#include "creto/io/sql.h"
#include "creto/messaging/endpoint.h"
#include "creto/messaging/messaging.h"
#include "creto/nhi/nhi.h"

namespace creto::app {
namespace {

class NhiOwnerKeys final : public storage::OwnerKeys {
 public:
  explicit NhiOwnerKeys(nhi::Nhi& nhi) : nhi_(nhi) {}

  Result<WrappingKey> wrapping_key(const Context& ctx, const Identity& owner) override {
    const nhi::PublicKeys keys = CRETO_TRY(nhi_.get_public_keys(ctx, owner));
    if (!keys.kem)
      return Error(Product::platform, ErrorKind::not_found, fmt::format("`{}` has no encryption key", owner.text()));
    return WrappingKey{keys.key_id, std::string(crypto::to_string(keys.kem->algorithm())), keys.kem->bytes()};
  }

  Result<Secret> decapsulate(const Context& ctx, const Identity& owner, std::string_view key_id,
                             BytesView ciphertext) override {
    Context self = Context::of_service(self_);
    self.org = ctx.org;
    return nhi_.decapsulate(self, owner, key_id, ciphertext);
  }

 private:
  nhi::Nhi& nhi_;
  const Identity self_ = Identity::service("creto").value();
};

class NhiEndpoints final : public AgentEndpoints {
 public:
  NhiEndpoints(sql::Database& database, crypto::KeySealer& sealer, nhi::Nhi& nhi, messaging::Messaging& messaging,
               const Clock& clock)
      : database_(database), sealer_(sealer), nhi_(nhi), messaging_(messaging), clock_(clock) {}

  Result<contracts::SealedMessage> seal(const Context& ctx, const Identity& agent, const Identity& recipient,
                                        std::string_view body) override {
    return seal_draft(ctx, agent, recipient, {.body = as_bytes(body)});
  }

  Result<contracts::SealedMessage> seal_under(const Context& ctx, const MessageId& id, const Identity& agent,
                                              const Identity& recipient, std::string_view body) override {
    return seal_draft(ctx, agent, recipient, {.body = as_bytes(body), .id = id});
  }

  Result<contracts::SealedMessage> seal_for_topic(const Context& ctx, const Identity& agent, const std::string& topic,
                                                  std::string_view body) override {
    const auto parts = CRETO_TRY(parts_of(ctx, agent));
    const Context as_agent = acting_as(ctx, agent);
    const std::vector<Identity> subscribers = CRETO_TRY(messaging_.subscribers(as_agent, topic));
    if (subscribers.empty())
      return Error(Product::messaging, ErrorKind::recipient_not_found,
                   fmt::format("nobody is subscribed to topic `{}`", topic));
    return parts->endpoint->seal_for_topic(as_agent, topic, subscribers, messaging::Draft{.body = as_bytes(body)});
  }

  Result<runtime::OpenedMessage> open(const Context& ctx, const Identity& agent,
                                      const contracts::ReceivedMessage& message) override {
    const auto parts = CRETO_TRY(parts_of(ctx, agent));
    const messaging::OpenedMessage opened = CRETO_TRY(parts->endpoint->open(acting_as(ctx, agent), message.message));
    return runtime::OpenedMessage{.id = opened.id,
                                  .sender = opened.sender,
                                  .topic = opened.topic,
                                  .body = std::string(opened.body.reveal_text()),
                                  .verified = true,  // `open` refuses what does not verify
                                  .sent_at = opened.sent_at};
  }

  Result<> acknowledge(const Context& ctx, const Identity& agent, const MessageId& message) override {
    const auto parts = CRETO_TRY(parts_of(ctx, agent));
    return parts->endpoint->acknowledge(acting_as(ctx, agent), message);
  }

  Result<> publish_keys(const Context& ctx) override { return publish_where(ctx, false); }
  Result<> follow_rotations(const Context& ctx) override { return publish_where(ctx, true); }

 private:
  Result<> publish_where(const Context& ctx, bool rotated) {
    std::map<Key, std::shared_ptr<Parts>> known;
    {
      const std::lock_guard lock(mutex_);
      known = endpoints_;
    }
    Result<> outcome;
    for (const auto& [key, parts] : known) {
      Context own = ctx;
      own.org = key.first;
      auto published = publish(own, *parts, rotated);
      if (published) continue;
      outcome = Error(std::move(published).error()).with_context(fmt::format("prekeys of `{}`", key.second));
      const std::lock_guard lock(mutex_);
      endpoints_.erase(key);
    }
    return outcome;
  }

  Result<contracts::SealedMessage> seal_draft(const Context& ctx, const Identity& agent, const Identity& recipient,
                                              const messaging::Draft& draft) {
    const auto parts = CRETO_TRY(parts_of(ctx, agent));
    const Context as_agent = acting_as(ctx, agent);
    auto in_session = parts->endpoint->seal_in_session(as_agent, recipient, draft);
    if (in_session || in_session.error().kind() != ErrorKind::not_found) return in_session;
    return parts->endpoint->seal(as_agent, recipient, draft);
  }

  using Key = std::pair<std::string, std::string>;  ///< organization and identity

  /// Members in the order in which the later ones use the earlier ones.
  struct Parts {
    std::unique_ptr<messaging::EndpointStore> store;
    std::unique_ptr<messaging::EndpointKeys> keys;
    std::unique_ptr<messaging::Endpoint> endpoint;
    std::mutex publishing;
    std::string published_under;  ///< the key set that signed the prekeys; guarded by `publishing`
  };

  Result<> publish(const Context& ctx, Parts& parts, bool only_rotated) {
    const Context as_agent = acting_as(ctx, parts.keys->identity());
    const std::lock_guard lock(parts.publishing);
    const nhi::PublicKeys newest = CRETO_TRY(nhi_.get_public_keys(as_agent, parts.keys->identity()));
    if (only_rotated && newest.key_id == parts.published_under) return {};
    CRETO_TRY(parts.endpoint->publish_keys(as_agent));
    parts.published_under = newest.key_id;
    return {};
  }

  static Context acting_as(const Context& ctx, const Identity& agent) {
    Context as_agent = ctx;
    as_agent.caller = agent;
    if (as_agent.chain.empty() || as_agent.chain.back() != agent) as_agent.chain = {agent};
    return as_agent;
  }

  Result<std::shared_ptr<Parts>> parts_of(const Context& ctx, const Identity& agent) {
    const std::lock_guard lock(mutex_);
    const Key key(ctx.org, agent.text());
    if (const auto known = endpoints_.find(key); known != endpoints_.end()) return known->second;
    auto parts = std::make_shared<Parts>();
    parts->store = CRETO_TRY(messaging::create_endpoint_store(database_, sealer_, ctx.org, agent));
    parts->keys = messaging::keys_held_by_nhi(nhi_, agent);
    parts->endpoint = messaging::create_endpoint(*parts->store, *parts->keys, nhi_, clock_);
    CRETO_TRY(publish(ctx, *parts, false));
    endpoints_.emplace(key, parts);
    return parts;
  }

  sql::Database& database_;
  crypto::KeySealer& sealer_;
  nhi::Nhi& nhi_;
  messaging::Messaging& messaging_;
  const Clock& clock_;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<Parts>> endpoints_;
};

class StoredInvoices final : public Invoices {
 public:
  StoredInvoices(storage::Storage& storage, std::unique_ptr<oversight::Notifier> webhook, Telemetry& telemetry)
      : storage_(storage), webhook_(std::move(webhook)), telemetry_(telemetry) {}

  void send_messages_through(messaging::Messaging& messaging, AgentEndpoints& endpoints) override {
    const std::lock_guard lock(mutex_);
    messaging_ = &messaging;
    endpoints_ = &endpoints;
    decided_ = true;
  }
  void send_no_messages() override {
    const std::lock_guard lock(mutex_);
    decided_ = true;
  }

  Result<std::string> keep(const Context& ctx, const metering::Invoice& invoice, BytesView pdf) override {
    Context self = Context::of_service(self_);
    self.org = ctx.org;
    const storage::NewObject object{.bucket = "invoices",
                                    .key = invoice.id.to_string() + ".pdf",
                                    .owner = self_,
                                    .classification = storage::Classification::compliance,
                                    .content_type = "application/pdf",
                                    .metadata = {{"number", std::to_string(invoice.number)}, {"billed", invoice.agent}},
                                    .ttl = std::nullopt,
                                    .expected_hash = std::nullopt};
    const std::string place = object.bucket + "/" + object.key;
    // After a crash it may be there already: the same invoice has one PDF.
    const Result<storage::ObjectMetadata> there =
        storage_.get_metadata(self, storage::StorageRef{.bucket = object.bucket, .key = object.key, .version = {}});
    if (there) return place;
    if (there.error().kind() != ErrorKind::not_found) return Error(there.error());
    const Result<storage::ObjectMetadata> stored = storage_.store(self, object, pdf);
    if (!stored) return Error(stored.error());
    return place;
  }

  Result<> send(const Context& ctx, const metering::Invoice& invoice, BytesView) override {
    {
      // What was due before a stop is due at once at a start, when messaging may not be there yet.
      const std::lock_guard lock(mutex_);
      if (!decided_) return Error(Product::metering, ErrorKind::unavailable, "invoice: the server is starting");
    }
    const Json signature = invoice.signature ? Json{{"algorithm", invoice.signature->algorithm},
                                                    {"value", base64(invoice.signature->value)}}
                                             : Json();
    const std::string body = Json{
        {"type", "invoice"},
        {"id", invoice.id.to_string()},
        {"document", invoice.document},
        {"signature", signature},
        {"pdf",
         invoice.pdf_object}}.dump();
    // Each is tried whatever becomes of the other; who has it already takes a repetition for what it is.
    auto told = message(ctx, invoice, body);
    if (webhook_ == nullptr) return told;
    auto posted = webhook_->notify(ctx, invoice.id.to_string(), body);
    if (told && posted) return {};
    // An agent that is gone, or may not be written to, will never take it, nor a webhook that refuses it: then the
    // other way was all there is to do.
    const Result<>& failed = told ? posted : told;
    if ((told || posted) && !failed.error().retryable()) {
      telemetry_.warn("metering", told ? "invoice_webhook_refused" : "invoice_message_not_sent",
                      {{"invoice", invoice.id.to_string()}, {"error", failed.error().to_string()}});
      return {};
    }
    return Error(Product::metering, ErrorKind::unavailable, "invoice: was not told everybody")
        .with_cause(failed.error());
  }

 private:
  Result<> message(const Context& ctx, const metering::Invoice& invoice, const std::string& body) {
    messaging::Messaging* messaging = nullptr;
    AgentEndpoints* endpoints = nullptr;
    {
      const std::lock_guard lock(mutex_);
      messaging = messaging_;
      endpoints = endpoints_;
    }
    if (messaging == nullptr) return {};
    Context self = Context::of_service(self_);
    self.org = ctx.org;
    const Identity billed = CRETO_TRY(Identity::parse(invoice.agent));
    // Named after the invoice: a delivery that was interrupted behind the sending finds that it is sent.
    const contracts::SealedMessage sealed =
        CRETO_TRY(endpoints->seal_under(self, MessageId::from_bytes(invoice.id.bytes()), self_, billed, body));
    const Result<MessageId> sent = messaging->send(self, sealed);
    if (!sent && sent.error().kind() != ErrorKind::conflict) return Error(sent.error());
    return {};
  }

  storage::Storage& storage_;
  const std::unique_ptr<oversight::Notifier> webhook_;
  Telemetry& telemetry_;
  const Identity self_ = Identity::service("metering").value();
  std::mutex mutex_;
  bool decided_ = false;
  messaging::Messaging* messaging_ = nullptr;
  AgentEndpoints* endpoints_ = nullptr;
};

class AuditKeptElsewhere final : public audit::AuditLog {
 public:
  AuditKeptElsewhere(sql::Database& database, std::unique_ptr<audit::AuditLog> owner)
      : database_(database), owner_(std::move(owner)) {}

  Result<audit::AuditId> log(const Context& ctx, const audit::AuditRecord& entry) override {
    return sql::write(database_, ctx, [&](sql::Tx& tx) { return audit::record(tx, ctx, entry); });
  }
  Result<std::vector<audit::AuditId>> log_batch(const Context& ctx,
                                                const std::vector<audit::AuditRecord>& entries) override {
    return owner_->log_batch(ctx, entries);
  }
  Result<audit::AuditPage> query(const Context& ctx, const audit::AuditFilter& filter) override {
    return owner_->query(ctx, filter);
  }
  Result<audit::AuditEntry> get(const Context& ctx, const audit::AuditId& id) override { return owner_->get(ctx, id); }
  Result<audit::InclusionProof> proof(const Context& ctx, const audit::AuditId& id) override {
    return owner_->proof(ctx, id);
  }
  Result<std::vector<Hash256>> consistency(const Context& ctx, std::uint64_t old_size) override {
    return owner_->consistency(ctx, old_size);
  }
  Result<bool> verify(const Context& ctx, const audit::AuditId& id, const audit::InclusionProof& proof,
                      const Hash256& root) override {
    return owner_->verify(ctx, id, proof, root);
  }
  Result<std::string> checkpoint(const Context& ctx) override { return owner_->checkpoint(ctx); }
  Result<audit::AuditStatus> status(const Context& ctx) override { return owner_->status(ctx); }
  Result<std::string> flush(const Context& ctx) override { return owner_->flush(ctx); }

 private:
  sql::Database& database_;
  const std::unique_ptr<audit::AuditLog> owner_;
};

}  // namespace

std::unique_ptr<storage::OwnerKeys> owner_keys_of(nhi::Nhi& nhi) { return std::make_unique<NhiOwnerKeys>(nhi); }

std::unique_ptr<audit::AuditLog> audit_kept_elsewhere(sql::Database& database, std::unique_ptr<audit::AuditLog> owner) {
  return std::make_unique<AuditKeptElsewhere>(database, std::move(owner));
}
std::unique_ptr<AgentEndpoints> agent_endpoints(sql::Database& database, crypto::KeySealer& sealer, nhi::Nhi& nhi,
                                                messaging::Messaging& messaging, const Clock& clock) {
  return std::make_unique<NhiEndpoints>(database, sealer, nhi, messaging, clock);
}

std::unique_ptr<Invoices> Invoices::create(storage::Storage& storage, std::unique_ptr<oversight::Notifier> webhook,
                                           Telemetry& telemetry) {
  return std::make_unique<StoredInvoices>(storage, std::move(webhook), telemetry);
}

}  // namespace creto::app
