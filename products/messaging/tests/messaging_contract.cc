// What every Messaging keeps, on each store, and at the other end of a connection; with real endpoints at both ends.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <thread>

#include "creto/authz/authz.h"
#include "creto/common/event.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "creto/io/bus.h"
#include "creto/messaging/endpoint.h"
#include "creto/messaging/messaging_entities.h"
#include "creto/messaging/messaging_rpc.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/human.h"
#include "creto/testing/result.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"
#include "wire.h"

namespace creto::messaging {
namespace {

using contracts::MessageEventType;
using contracts::MessagePriority;
using contracts::SealedMessage;
using creto::testing::kind;
using creto::testing::Where;
using creto::testing::Wire;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

/// Keeps what it is told, once per key, and says no when told to.
class Ledger final : public contracts::MessageCostTracker {
 public:
  Result<EventId> track_message_event(const Context&, const contracts::MessageBillableEvent& event) override {
    const std::lock_guard lock(mutex_);
    const auto [at, fresh] = ids_.try_emplace(event.idempotency_key, EventId::fresh(system_clock().now()));
    if (fresh) events_.push_back(event);
    return at->second;
  }
  Result<contracts::QuotaDecision> check_message_quota(const Context&, const Identity&, MessageEventType) override {
    const std::lock_guard lock(mutex_);
    return decision_;
  }
  void answer(contracts::QuotaDecision decision) {
    const std::lock_guard lock(mutex_);
    decision_ = std::move(decision);
  }
  std::vector<contracts::MessageBillableEvent> events() {
    const std::lock_guard lock(mutex_);
    return events_;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, EventId> ids_;
  std::vector<contracts::MessageBillableEvent> events_;
  contracts::QuotaDecision decision_;
};

struct Party {
  Identity identity;
  std::unique_ptr<EndpointStore> store;
  std::unique_ptr<EndpointKeys> keys;
  std::unique_ptr<Endpoint> endpoint;
};

class MessagingContract : public ::testing::TestWithParam<Where> {
 protected:
  MessagingContract() {
    start();
    const Context ctx = as(*Identity::service("test"));
    EXPECT_TRUE(authz_->create_policy(ctx, "all", "permit (principal, action, resource);"));
    ada_.emplace(*nhi_, "ada@example.com");
    alice = party("alice");
    bob = party("bob");
    carol = party("carol");
  }
  ~MessagingContract() override { stop(); }

  void start() {
    db = database_.open();
    nhi_ = nhi::create_nhi(*db, sealer_, clock).value();
    authz_ = authz::create_authz(*db, clock, no_telemetry(), {}, Secret::copy_of(BytesView(override_key_))).value();
    ceiling_ = consensus::create_ceiling_store(*db, "test").value();
    timestamps_ = consensus::create_timestamp_source(*ceiling_, clock, no_telemetry()).value();
    bus = bus::create_embedded_bus(*db, clock, no_telemetry()).value();
    service_ = create_messaging({*db, *bus, *nhi_, *authz_, ledger, *timestamps_, clock, no_telemetry()}).value();
    messaging = service_.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_messaging(wire_->dispatcher(), *service_);
    client_ = create_messaging_client(wire_->connect());
    messaging = client_.get();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    service_.reset();
    bus.reset();
    timestamps_.reset();
    ceiling_.reset();
    authz_.reset();
    nhi_.reset();
    db.reset();
  }

  static Context as(const Identity& identity) { return Context::of(identity, {identity}); }
  static Context as(const Party& party) { return as(party.identity); }

  std::unique_ptr<Party> party(const std::string& name) {
    auto agent = nhi_->register_agent(as(ada_->identity), {.name = name});
    EXPECT_TRUE(agent) << agent.error().to_string();
    auto out = std::unique_ptr<Party>(new Party{agent->identity, nullptr, nullptr, nullptr});
    connect(*out);
    const auto published = out->endpoint->publish_keys(as(*out));
    EXPECT_TRUE(published) << published.error().to_string();
    return out;
  }
  void connect(Party& party) {
    party.endpoint.reset();
    party.store = create_endpoint_store(*db, sealer_, "default", party.identity).value();
    party.keys = keys_held_by_nhi(*nhi_, party.identity);
    party.endpoint = create_endpoint(*party.store, *party.keys, *nhi_, clock);
  }

  SealedMessage sealed(const Party& from, const Party& to, std::string_view text, Draft draft = {}) {
    draft.body = as_bytes(text);
    auto message = from.endpoint->seal(as(from), to.identity, draft);
    EXPECT_TRUE(message) << message.error().to_string();
    return *std::move(message);
  }
  SealedMessage in_session(const Party& from, const Party& to, std::string_view text) {
    Draft draft;
    draft.body = as_bytes(text);
    auto message = from.endpoint->seal_in_session(as(from), to.identity, draft);
    EXPECT_TRUE(message) << message.error().to_string();
    return *std::move(message);
  }
  MessageId sent(const Party& from, const SealedMessage& message) {
    const auto id = messaging->send(as(from), message);
    EXPECT_TRUE(id) << id.error().to_string();
    return message.message_id;
  }
  std::vector<SealedMessage> waiting(const Party& party, std::optional<SandboxId> sandbox = std::nullopt) {
    const auto received = messaging->receive(as(party), {.sandbox = sandbox});
    EXPECT_TRUE(received) << received.error().to_string();
    std::vector<SealedMessage> out;
    if (received) {
      for (const auto& one : *received) out.push_back(one.message);
    }
    return out;
  }
  std::string text_of(const Party& party, const SealedMessage& message) {
    const auto opened = party.endpoint->open(as(party), message);
    if (!opened) return "error: " + opened.error().to_string();
    return std::string(opened->body.reveal_text());
  }
  /// All of what waits, opened, acknowledged here and there.
  std::vector<std::string> read_all(const Party& party, std::optional<SandboxId> sandbox = std::nullopt) {
    std::vector<std::string> texts;
    for (const SealedMessage& message : waiting(party, sandbox)) {
      texts.push_back(text_of(party, message));
      EXPECT_TRUE(messaging->acknowledge(as(party), message.message_id, DeliveryState::delivered, {}, sandbox));
      EXPECT_TRUE(party.endpoint->acknowledge(as(party), message.message_id));
    }
    return texts;
  }
  std::int64_t count(std::string_view sql) {
    std::int64_t out = -1;
    const auto read = db->read({}, [&](sql::Tx& tx) -> Result<> {
      const auto rows = CRETO_TRY(tx.query(sql));
      out = rows.front().integer(0);
      return {};
    });
    EXPECT_TRUE(read);
    return out;
  }

  creto::testing::FakeClock clock{system_clock().now()};
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  creto::testing::TestSealer sealer_;
  Ledger ledger;
  const Bytes override_key_ = crypto::random_bytes(32);
  std::optional<creto::testing::Human> ada_;
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<nhi::Nhi> nhi_;
  std::unique_ptr<authz::Authz> authz_;
  std::unique_ptr<consensus::CeilingStore> ceiling_;
  std::unique_ptr<consensus::TimestampSource> timestamps_;
  std::unique_ptr<bus::Bus> bus;
  std::unique_ptr<Messaging> service_, client_;
  std::optional<Wire> wire_;
  Messaging* messaging = nullptr;
  std::unique_ptr<Party> alice, bob, carol;
};

TEST_P(MessagingContract, CarriesAnEnvelopeFromEndToEnd) {
  const SealedMessage message = sealed(*alice, *bob, "the invoice is paid");
  EXPECT_EQ(as_text(message.envelope).find("invoice"), std::string_view::npos);
  const MessageId id = sent(*alice, message);
  const auto received = waiting(*bob);
  ASSERT_THAT(received, SizeIs(1));
  EXPECT_EQ(received[0].envelope, message.envelope);
  const auto opened = bob->endpoint->open(as(*bob), received[0]);
  ASSERT_TRUE(opened) << opened.error().to_string();
  EXPECT_EQ(opened->body.reveal_text(), "the invoice is paid");
  EXPECT_EQ(opened->sender, alice->identity);
  EXPECT_EQ(opened->protocol, Protocol::envelope);
  EXPECT_THAT(waiting(*bob), SizeIs(1)) << "it stays until acknowledged";
  ASSERT_TRUE(messaging->acknowledge(as(*bob), id, DeliveryState::delivered, {}, {}));
  EXPECT_THAT(waiting(*bob), IsEmpty());
  ASSERT_TRUE(messaging->acknowledge(as(*bob), id, DeliveryState::read, {}, {}));
  const auto status = messaging->status(as(*alice), id);
  ASSERT_TRUE(status);
  ASSERT_THAT(status->deliveries, SizeIs(1));
  EXPECT_EQ(status->deliveries[0].state, DeliveryState::read);
  EXPECT_EQ(count("SELECT COUNT(*) FROM messages WHERE envelope IS NOT NULL"), 0) << "nobody waits for the bytes";
}

TEST_P(MessagingContract, CarriesASessionThatBeginsWithItsFirstMessage) {
  sent(*alice, in_session(*alice, *bob, "one"));
  clock.advance(seconds(1));  // or the order of the two would be chance
  sent(*alice, in_session(*alice, *bob, "two"));
  const auto received = waiting(*bob);
  ASSERT_THAT(received, SizeIs(2));
  const auto first = bob->endpoint->open(as(*bob), received[0]);
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_TRUE(first->session_established);
  EXPECT_EQ(first->protocol, Protocol::session);
  EXPECT_EQ(first->body.reveal_text(), "one");
  const auto second = bob->endpoint->open(as(*bob), received[1]);
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_FALSE(second->session_established);
  read_all(*bob);
  sent(*bob, in_session(*bob, *alice, "three"));
  EXPECT_THAT(read_all(*alice), ElementsAre("three"));
  const SealedMessage short_one = in_session(*alice, *bob, "four");
  EXPECT_LT(short_one.envelope.size(), 600U) << "no signature once the peer has answered";
  sent(*alice, short_one);
  EXPECT_THAT(read_all(*bob), ElementsAre("four"));
  EXPECT_LT(nhi_->prekey_count(as(*bob), bob->identity)->one_time, 50) << "a one-time prekey was used up";
}

TEST_P(MessagingContract, BothMayBeginASessionAtOnce) {
  sent(*alice, in_session(*alice, *bob, "from alice"));
  sent(*bob, in_session(*bob, *alice, "from bob"));
  EXPECT_THAT(read_all(*bob), ElementsAre("from alice"));
  EXPECT_THAT(read_all(*alice), ElementsAre("from bob"));
  for (int i = 0; i < 3; ++i) {
    sent(*alice, in_session(*alice, *bob, "a"));
    sent(*bob, in_session(*bob, *alice, "b"));
    EXPECT_THAT(read_all(*bob), ElementsAre("a"));
    EXPECT_THAT(read_all(*alice), ElementsAre("b"));
  }
}

TEST_P(MessagingContract, SessionsAndQueuesSurviveARestart) {
  sent(*alice, in_session(*alice, *bob, "one"));
  EXPECT_THAT(read_all(*bob), ElementsAre("one"));
  sent(*bob, in_session(*bob, *alice, "two"));
  stop();
  start();
  for (Party* const party : {alice.get(), bob.get(), carol.get()}) connect(*party);
  EXPECT_THAT(read_all(*alice), ElementsAre("two"));
  sent(*alice, in_session(*alice, *bob, "three"));
  EXPECT_THAT(read_all(*bob), ElementsAre("three"));
}

TEST_P(MessagingContract, SendingAgainDeliversNothingAgain) {
  const SealedMessage message = sealed(*alice, *bob, "once");
  const MessageId id = sent(*alice, message);
  EXPECT_EQ(*messaging->send(as(*alice), message), id);
  EXPECT_THAT(read_all(*bob), ElementsAre("once"));
  clock.advance(hours(24 * 20));
  EXPECT_EQ(*messaging->send(as(*alice), message), id) << "also long after";
  EXPECT_THAT(waiting(*bob), IsEmpty());
  SealedMessage other = sealed(*alice, *bob, "another", {.id = id});
  EXPECT_EQ(kind(messaging->send(as(*alice), other)), "conflict");
  ASSERT_TRUE(bus->wait_until_idle(seconds(20)));
  int billed = 0;
  for (const auto& event : ledger.events()) billed += event.event_type == MessageEventType::message_sent ? 1 : 0;
  EXPECT_EQ(billed, 1);
}

TEST_P(MessagingContract, ARepeatedRequestIsSentOnceAlsoWhereItIsSealedAnew) {
  Context ctx = as(*alice);
  ctx.idempotency_key = "tell-bob";
  const auto first = messaging->send(ctx, sealed(*alice, *bob, "once"));
  const auto again = messaging->send(ctx, sealed(*alice, *bob, "once"));
  ASSERT_TRUE(first && again);
  EXPECT_EQ(*first, *again);
  EXPECT_THAT(read_all(*bob), ElementsAre("once"));
  ctx.idempotency_key = "tell-bob-again";
  ASSERT_TRUE(messaging->send(ctx, sealed(*alice, *bob, "twice")));
  EXPECT_THAT(read_all(*bob), ElementsAre("twice"));
}

TEST_P(MessagingContract, TheEndpointOpensAMessageOnce) {
  const SealedMessage message = sealed(*alice, *bob, "once");
  EXPECT_EQ(text_of(*bob, message), "once");
  EXPECT_EQ(text_of(*bob, message), "once") << "until it is acknowledged";
  ASSERT_TRUE(bob->endpoint->acknowledge(as(*bob), message.message_id));
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), message)), "conflict");
  const SealedMessage ratchet = in_session(*alice, *bob, "twice?");
  EXPECT_EQ(text_of(*bob, ratchet), "twice?");
  ASSERT_TRUE(bob->endpoint->acknowledge(as(*bob), ratchet.message_id));
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), ratchet)), "conflict");
}

TEST_P(MessagingContract, TheStartOfASessionCannotBeReplayed) {
  const SealedMessage start = in_session(*alice, *bob, "hello");
  EXPECT_EQ(text_of(*bob, start), "hello");
  ASSERT_TRUE(bob->endpoint->end_sessions(as(*bob), alice->identity));
  ASSERT_TRUE(bob->endpoint->acknowledge(as(*bob), start.message_id));
  // As if the endpoint had forgotten the message as well.
  ASSERT_TRUE(db->transaction({}, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("DELETE FROM endpoint_opened"));
    return {};
  }));
  EXPECT_FALSE(bob->endpoint->open(as(*bob), start));
}

TEST_P(MessagingContract, ALastResortKeyServesButNotTwiceForTheSameStart) {
  ASSERT_TRUE(db->transaction({}, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("DELETE FROM endpoint_keys WHERE purpose IN (3, 4)"));
    return {};
  }));
  while (true) {
    const auto count = nhi_->prekey_count(as(*bob), bob->identity);
    ASSERT_TRUE(count);
    if (count->one_time == 0 && count->one_time_kem == 0) break;
    ASSERT_TRUE(nhi_->take_key_bundle(as(*carol), bob->identity));
  }
  const SealedMessage start = in_session(*alice, *bob, "last resort");
  EXPECT_EQ(text_of(*bob, start), "last resort");
  ASSERT_TRUE(bob->endpoint->end_sessions(as(*bob), alice->identity));
  ASSERT_TRUE(db->transaction({}, [](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("DELETE FROM endpoint_opened"));
    return {};
  }));
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), start)), "conflict");
}

TEST_P(MessagingContract, RefusesForgedAndChangedMessages) {
  const SealedMessage message = sealed(*alice, *bob, "pay carol");
  EXPECT_EQ(kind(messaging->send(as(*carol), message)), "permission_denied") << "somebody else's";
  SealedMessage renamed = message;
  renamed.sender = carol->identity;
  EXPECT_EQ(kind(messaging->send(as(*carol), renamed)), "invalid_input") << "not what the envelope says";
  // Bytes all over it; each must be refused, here and at the other end.
  for (std::size_t i = 0; i < message.envelope.size(); i += 1 + message.envelope.size() / 40) {
    SealedMessage changed = message;
    changed.envelope[i] ^= 1;
    const auto parsed = parse_envelope(changed.envelope);
    if (parsed) changed = to_sealed_message(parsed->header, changed.envelope);
    EXPECT_FALSE(messaging->send(as(*alice), changed)) << i;
    EXPECT_FALSE(bob->endpoint->open(as(*bob), changed)) << i;
  }
  // A message of carol's that says it is alice's.
  SealedMessage forged = sealed(*carol, *bob, "I am alice");
  const auto parsed = parse_envelope(forged.envelope);
  Header header = parsed->header;
  header.sender = alice->identity;
  Writer out;
  header.write(out);
  write_one_shot(out, *parsed->one_shot);
  write_signature(out, *parsed->signature);
  forged = to_sealed_message(header, std::move(out).take());
  EXPECT_EQ(kind(messaging->send(as(*alice), forged)), "signature_invalid");
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), forged)), "signature_invalid");
  EXPECT_THAT(waiting(*bob), IsEmpty());
  EXPECT_EQ(count("SELECT COUNT(*) FROM messages"), 0) << "nothing stored";
  EXPECT_EQ(text_of(*bob, message), "pay carol") << "and the true one still opens";
}

TEST_P(MessagingContract, AChangedRatchetMessageLeavesTheSessionUsable) {
  sent(*alice, in_session(*alice, *bob, "one"));
  read_all(*bob);
  sent(*bob, in_session(*bob, *alice, "two"));
  read_all(*alice);
  const SealedMessage message = in_session(*alice, *bob, "three");
  for (std::size_t i = 0; i < message.envelope.size(); i += 3) {
    SealedMessage changed = message;
    changed.envelope[i] ^= 0x80;
    EXPECT_FALSE(bob->endpoint->open(as(*bob), changed)) << i;
  }
  EXPECT_EQ(text_of(*bob, message), "three");
}

TEST_P(MessagingContract, OnlyTheRecipientCanOpen) {
  const SealedMessage message = sealed(*alice, *bob, "secret");
  EXPECT_EQ(kind(carol->endpoint->open(as(*carol), message)), "invalid_input");
  sent(*alice, message);
  EXPECT_THAT(waiting(*carol), IsEmpty());
  EXPECT_EQ(kind(messaging->acknowledge(as(*carol), message.message_id, DeliveryState::delivered, {}, {})),
            "not_found");
  EXPECT_EQ(kind(messaging->status(as(*carol), message.message_id)), "not_found");
}

TEST_P(MessagingContract, RefusesWhatIsTooOldTooNewOrTooLong) {
  const SealedMessage stale = sealed(*alice, *bob, "stale", {.ttl = seconds(10)});
  clock.advance(seconds(10));
  EXPECT_EQ(kind(messaging->send(as(*alice), stale)), "expired");
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), stale)), "expired");
  clock.jump(hours(1));
  const SealedMessage early = sealed(*alice, *bob, "early");
  clock.jump(-hours(1));
  EXPECT_EQ(kind(messaging->send(as(*alice), early)), "invalid_input");
  EXPECT_EQ(kind(bob->endpoint->open(as(*bob), early)), "invalid_input");
  EXPECT_EQ(kind(alice->endpoint->seal(as(*alice), bob->identity, {.ttl = Nanos(1)})), "invalid_input");
  EXPECT_EQ(kind(alice->endpoint->seal(as(*alice), bob->identity, {.ttl = hours(24 * 31)})), "invalid_input");
  const Bytes large(10 << 20);
  EXPECT_EQ(kind(alice->endpoint->seal(as(*alice), bob->identity, {.body = large})), "too_large");
  EXPECT_EQ(kind(alice->endpoint->seal(as(*alice), bob->identity, {.body = BytesView(large).first(1 << 20)})),
            "too_large");
  SealedMessage huge = sealed(*alice, *bob, "huge");
  huge.envelope.resize(10 << 20);
  EXPECT_FALSE(messaging->send(as(*alice), huge));
  EXPECT_TRUE(messaging->send(as(*alice), sealed(*alice, *bob, std::string((1 << 20) - 10000, 'x'))));
}

TEST_P(MessagingContract, ExpiredMessagesAreNotDeliveredAndFail) {
  const MessageId id = sent(*alice, sealed(*alice, *bob, "soon gone", {.ttl = minutes(1)}));
  clock.advance(minutes(2));
  EXPECT_THAT(waiting(*bob), IsEmpty());
  EXPECT_GE(*messaging->clean_up(as(*Identity::service("test"))), 1);
  const auto status = messaging->status(as(*alice), id);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->deliveries[0].state, DeliveryState::failed);
  EXPECT_THAT(status->deliveries[0].reason, ::testing::HasSubstr("expired"));
  clock.advance(hours(24 * 31));
  EXPECT_GE(*messaging->clean_up(as(*Identity::service("test"))), 2);
  EXPECT_EQ(kind(messaging->status(as(*alice), id)), "not_found");
}

TEST_P(MessagingContract, UrgentComesFirstThenOldest) {
  sent(*alice, sealed(*alice, *bob, "low", {.priority = MessagePriority::low}));
  clock.advance(seconds(1));
  sent(*alice, sealed(*alice, *bob, "first"));
  clock.advance(seconds(1));
  sent(*alice, sealed(*alice, *bob, "second"));
  clock.advance(seconds(1));
  sent(*alice, sealed(*alice, *bob, "urgent", {.priority = MessagePriority::urgent}));
  EXPECT_THAT(read_all(*bob), ElementsAre("urgent", "first", "second", "low"));
}

TEST_P(MessagingContract, AnApprovalIsOfTheseVeryBytesAndUsedUp) {
  const Context service = as(*Identity::service("test"));
  ASSERT_TRUE(authz_->create_policy(service, "letters",
                                    fmt::format("@oversight(\"letters\") forbid (principal, action == "
                                                "Action::\"message.send\", resource == Agent::\"{}\");",
                                                bob->identity.text())));
  const auto message = sealed(*alice, *bob, "the very one");
  const auto other = sealed(*alice, *bob, "the very one");
  EXPECT_EQ(kind(messaging->send(as(*alice), message)), "oversight_required");
  const auto arguments = contracts::approval_arguments(message, crypto::sha3_256(message.envelope));
  authz::OverrideGrant grant{RequestId::fresh(clock.now()),
                             alice->identity,
                             "message.send",
                             authz::entity_of(bob->identity),
                             crypto::sha3_256(as_bytes(arguments)),
                             {{"letters", "letters"}},
                             clock.now() + hours(1)};
  const std::string token = authz_->issue_override(service, grant).value();
  EXPECT_FALSE(messaging->send(as(*alice), other, token)) << "the same text, but other bytes";
  EXPECT_FALSE(messaging->send(as(*alice), message, "nonsense"));
  EXPECT_THAT(waiting(*bob), IsEmpty());
  const auto id = messaging->send(as(*alice), message, token);
  ASSERT_TRUE(id) << id.error().to_string();
  EXPECT_EQ(messaging->send(as(*alice), message, token).value(), *id) << "the same again";
  EXPECT_FALSE(messaging->send(as(*alice), other, token));
  EXPECT_THAT(read_all(*bob), ElementsAre("the very one"));
}

TEST_P(MessagingContract, WhoMayAskForAnApprovalLearnsWhomToSealFor) {
  const Context service = as(*Identity::service("test"));
  ASSERT_TRUE(messaging->create_topic(as(*alice), "news"));
  ASSERT_TRUE(messaging->subscribe(as(*bob), "news", std::nullopt));
  ASSERT_TRUE(authz_->create_policy(service, "large",
                                    "forbid (principal, action == Action::\"message.send\", resource) when { "
                                    "context.size > 1000000 };"));
  EXPECT_THAT(messaging->subscribers(as(*carol), "news").value(), ElementsAre(bob->identity));
  ASSERT_TRUE(authz_->create_policy(service, "letters",
                                    "@oversight(\"letters\") forbid (principal, action == "
                                    "Action::\"message.send\", resource);"));
  EXPECT_THAT(messaging->subscribers(as(*carol), "news").value(), ElementsAre(bob->identity));
  ASSERT_TRUE(
      authz_->create_policy(service, "never", "forbid (principal, action == Action::\"message.send\", resource);"));
  EXPECT_EQ(kind(messaging->subscribers(as(*carol), "news")), "delivery_denied");
}

TEST_P(MessagingContract, PolicyDecidesWhoMaySendToWhom) {
  ASSERT_TRUE(
      authz_->create_policy(as(*Identity::service("test")), "not-to-bob",
                            fmt::format("forbid (principal == Agent::\"{}\", action == Action::\"message.send\", "
                                        "resource == Agent::\"{}\");",
                                        alice->identity.text(), bob->identity.text())));
  const auto denied = messaging->send(as(*alice), sealed(*alice, *bob, "no"));
  ASSERT_FALSE(denied);
  EXPECT_EQ(kind(denied), "delivery_denied");
  ASSERT_NE(denied.error().caused_by(), nullptr);
  EXPECT_EQ(denied.error().caused_by()->kind(), ErrorKind::permission_denied);
  EXPECT_THAT(waiting(*bob), IsEmpty());
  sent(*alice, sealed(*alice, *carol, "yes"));
  EXPECT_THAT(read_all(*carol), ElementsAre("yes"));
}

TEST_P(MessagingContract, AQuotaRefusesBeforeAnythingIsQueued) {
  ledger.answer(
      {.allowed = false, .quota_id = "messages-daily", .limit = 3, .used = 3, .reset_at = clock.now() + hours(2)});
  const auto refused = messaging->send(as(*alice), sealed(*alice, *bob, "one too many"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), "MS-429");
  ASSERT_NE(refused.error().caused_by(), nullptr);
  EXPECT_EQ(refused.error().caused_by()->code(), "MT-429");
  EXPECT_TRUE(refused.error().retry_after());
  EXPECT_THAT(waiting(*bob), IsEmpty());
}

TEST_P(MessagingContract, UnknownAndRevokedRecipientsAreRefused) {
  const SealedMessage message = sealed(*alice, *bob, "too late");
  ASSERT_TRUE(nhi_->revoke_agent(as(ada_->identity), bob->identity, "gone"));
  EXPECT_EQ(kind(messaging->send(as(*alice), message)), "recipient_not_found");
  const Identity stranger = Identity::agent(ByteArray<32>{7});
  EXPECT_EQ(kind(alice->endpoint->seal(as(*alice), stranger, {})), "recipient_not_found");
}

TEST_P(MessagingContract, MetersWhatWasSentAndReceived) {
  sent(*alice, sealed(*alice, *bob, "hello", {.priority = MessagePriority::high}));
  read_all(*bob);
  ASSERT_TRUE(bus->wait_until_idle(seconds(20)));
  const auto events = ledger.events();
  ASSERT_THAT(events, SizeIs(2));
  EXPECT_EQ(events[0].event_type, MessageEventType::message_sent);
  EXPECT_EQ(events[0].agent, alice->identity);
  EXPECT_GT(events[0].message_size_bytes, 4000U);
  EXPECT_EQ(events[0].priority, MessagePriority::high);
  EXPECT_EQ(events[1].event_type, MessageEventType::message_received);
  EXPECT_EQ(events[1].agent, bob->identity);
}

TEST_P(MessagingContract, PublishesSignedReceipts) {
  std::promise<std::string> heard;
  ASSERT_TRUE(bus->subscribe("test.receipts", std::string(contracts::DeliveryReceiptEvent::subject),
                             [&](const bus::BusMessage& message) -> Result<> {
                               heard.set_value(message.body);
                               return {};
                             }));
  const MessageId id = sent(*alice, sealed(*alice, *bob, "hello"));
  ASSERT_TRUE(messaging->acknowledge(as(*bob), id, DeliveryState::failed, "cannot be parsed", {}));
  auto future = heard.get_future();
  ASSERT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  const auto event = EventEnvelope::from_json(future.get());
  ASSERT_TRUE(event);
  const auto receipt = contracts::DeliveryReceiptEvent::from_json(event->payload);
  ASSERT_TRUE(receipt);
  EXPECT_EQ(receipt->message, id);
  EXPECT_EQ(receipt->receipt, "failed");
  EXPECT_EQ(receipt->failure_reason, "cannot be parsed");
  ASSERT_TRUE(event->signature);
  EXPECT_TRUE(nhi_->verify(as(*bob), *Identity::service("messaging"), as_bytes(event->signed_bytes().value()),
                           *event->signature, event_signature_context));
  bus->unsubscribe("test.receipts");
}

TEST_P(MessagingContract, ReceiptsOnlyMoveForward) {
  const MessageId id = sent(*alice, sealed(*alice, *bob, "hello"));
  const auto receipt = [&](DeliveryState state) { return kind(messaging->acknowledge(as(*bob), id, state, {}, {})); };
  EXPECT_EQ(receipt(DeliveryState::queued), "invalid_input");
  EXPECT_EQ(receipt(DeliveryState::read), "ok");
  EXPECT_EQ(receipt(DeliveryState::delivered), "ok") << "and changes nothing";
  EXPECT_EQ(receipt(DeliveryState::failed), "ok");
  EXPECT_EQ(messaging->status(as(*bob), id)->deliveries[0].state, DeliveryState::read);
  EXPECT_EQ(kind(messaging->acknowledge(as(*bob), id, DeliveryState::read, std::string(2000, 'x'), {})),
            "invalid_input");
  const MessageId failed = sent(*alice, sealed(*alice, *bob, "bad"));
  EXPECT_EQ(kind(messaging->acknowledge(as(*bob), failed, DeliveryState::failed, "no", {})), "ok");
  EXPECT_EQ(kind(messaging->acknowledge(as(*bob), failed, DeliveryState::read, {}, {})), "conflict");
}

TEST_P(MessagingContract, TopicsFanOutToTheirSubscribers) {
  ASSERT_TRUE(messaging->create_topic(as(*alice), "invoices.paid"));
  EXPECT_EQ(kind(messaging->create_topic(as(*alice), "invoices.paid")), "ok");
  EXPECT_EQ(kind(messaging->create_topic(as(*bob), "invoices.paid")), "already_exists");
  EXPECT_EQ(kind(messaging->create_topic(as(*bob), "Not a Topic")), "invalid_input");
  EXPECT_EQ(kind(messaging->subscribe(as(*bob), "nowhere", {})), "topic_not_found");
  const auto subscription = messaging->subscribe(as(*bob), "invoices.paid", {});
  ASSERT_TRUE(subscription);
  EXPECT_EQ(messaging->subscribe(as(*bob), "invoices.paid", {})->id, subscription->id);
  ASSERT_TRUE(messaging->subscribe(as(*carol), "invoices.paid", {}));
  const auto subscribers = messaging->subscribers(as(*alice), "invoices.paid");
  ASSERT_TRUE(subscribers);
  EXPECT_THAT(*subscribers, UnorderedElementsAre(bob->identity, carol->identity));
  const std::string text = "number 7";
  const auto message =
      alice->endpoint->seal_for_topic(as(*alice), "invoices.paid", *subscribers, {.body = as_bytes(text)});
  ASSERT_TRUE(message) << message.error().to_string();
  const MessageId id = sent(*alice, *message);
  EXPECT_THAT(read_all(*bob), ElementsAre("number 7"));
  EXPECT_THAT(read_all(*carol), ElementsAre("number 7"));
  EXPECT_THAT(messaging->status(as(*alice), id)->deliveries, SizeIs(2));
  EXPECT_THAT(messaging->status(as(*bob), id)->deliveries, SizeIs(1)) << "not who else is there";
  EXPECT_EQ(kind(messaging->unsubscribe(as(*carol), subscription->id)), "permission_denied");
  ASSERT_TRUE(messaging->unsubscribe(as(*alice), subscription->id)) << "the owner may";
  EXPECT_THAT(*messaging->subscribers(as(*alice), "invoices.paid"), ElementsAre(carol->identity));
}

TEST_P(MessagingContract, APolicyKnowsWhoOwnsATopic) {
  const auto topics = topic_entities(*db);
  ASSERT_TRUE(authz_->register_source(*topics));
  const Context system = as(*Identity::service("test"));
  ASSERT_TRUE(authz_->create_policy(system, "own", R"(
      forbid(principal, action == Action::"message.subscribe", resource is Topic)
        unless { resource.owner == principal || resource in Group::"open" };)"));
  ASSERT_TRUE(messaging->create_topic(as(*alice), "news"));
  EXPECT_EQ(kind(messaging->subscribe(as(*alice), "news", {})), "ok");
  EXPECT_EQ(kind(messaging->subscribe(as(*bob), "news", {})), "delivery_denied");
  EXPECT_EQ(kind(messaging->subscribe(as(*alice), "nowhere", {})), "delivery_denied") << "nobody owns it";
  ASSERT_TRUE(authz_->put_entities(system, {{{"Topic", "news"}, {}, {}, {{"Group", "open"}}}}, false));
  EXPECT_EQ(kind(messaging->subscribe(as(*bob), "news", {})), "ok") << "what is stored of it counts too";
}

TEST_P(MessagingContract, ATopicMessageMustBeSealedForEverySubscriber) {
  ASSERT_TRUE(messaging->create_topic(as(*alice), "news"));
  ASSERT_TRUE(messaging->subscribe(as(*bob), "news", {}));
  const std::string text = "news";
  const auto message = alice->endpoint->seal_for_topic(as(*alice), "news", {bob->identity}, {.body = as_bytes(text)});
  ASSERT_TRUE(message);
  ASSERT_TRUE(messaging->subscribe(as(*carol), "news", {}));
  const auto refused = messaging->send(as(*alice), *message);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::conflict);
  EXPECT_TRUE(refused.error().retryable());
}

TEST_P(MessagingContract, ASandboxTakesItsSubscriptionsAlong) {
  const SandboxId sandbox = SandboxId::fresh(clock.now());
  const SandboxId other = SandboxId::fresh(clock.now());
  ASSERT_TRUE(messaging->create_topic(as(*alice), "news"));
  ASSERT_TRUE(messaging->subscribe_sandbox(as(*bob), sandbox, "news"));
  const std::string text = "news";
  const auto message = alice->endpoint->seal_for_topic(as(*alice), "news", {bob->identity}, {.body = as_bytes(text)});
  const MessageId id = sent(*alice, *message);
  EXPECT_THAT(waiting(*bob), IsEmpty()) << "it is the sandbox's";
  EXPECT_THAT(waiting(*bob, other), IsEmpty());
  EXPECT_THAT(messaging->receive_for_sandbox(as(*bob), sandbox, 10)->size(), 1U);
  // The event that runtime publishes, as it comes over the bus.
  const contracts::SandboxLifecycleEvent gone{.sandbox = sandbox, .change = "terminated", .detail = "completed"};
  EventEnvelope event{.event_type = std::string(contracts::SandboxLifecycleEvent::event_type),
                      .event_id = EventId::fresh(clock.now()),
                      .agent = bob->identity,
                      .delegation_chain = {bob->identity},
                      .timestamp = timestamps_->now(),
                      .payload = gone.to_json().value(),
                      .signature = {}};
  const auto publish = [&](const std::string& id) {
    const std::string body = event.to_json().value();
    ASSERT_TRUE(db->transaction({}, [&](sql::Tx& tx) {
      return bus::publish(tx, as(*bob), contracts::SandboxLifecycleEvent::subject, id, body);
    }));
    ASSERT_TRUE(bus->wait_until_idle(seconds(20)));
  };
  const auto sign_as = [&](std::string_view name) {
    const Identity signer = *Identity::service(name);
    ASSERT_TRUE(nhi_->ensure_service(as(signer), signer));
    event.signature =
        nhi_->sign(as(signer), signer, as_bytes(event.signed_bytes().value()), event_signature_context).value();
  };
  publish("unsigned");
  sign_as("somebody");
  publish("of somebody else");
  EXPECT_THAT(*messaging->subscribers(as(*alice), "news"), SizeIs(1)) << "only the runtime may say so";
  sign_as("runtime");
  publish("of the runtime");
  EXPECT_THAT(*messaging->subscribers(as(*alice), "news"), IsEmpty());
  const auto status = messaging->status(as(*alice), id);
  ASSERT_TRUE(status);
  ASSERT_THAT(status->deliveries, SizeIs(1));
  EXPECT_EQ(status->deliveries[0].state, DeliveryState::failed);
  EXPECT_THAT(messaging->receive_for_sandbox(as(*bob), sandbox, 10).value(), IsEmpty());
}

TEST_P(MessagingContract, EveryChangeIsAudited) {
  const std::int64_t before = count("SELECT COUNT(*) FROM audit_pending");
  const MessageId id = sent(*alice, sealed(*alice, *bob, "hello"));
  EXPECT_EQ(count("SELECT COUNT(*) FROM audit_pending"), before + 1);
  ASSERT_TRUE(messaging->acknowledge(as(*bob), id, DeliveryState::delivered, {}, {}));
  EXPECT_EQ(count("SELECT COUNT(*) FROM audit_pending"), before + 2);
  EXPECT_FALSE(messaging->send(as(*carol), sealed(*alice, *bob, "stolen")));
  EXPECT_EQ(count("SELECT COUNT(*) FROM audit_pending"), before + 3);
}

TEST_P(MessagingContract, ChecksItsArguments) {
  EXPECT_EQ(kind(messaging->receive(as(*bob), {.messages_max = 0})), "invalid_input");
  EXPECT_EQ(kind(messaging->receive(as(*bob), {.messages_max = 1001})), "invalid_input");
  EXPECT_EQ(kind(messaging->receive(as(*bob), {.wait = hours(1)})), "invalid_input");
  EXPECT_EQ(kind(messaging->receive(as(*bob), {.wait = Nanos(-1)})), "invalid_input");
  EXPECT_EQ(kind(messaging->create_topic(as(*bob), std::string(129, 'a'))), "invalid_input");
  EXPECT_EQ(kind(messaging->create_topic(as(*bob), "\xff\xfe")), "invalid_input");
  SealedMessage nonsense = sealed(*alice, *bob, "x");
  nonsense.envelope = to_bytes("nonsense");
  EXPECT_EQ(kind(messaging->send(as(*alice), nonsense)), "invalid_input");
}

TEST_P(MessagingContract, ReceivingMayWaitForTheFirstMessage) {
  // More at once than a server has threads.
  std::vector<std::future<std::size_t>> waiters;
  for (int i = 0; i < 12; ++i) {
    waiters.push_back(std::async(std::launch::async,
                                 [&] { return messaging->receive(as(*bob), {.wait = seconds(20)}).value().size(); }));
  }
  const auto began = std::chrono::steady_clock::now();
  sent(*alice, sealed(*alice, *bob, "at last"));
  for (auto& waiter : waiters) EXPECT_EQ(waiter.get(), 1U);
  EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(15));
}

INSTANTIATE_TEST_SUITE_P(Everywhere, MessagingContract, everywhere(), database_name);

}  // namespace
}  // namespace creto::messaging
