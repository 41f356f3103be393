#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/assert.h"
#include "creto/common/event.h"
#include "creto/common/names.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "creto/io/idempotency.h"
#include "creto/io/sql.h"
#include "creto/messaging/messaging.h"
#include "creto/nhi/nhi.h"
#include "store.h"
#include "usage.h"
#include "wire.h"

namespace creto::messaging {
namespace {

using contracts::MessageEventType;
using contracts::ReceivedMessage;
using contracts::SealedMessage;

constexpr auto delivery_states = std::to_array<Named<DeliveryState>>({{DeliveryState::queued, "queued"},
                                                                      {DeliveryState::delivered, "delivered"},
                                                                      {DeliveryState::read, "read"},
                                                                      {DeliveryState::failed, "failed"}});

constexpr Nanos ttl_min = std::chrono::seconds(1);
constexpr Nanos remembered_for = std::chrono::days(30);
constexpr Nanos wait_max = std::chrono::seconds(30);
constexpr std::size_t receive_max = 1000;
constexpr std::size_t subscribers_max = topic_recipients_max;
constexpr std::size_t topics_max = 1000;
constexpr std::size_t clean_up_batch = 500;
constexpr std::size_t reason_bytes_max = 1024;
constexpr std::string_view usage_subject = "messaging.usage";

Error failure(ErrorKind kind, std::string message) { return Error(Product::messaging, kind, std::move(message)); }

Error unknown_message(const MessageId& id) {
  return failure(ErrorKind::not_found, fmt::format("message `{}` is not known here", id.to_string()));
}

std::string message_uri(const MessageId& id) { return fmt::format("messaging:message:{}", id.to_string()); }
std::string topic_uri(std::string_view topic) { return fmt::format("messaging:channel:{}", topic); }

Result<> check_topic_name(std::string_view name) {
  const bool sound = !name.empty() && name.size() <= 128 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  });
  if (!sound) return failure(ErrorKind::invalid_input, "topic: must be 1 to 128 of a-z, 0-9, `.`, `_`, `-`");
  return {};
}

Result<Identity> caller_of(const Context& ctx) {
  if (!ctx.caller) return failure(ErrorKind::unauthenticated, "the caller is not known");
  return *ctx.caller;
}

class MessagingService final : public Messaging {
 public:
  MessagingService(const MessagingParts& parts, MessagingOptions options, Identity self)
      : parts_(parts),
        options_(std::move(options)),
        self_(std::move(self)),
        sent_(parts.telemetry.counter("messaging_messages_sent_total", "Messages accepted for delivery")),
        delivered_(parts.telemetry.counter("messaging_messages_delivered_total", "Deliveries acknowledged")),
        refused_(parts.telemetry.counter("messaging_messages_refused_total", "Messages not accepted")) {}

  ~MessagingService() override {
    parts_.bus.unsubscribe("messaging.usage");
    parts_.bus.unsubscribe("messaging.lifecycle");
  }

  Result<> start() {
    CRETO_TRY(parts_.bus.subscribe("messaging.usage", std::string(usage_subject),
                                   [this](const bus::BusMessage& message) { return forward_usage(message); }));
    CRETO_TRY(parts_.bus.subscribe("messaging.lifecycle", std::string(contracts::SandboxLifecycleEvent::subject),
                                   [this](const bus::BusMessage& message) { return on_lifecycle(message); }));
    return {};
  }

  // --- sending

  Result<MessageId> send(const Context& ctx, const SealedMessage& message, const std::string& override_token) override {
    auto sent = try_send(ctx, message, override_token);
    if (!sent) {
      refused_.add();
      const Result<> noted = note_refusal(ctx, message, sent.error());
      if (!noted) return Error(noted.error()).with_context("while noting that the message was refused");
    }
    return sent;
  }

  Result<std::vector<ReceivedMessage>> receive(const Context& ctx, const ReceiveRequest& request) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    if (request.messages_max < 1 || request.messages_max > receive_max) {
      return failure(ErrorKind::invalid_input, "messages_max: must be 1 to 1000");
    }
    if (request.wait < Nanos::zero() || request.wait > wait_max) {
      return failure(ErrorKind::invalid_input, "wait: must be 0 to 30 seconds");
    }
    sql::Signal& signal = parts_.database.signal(queue_signal);
    const Monotonic until = parts_.clock.monotonic() + request.wait;
    while (true) {
      const std::uint64_t seen = signal.count();
      auto messages =
          CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) -> Result<std::vector<ReceivedMessage>> {
            return store::queued(tx, ctx.org, caller, request.sandbox, parts_.clock.now(), request.messages_max);
          }));
      const Nanos left = std::min(until, ctx.deadline) - parts_.clock.monotonic();
      if (!messages.empty() || left <= Nanos::zero()) return messages;
      // Also looks once a second by itself, for what another process queued.
      signal.wait(seen, std::min<Nanos>(left, std::chrono::seconds(1)));
    }
  }

  Result<> acknowledge(const Context& ctx, const MessageId& message, DeliveryState receipt, const std::string& reason,
                       const std::optional<SandboxId>& sandbox) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    if (receipt == DeliveryState::queued) {
      return failure(ErrorKind::invalid_input, "receipt: must be delivered, read or failed");
    }
    if (reason.size() > reason_bytes_max || !is_valid_utf8(reason)) {
      return failure(ErrorKind::invalid_input, "reason: must be text of at most 1024 bytes");
    }
    const auto before = CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) {
      return store::find_delivery(tx, ctx.org, message, caller, sandbox);
    }));
    if (!before) return unknown_message(message);
    const bool changes = CRETO_TRY(changes_to(before->delivery.state, receipt));
    if (!changes) return {};
    // Signed before the transaction: signing may use the same database.
    const std::string event = CRETO_TRY(receipt_event(ctx, *before, receipt, reason));
    CRETO_TRY(sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      const auto now_there = CRETO_TRY(store::find_delivery(tx, ctx.org, message, caller, sandbox));
      if (!now_there) return unknown_message(message);
      const bool still = CRETO_TRY(changes_to(now_there->delivery.state, receipt));
      if (!still) return {};
      return move_to(tx, ctx, *now_there, receipt, reason, event);
    }));
    if (receipt != DeliveryState::failed) delivered_.add();
    return {};
  }

  Result<MessageStatus> status(const Context& ctx, const MessageId& message) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    auto found =
        CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::status(tx, ctx.org, message); }));
    if (!found) return unknown_message(message);
    const bool received =
        std::ranges::any_of(found->deliveries, [&](const Delivery& delivery) { return delivery.recipient == caller; });
    if (found->sender != caller && !received) return unknown_message(message);
    if (found->sender != caller) {
      // A recipient learns of its own delivery, not of who else is subscribed.
      std::erase_if(found->deliveries, [&](const Delivery& delivery) { return delivery.recipient != caller; });
    }
    return *std::move(found);
  }

  // --- topics

  Result<Topic> create_topic(const Context& ctx, const std::string& name) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    CRETO_TRY(check_topic_name(name));
    CRETO_TRY(permit(ctx, "message.create_topic", {"Topic", name}));
    return sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<Topic> {
      auto found = CRETO_TRY(store::find_topic(tx, ctx.org, name));
      if (found) {
        if (found->owner == caller) return *std::move(found);
        return failure(ErrorKind::already_exists, fmt::format("topic `{}` is somebody else's", name));
      }
      const Topic topic{name, caller, parts_.clock.now()};
      CRETO_TRY(store::insert_topic(tx, ctx.org, topic));
      CRETO_TRY(note(tx, ctx, "topic_created", topic_uri(name)));
      CRETO_TRY(bill(tx, ctx, MessageEventType::topic_created, "topic:" + name, caller, 0, 1,
                     contracts::MessagePriority::normal));
      return topic;
    });
  }

  Result<std::vector<Topic>> list_topics(const Context& ctx) override {
    return sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::topics(tx, ctx.org, topics_max); });
  }

  Result<Subscription> subscribe(const Context& ctx, const std::string& topic,
                                 const std::optional<SandboxId>& sandbox) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    CRETO_TRY(check_topic_name(topic));
    CRETO_TRY(permit(ctx, "message.subscribe", {"Topic", topic}));
    return sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<Subscription> {
      const auto found = CRETO_TRY(store::find_topic(tx, ctx.org, topic));
      if (!found) return no_topic(topic);
      const auto subscriptions = CRETO_TRY(store::subscriptions_of(tx, ctx.org, topic));
      for (const Subscription& subscription : subscriptions) {
        if (subscription.subscriber == caller && subscription.sandbox == sandbox) return subscription;
      }
      if (subscriptions.size() >= subscribers_max) {
        return failure(ErrorKind::resource_exhausted, fmt::format("topic `{}` has 256 subscriptions already", topic));
      }
      const Instant now = parts_.clock.now();
      const Subscription subscription{TopicSubscriptionId::fresh(now), topic, caller, sandbox, now};
      CRETO_TRY(store::insert_subscription(tx, ctx.org, subscription));
      CRETO_TRY(note(tx, ctx, "subscription_created", topic_uri(topic)));
      CRETO_TRY(bill(tx, ctx, MessageEventType::subscription_created, "subscription:" + subscription.id.to_string(),
                     caller, 0, 1, contracts::MessagePriority::normal));
      return subscription;
    });
  }

  Result<> unsubscribe(const Context& ctx, const TopicSubscriptionId& id) override {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    return sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      const auto found = CRETO_TRY(store::find_subscription(tx, ctx.org, id));
      if (!found) return {};
      if (found->subscriber != caller) {
        const auto topic = CRETO_TRY(store::find_topic(tx, ctx.org, found->topic));
        if (!topic || topic->owner != caller) {
          return failure(ErrorKind::permission_denied, fmt::format("subscription `{}` is not yours", id.to_string()));
        }
      }
      CRETO_TRY(store::delete_subscription(tx, ctx.org, id));
      return note(tx, ctx, "subscription_ended", topic_uri(found->topic));
    });
  }

  Result<std::vector<Identity>> subscribers(const Context& ctx, const std::string& topic) override {
    CRETO_TRY(caller_of(ctx));
    CRETO_TRY(check_topic_name(topic));
    // Whom it must be sealed for has to be known before there is a message that a human could approve.
    auto permitted = permit(ctx, send_request(ctx, {"Topic", topic}, contracts::MessagePriority::normal, 0));
    if (!permitted && permitted.error().kind() != ErrorKind::oversight_required) return std::move(permitted).error();
    return sql::read(parts_.database, ctx, [&](sql::Tx& tx) -> Result<std::vector<Identity>> {
      const auto found = CRETO_TRY(store::find_topic(tx, ctx.org, topic));
      if (!found) return no_topic(topic);
      const auto subscriptions = CRETO_TRY(store::subscriptions_of(tx, ctx.org, topic));
      std::set<Identity> identities;
      for (const Subscription& subscription : subscriptions) identities.insert(subscription.subscriber);
      return std::vector<Identity>(identities.begin(), identities.end());
    });
  }

  // --- the ends of things

  Result<> sandbox_terminated(const Context& ctx, const SandboxId& sandbox) override {
    const std::string reason = "the sandbox was terminated";
    const auto waiting =
        CRETO_TRY(sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::queued_in(tx, ctx.org, sandbox); }));
    CRETO_TRY(fail_all(ctx, waiting, reason));
    return sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      const auto subscriptions = CRETO_TRY(store::subscriptions_in(tx, ctx.org, sandbox));
      for (const Subscription& subscription : subscriptions) {
        CRETO_TRY(store::delete_subscription(tx, ctx.org, subscription.id));
        CRETO_TRY(note(tx, ctx, "subscription_ended", topic_uri(subscription.topic), reason));
      }
      return {};
    });
  }

  Result<std::int64_t> clean_up(const Context& ctx) override {
    const Instant now = parts_.clock.now();
    const auto expired = CRETO_TRY(
        sql::read(parts_.database, ctx, [&](sql::Tx& tx) { return store::expired(tx, now, clean_up_batch); }));
    for (const store::Expired& entry : expired) {
      Context of_org = service_context(entry.org);
      of_org.deadline = ctx.deadline;
      CRETO_TRY(fail_all(of_org, {entry.row}, "it expired before it was received"));
    }
    const std::int64_t forgotten = CRETO_TRY(
        sql::write(parts_.database, ctx, [&](sql::Tx& tx) { return store::forget(tx, now - remembered_for, now); }));
    return static_cast<std::int64_t>(expired.size()) + forgotten;
  }

  HealthStatus health() override {
    const Context ctx = service_context("default");
    const auto answered = parts_.database.read(ctx, [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.query("SELECT 1"));
      return {};
    });
    if (answered) return {};
    return {.health = Health::unhealthy, .reason = answered.error().message()};
  }

  // --- SandboxMessenger: the same, with the sandbox it came from

  Result<MessageId> send_from_sandbox(const Context& ctx, const SandboxId&, const SealedMessage& message,
                                      const std::string& override_token) override {
    return send(ctx, message, override_token);
  }
  Result<TopicSubscriptionId> subscribe_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                std::string_view topic) override {
    const Subscription subscription = CRETO_TRY(subscribe(ctx, std::string(topic), sandbox));
    return subscription.id;
  }
  Result<> unsubscribe_sandbox(const Context& ctx, const TopicSubscriptionId& subscription) override {
    return unsubscribe(ctx, subscription);
  }
  Result<std::vector<ReceivedMessage>> receive_for_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                           std::size_t messages_max) override {
    return receive(ctx, {.messages_max = messages_max, .sandbox = sandbox});
  }
  Result<> acknowledge_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message) override {
    return acknowledge(ctx, message, DeliveryState::delivered, {}, sandbox);
  }
  Result<> refuse_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message,
                              std::string_view reason) override {
    return acknowledge(ctx, message, DeliveryState::failed, std::string(reason), sandbox);
  }

 private:
  Context service_context(std::string org) const {
    Context ctx = Context::of_service(self_);
    ctx.org = std::move(org);
    return ctx;
  }

  static Error no_topic(std::string_view topic) {
    return failure(ErrorKind::topic_not_found, fmt::format("topic `{}` does not exist", topic));
  }

  Result<> note(sql::Tx& tx, const Context& ctx, std::string what, std::string resource, std::string why = {},
                audit::Outcome outcome = audit::Outcome::success, std::string detail = {}) const {
    audit::AuditRecord record = audit::AuditRecord::of(ctx, std::move(what), std::move(resource), outcome);
    record.why = std::move(why);
    record.outcome_detail = std::move(detail);
    CRETO_TRY(audit::record(tx, ctx, std::move(record)));
    return {};
  }

  /// Usage leaves with the transaction that caused it; metering hears of it through the bus, once or more, under one
  /// key.
  Result<> bill(sql::Tx& tx, const Context& ctx, MessageEventType type, const std::string& key, const Identity& agent,
                std::size_t size, std::size_t recipients, contracts::MessagePriority priority) const {
    contracts::MessageBillableEvent event{.idempotency_key = fmt::format("{}:{}", contracts::to_string(type), key),
                                          .agent = agent,
                                          .delegation_chain = ctx.chain,
                                          .event_type = type,
                                          .timestamp = parts_.timestamps.now(),
                                          .message_size_bytes = size,
                                          .recipient_count = recipients,
                                          .priority = priority};
    return bus::publish(tx, ctx, usage_subject, event.idempotency_key, encode_usage(event));
  }

  Result<> forward_usage(const bus::BusMessage& message) {
    const auto event = CRETO_TRY(decode_usage(message.body));
    Context ctx = Context::of(event.agent, event.delegation_chain);
    ctx.org = message.org;
    ctx.trace = message.trace;
    CRETO_TRY(parts_.costs.track_message_event(ctx, event));
    return {};
  }

  Result<> on_lifecycle(const bus::BusMessage& message) {
    const EventEnvelope event = CRETO_TRY(EventEnvelope::from_json(message.body));
    const Context ctx = service_context(message.org);
    if (!event.signature) return failure(ErrorKind::signature_invalid, "a lifecycle event without a signature");
    const std::string bytes = CRETO_TRY(event.signed_bytes());
    CRETO_TRY(parts_.nhi.verify(ctx, runtime_, as_bytes(bytes), *event.signature, event_signature_context));
    const auto lifecycle = CRETO_TRY(contracts::SandboxLifecycleEvent::from_json(event.payload));
    if (lifecycle.change != "terminated") return {};
    return sandbox_terminated(ctx, lifecycle.sandbox);
  }

  /// Errors: delivery_denied caused by the policy's refusal; whatever else authz answers.
  Result<> permit(const Context& ctx, std::string action, authz::EntityUid resource) const {
    return permit(ctx, authz::CheckRequest{.principal = *ctx.caller,
                                           .chain = ctx.chain,
                                           .action = std::move(action),
                                           .resource = std::move(resource),
                                           .context = {},
                                           .override_token = {}});
  }
  Result<> permit(const Context& ctx, const authz::CheckRequest& request) const {
    auto refused = authz::refusal(Product::messaging, parts_.authz.admit(ctx, request));
    if (!refused) return {};
    if (refused->kind() != ErrorKind::permission_denied) return *std::move(refused);
    return failure(ErrorKind::delivery_denied, fmt::format("policy does not let `{}` {} {}", ctx.caller_text(),
                                                           request.action, request.resource.to_string()))
        .with_cause(*std::move(refused));
  }

  Result<MessageId> try_send(const Context& ctx, const SealedMessage& message, const std::string& override_token) {
    const Identity caller = CRETO_TRY(caller_of(ctx));
    const Envelope envelope = CRETO_TRY(parse_envelope(message.envelope));
    CRETO_TRY(check_fields(message, envelope.header));
    if (message.sender != caller) {
      return failure(ErrorKind::permission_denied,
                     fmt::format("`{}` cannot send in the name of `{}`", caller.text(), message.sender.text()));
    }
    if (message.ttl < ttl_min || message.ttl > options_.ttl_max) {
      return failure(ErrorKind::invalid_input, "ttl: must be 1 second to 30 days");
    }
    const Hash256 digest = crypto::sha3_256(message.envelope);
    const auto known = CRETO_TRY(sql::read(
        parts_.database, ctx, [&](sql::Tx& tx) { return store::digest_of(tx, ctx.org, message.message_id); }));
    if (known) return repeated(message, *known, digest);
    const Instant now = parts_.clock.now();
    if (message.sent_at > now + options_.clock_skew) {
      return failure(ErrorKind::invalid_input, "sent_at: is in the future");
    }
    if (now >= message.sent_at + message.ttl) {
      return failure(ErrorKind::expired, fmt::format("message `{}` has expired", message.message_id.to_string()));
    }
    if (envelope.signature) {
      auto verified = parts_.nhi.verify(ctx, message.sender, signed_digest(envelope.signed_bytes), *envelope.signature,
                                        signature_context);
      if (!verified) {
        if (verified.error().kind() == ErrorKind::unavailable) return std::move(verified).error();
        return failure(ErrorKind::signature_invalid, "the message is not signed by its sender")
            .with_cause(std::move(verified).error());
      }
    }
    CRETO_TRY(message.topic.empty() ? check_recipient(ctx, message, envelope) : check_topic_name(message.topic));
    authz::CheckRequest request = send_request(
        ctx, message.topic.empty() ? authz::entity_of(message.recipient) : authz::EntityUid{"Topic", message.topic},
        message.priority, message.envelope.size());
    request.arguments_hash = crypto::sha3_256(as_bytes(contracts::approval_arguments(message, digest)));
    request.override_token = override_token;
    CRETO_TRY(permit(ctx, request));
    CRETO_TRY(check_quota(ctx, caller));
    return accept(ctx, {message, now, digest}, envelope, request);
  }

  static Result<MessageId> repeated(const SealedMessage& message, const Hash256& known, const Hash256& digest) {
    if (known == digest) return message.message_id;
    return failure(ErrorKind::conflict,
                   fmt::format("message id `{}` was used for another message", message.message_id.to_string()));
  }

  static authz::CheckRequest send_request(const Context& ctx, authz::EntityUid resource,
                                          contracts::MessagePriority priority, std::size_t size) {
    return {.principal = *ctx.caller,
            .chain = ctx.chain,
            .action = "message.send",
            .resource = std::move(resource),
            .context = {{"priority", authz::Value(contracts::to_string(priority))},
                        {"size", authz::Value(static_cast<std::int64_t>(size))}},
            .override_token = {}};
  }

  Result<> check_recipient(const Context& ctx, const SealedMessage& message, const Envelope& envelope) {
    const bool revoked = CRETO_TRY(parts_.nhi.is_revoked(ctx, message.recipient));
    if (revoked) {
      return failure(ErrorKind::recipient_not_found,
                     fmt::format("`{}` is not registered, or may not act", message.recipient.text()));
    }
    if (envelope.one_shot &&
        (envelope.one_shot->keys.size() != 1 || envelope.one_shot->keys.front().recipient != message.recipient)) {
      return failure(ErrorKind::invalid_input, "a direct message is sealed for its recipient alone");
    }
    return {};
  }

  Result<> check_quota(const Context& ctx, const Identity& sender) {
    const auto quota = CRETO_TRY(parts_.costs.check_message_quota(ctx, sender, MessageEventType::message_sent));
    if (quota.allowed) return {};
    Error cause(Product::metering, ErrorKind::quota_exceeded,
                fmt::format("quota `{}` of messages exceeded ({}/{})", quota.quota_id, quota.used, quota.limit));
    Error error =
        failure(ErrorKind::quota_exceeded, "cannot send the message: quota exceeded").with_cause(std::move(cause));
    if (quota.reset_at) {
      error = std::move(error).with_retry_after(std::max(Nanos::zero(), *quota.reset_at - parts_.clock.now()));
    }
    return error;
  }

  Result<MessageId> accept(const Context& ctx, const store::Accepted& accepted, const Envelope& envelope,
                           const authz::CheckRequest& request) {
    const SealedMessage& message = accepted.message;
    sql::Signal& signal = parts_.database.signal(queue_signal);
    bool fresh = false;
    const auto accept_once = [&](sql::Tx& tx) -> Result<MessageId> {
      const auto known = CRETO_TRY(store::digest_of(tx, ctx.org, message.message_id));
      if (known) return repeated(message, *known, accepted.digest);
      const auto targets = CRETO_TRY(targets_of(tx, ctx, message, envelope));
      CRETO_TRY(store::insert_message(tx, ctx.org, accepted));
      if (!request.override_token.empty())
        CRETO_TRY(parts_.authz.consume_override(tx, ctx, request, message.message_id.to_string()));
      for (const store::Target& target : targets) {
        const std::int64_t waiting = CRETO_TRY(store::queued_for(tx, ctx.org, target.recipient));
        if (waiting >= options_.queue_max) {
          return failure(ErrorKind::resource_exhausted,
                         fmt::format("the queue of `{}` is full", target.recipient.text()));
        }
        CRETO_TRY(store::insert_delivery(tx, ctx.org, accepted, target));
      }
      if (targets.empty()) CRETO_TRY(store::drop_envelope_if_done(tx, ctx.org, message.message_id));
      CRETO_TRY(note(tx, ctx, "message_sent", message_uri(message.message_id),
                     message.topic.empty() ? fmt::format("to {}", message.recipient.text())
                                           : fmt::format("to {}", topic_uri(message.topic))));
      CRETO_TRY(bill(tx, ctx, MessageEventType::message_sent, message.message_id.to_string(), message.sender,
                     message.envelope.size(), targets.size(), message.priority));
      tx.after_commit([&signal] { signal.raise(); });
      fresh = true;
      return message.message_id;
    };
    // Who repeats a request without knowing its outcome has sealed the message anew, under another id: only to whom it
    // goes can be compared.
    Context keyed = ctx;
    keyed.request_hash = crypto::sha3_256(as_bytes(message.recipient.text() + "\n" + message.topic));
    auto sent = sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<MessageId> {
      fresh = false;
      return io::once(
          tx, keyed, "messaging.send", std::chrono::hours(24), [&] { return accept_once(tx); },
          [](const MessageId& id) { return id.to_string(); }, [](std::string_view id) { return MessageId::parse(id); });
    });
    if (fresh) sent_.add();
    return sent;
  }

  Result<std::vector<store::Target>> targets_of(sql::Tx& tx, const Context& ctx, const SealedMessage& message,
                                                const Envelope& envelope) const {
    std::vector<store::Target> targets;
    if (message.topic.empty()) {
      targets.push_back({message.recipient, std::nullopt});
      return targets;
    }
    const auto topic = CRETO_TRY(store::find_topic(tx, ctx.org, message.topic));
    if (!topic) return no_topic(message.topic);
    const auto subscriptions = CRETO_TRY(store::subscriptions_of(tx, ctx.org, message.topic));
    std::set<Identity> sealed_for;
    for (const WrappedKey& key : envelope.one_shot->keys) sealed_for.insert(key.recipient);
    for (const Subscription& subscription : subscriptions) {
      if (!sealed_for.contains(subscription.subscriber)) {
        return failure(ErrorKind::conflict,
                       fmt::format("the message is not sealed for `{}`, who has subscribed to `{}`",
                                   subscription.subscriber.text(), message.topic))
            .with_retryable(true);
      }
      targets.push_back({subscription.subscriber, subscription.sandbox});
    }
    return targets;
  }

  /// Refusals that somebody should know of: by policy, forged, or over quota. Malformed input is not an event of its
  /// own.
  Result<> note_refusal(const Context& ctx, const SealedMessage& message, const Error& error) {
    const ErrorCategory category = error.category();
    if (!ctx.caller || (category != ErrorCategory::security && category != ErrorCategory::authorization &&
                        category != ErrorCategory::oversight)) {
      return {};
    }
    return sql::write(parts_.database, ctx, [&](sql::Tx& tx) {
      return note(tx, ctx, "delivery_denied", message_uri(message.message_id), {}, audit::Outcome::denied,
                  error.to_string());
    });
  }

  // --- receipts

  /// Whether a delivery in `from` moves. Errors: conflict after a failure.
  static Result<bool> changes_to(DeliveryState from, DeliveryState to) {
    if (from == to) return false;
    if (from == DeliveryState::failed) return failure(ErrorKind::conflict, "the delivery has failed before");
    if (to == DeliveryState::failed) return from == DeliveryState::queued;
    return static_cast<int>(to) > static_cast<int>(from);
  }

  Result<std::string> receipt_event(const Context& ctx, const store::DeliveryRow& row, DeliveryState receipt,
                                    const std::string& reason) {
    const contracts::DeliveryReceiptEvent payload{.message = row.message,
                                                  .recipient = row.delivery.recipient,
                                                  .receipt = std::string(to_string(receipt)),
                                                  .failure_reason = reason};
    const Instant now = parts_.clock.now();
    EventEnvelope event{.event_type = std::string(contracts::DeliveryReceiptEvent::event_type),
                        .event_id = EventId::fresh(now),
                        .agent = row.delivery.recipient,
                        .delegation_chain = ctx.chain,
                        .timestamp = parts_.timestamps.now(),
                        .payload = {},
                        .signature = {}};
    event.payload = CRETO_TRY(payload.to_json());
    const std::string bytes = CRETO_TRY(event.signed_bytes());
    const Context own = service_context(ctx.org);
    event.signature = CRETO_TRY(parts_.nhi.sign(own, self_, as_bytes(bytes), event_signature_context));
    return event.to_json();
  }

  Result<> move_to(sql::Tx& tx, const Context& ctx, const store::DeliveryRow& row, DeliveryState state,
                   const std::string& reason, const std::string& event) {
    const Instant now = parts_.clock.now();
    CRETO_TRY(store::set_state(tx, ctx.org, row, state, reason, now));
    CRETO_TRY(store::drop_envelope_if_done(tx, ctx.org, row.message));
    const std::string sandbox = row.delivery.sandbox ? row.delivery.sandbox->to_string() : std::string();
    const std::string place = fmt::format("{}:{}:{}", row.message.to_string(), row.delivery.recipient.text(), sandbox);
    CRETO_TRY(note(tx, ctx, fmt::format("message_{}", to_string(state)), message_uri(row.message), reason,
                   state == DeliveryState::failed ? audit::Outcome::failure : audit::Outcome::success));
    if (state != DeliveryState::failed && row.delivery.state == DeliveryState::queued) {
      CRETO_TRY(bill(tx, ctx, MessageEventType::message_received, place, row.delivery.recipient,
                     static_cast<std::size_t>(row.size), 1, row.priority));
    }
    return bus::publish(tx, ctx, contracts::DeliveryReceiptEvent::subject,
                        fmt::format("{}:{}", place, to_string(state)), event);
  }

  Result<> fail_all(const Context& ctx, const std::vector<store::DeliveryRow>& rows, const std::string& reason) {
    for (const store::DeliveryRow& row : rows) {
      const std::string event = CRETO_TRY(receipt_event(ctx, row, DeliveryState::failed, reason));
      CRETO_TRY(sql::write(parts_.database, ctx, [&](sql::Tx& tx) -> Result<> {
        const auto current =
            CRETO_TRY(store::find_delivery(tx, ctx.org, row.message, row.delivery.recipient, row.delivery.sandbox));
        if (!current || current->delivery.state != DeliveryState::queued) return {};
        return move_to(tx, ctx, *current, DeliveryState::failed, reason, event);
      }));
    }
    return {};
  }

  MessagingParts parts_;
  const MessagingOptions options_;
  const Identity self_;
  const Identity runtime_ = *Identity::service("runtime");  // whose word on sandboxes counts
  Counter& sent_;
  Counter& delivered_;
  Counter& refused_;
};

}  // namespace

std::string_view to_string(DeliveryState state) { return name_of(delivery_states, state); }
Result<DeliveryState> delivery_state_from_string(std::string_view text) {
  return value_of(delivery_states, text, "receipt", Product::messaging);
}

Result<std::unique_ptr<Messaging>> create_messaging(const MessagingParts& parts, MessagingOptions options) {
  CRETO_TRY(audit::prepare(parts.database));
  CRETO_TRY(store::migrate(parts.database));
  Identity self = CRETO_TRY(Identity::service("messaging"));
  const Context ctx = Context::of_service(self);
  CRETO_TRY(parts.nhi.ensure_service(ctx, self));
  auto service = std::make_unique<MessagingService>(parts, std::move(options), std::move(self));
  CRETO_TRY(service->start());
  return std::unique_ptr<Messaging>(std::move(service));
}

}  // namespace creto::messaging
