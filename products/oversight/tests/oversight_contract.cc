// What every Oversight keeps, whether it runs here or at the other end of a connection: with real identities, keys,
// policies, bus and webhook.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "creto/authz/authz.h"
#include "creto/common/event.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/events.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "creto/io/http_server.h"
#include "creto/memory/memory.h"
#include "creto/nhi/nhi.h"
#include "creto/oversight/oversight_entities.h"
#include "creto/oversight/oversight_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/human.h"
#include "creto/testing/result.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"

namespace creto::oversight {
namespace {

using namespace std::chrono_literals;
using contracts::ApprovalState;
using contracts::ApprovalStatus;
using creto::testing::Human;
using creto::testing::kind;
using creto::testing::Where;
using creto::testing::Wire;

/// Takes webhook calls; the first `failures` are answered with 503.
class WebhookReceiver {
 public:
  WebhookReceiver() {
    server_ = http::Server::start(
                  {.port = 0}, [this](const http::Request& request) { return take(request); }, no_telemetry())
                  .value();
  }
  std::string url() const { return fmt::format("http://127.0.0.1:{}/hook", server_->port()); }
  std::vector<http::Request> wait_for(std::size_t count, Nanos timeout = 20s) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, timeout, [&] { return requests_.size() >= count; });
    return requests_;
  }
  int failures = 0, failure = 503;

 private:
  http::Response take(const http::Request& request) {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    arrived_.notify_all();
    return http::Response::text(failures-- > 0 ? failure : 204, "");
  }
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<http::Request> requests_;
  std::unique_ptr<http::Server> server_;
};

class Everyone final : public AccessControl {
 public:
  Result<> require(const Context&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

class OversightContract : public ::testing::TestWithParam<Where> {
 protected:
  OversightContract() {
    start();
    ada.emplace(*nhi, "ada@example.com");
    cfo.emplace(*nhi, "cfo@example.com");
    ceo.emplace(*nhi, "ceo@example.com");
    agent = nhi->register_agent(system, {.name = "payer", .owner = ada->identity}).value().identity;
    other_agent = nhi->register_agent(system, {.name = "other", .owner = ada->identity}).value().identity;
  }
  ~OversightContract() override { stop(); }

  void start() {
    db = database_.open();
    ceiling_ = consensus::create_ceiling_store(*db, "test").value();
    timestamps_ =
        consensus::create_timestamp_source(*ceiling_, clock, no_telemetry(), {.renew_in_background = false}).value();
    bus_ = bus::create_embedded_bus(*db, clock, no_telemetry(), {.poll_interval = 20ms}).value();
    nhi = nhi::create_nhi(*db, sealer_, clock).value();
    authz = authz::create_authz(*db, clock, no_telemetry(), {}, Secret(Bytes(32, 7))).value();
    memory = memory::create_memory(*db, *embedder_, everyone_, clock, no_telemetry()).value();
    notifier_ = create_webhook_notifier(receiver.url(), Secret(Bytes(32, 9)), clock);
    service = create_oversight({.database = *db,
                                .bus = *bus_,
                                .nhi = *nhi,
                                .authz = *authz,
                                .timestamps = *timestamps_,
                                .clock = clock,
                                .telemetry = no_telemetry(),
                                .memory = memory.get(),
                                .webhook = notifier_.get()},
                               {.schedule = false})
                  .value();
    oversight = service.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock);
    register_oversight(wire_->dispatcher(), *service);
    client_ = create_oversight_client(wire_->connect(), clock);
    oversight = client_.get();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    service.reset();
    memory.reset();
    bus_.reset();
    authz.reset();
    nhi.reset();
    timestamps_.reset();
    ceiling_.reset();
    db.reset();
  }

  Context as(const Identity& who) const { return Context::of(who, {who}); }

  void add_policy(std::uint32_t quorum = 1, FinalAction final_action = FinalAction::auto_deny,
                  std::vector<std::string> channels = {"cli"}) {
    auto done = oversight->put_policy(
        as(ada->identity), {.id = "large-payments",
                            .description = "over 10 000",
                            .triggers = {Trigger::authorization, Trigger::quota_breach, Trigger::cost_threshold},
                            .tiers = {{.approvers = {cfo->identity, ada->identity}, .quorum = quorum, .timeout = 10min},
                                      {.approvers = {ceo->identity}, .quorum = 1, .timeout = 1h}},
                            .final_action = final_action,
                            .allow_self_approval = false,
                            .channels = std::move(channels)});
    ASSERT_TRUE(done) << done.error().to_string();
  }
  contracts::ApprovalRequest payment(const std::string& amount) const {
    return {.action = {*agent,
                       {ada->identity, *agent},
                       std::nullopt,
                       "payments.pay",
                       "Ledger",
                       "main",
                       fmt::format(R"({{"amount":"{}","payee":"Swift Courier"}})", amount)},
            .needs = {{.policy = "large-payments", .forbid = "large"}},
            .description = "pay " + amount,
            .reasoning = "the invoice is due",
            .risk_factors = {"large amount"}};
  }
  ApprovalStatus ask(const contracts::ApprovalRequest& request) {
    auto status = oversight->request_approval(system, request);
    EXPECT_TRUE(status) << status.error().to_string();
    return status.value();
  }
  ResponseDocument document(const RequestId& id, const Human& who, bool approve) {
    const Request request = oversight->get(system, id).value();
    return {.request = id,
            .approver = who.identity,
            .approve = approve,
            .arguments_hash = request.arguments_hash(),
            .notes = approve ? "checked" : "not this one",
            .response = "{}"};
  }
  Result<Request> send(const ResponseDocument& document, const crypto::SigningKey& key, const Identity& caller) {
    const std::string bytes = document.signed_bytes().value();
    const Signature signature = key.sign(as_bytes(bytes), as_bytes(ResponseDocument::type_name)).value();
    return oversight->respond(as(caller), bytes, signature);
  }
  Result<Request> respond(const RequestId& id, const Human& who, bool approve) {
    return send(document(id, who, approve), who.key, who.identity);
  }
  /// How often `what` stands in the audit records of `id`.
  std::int64_t audited(const RequestId& id, const std::string& what) {
    return sql::read(*db, system,
                     [&](sql::Tx& tx) -> Result<std::int64_t> {
                       const auto rows = CRETO_TRY(tx.query(fmt::format(
                           "SELECT count(*) FROM audit_pending WHERE entry LIKE '%oversight:request:{}%' AND entry "
                           "LIKE '%\"what\":\"{}\"%'",
                           id.to_string(), what)));
                       return rows.front().integer(0);
                     })
        .value();
  }
  ApprovalState state_of(const RequestId& id) { return oversight->get(system, id).value().state; }

  creto::testing::FakeClock clock;
  WebhookReceiver receiver;
  const Context system = Context::of_service(Identity::service("test").value());
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<nhi::Nhi> nhi;
  std::unique_ptr<authz::Authz> authz;
  std::unique_ptr<memory::Memory> memory;
  std::unique_ptr<Oversight> service;
  Oversight* oversight = nullptr;
  std::optional<Human> ada, cfo, ceo;
  std::optional<Identity> agent, other_agent;
  std::unique_ptr<bus::Bus> bus_;

 private:
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  creto::testing::TestSealer sealer_;
  Everyone everyone_;
  std::unique_ptr<memory::Embedder> embedder_ = memory::create_hash_embedder();
  std::unique_ptr<consensus::CeilingStore> ceiling_;
  std::unique_ptr<consensus::TimestampSource> timestamps_;
  std::unique_ptr<Notifier> notifier_;
  std::optional<Wire> wire_;
  std::unique_ptr<Oversight> client_;
};

INSTANTIATE_TEST_SUITE_P(, OversightContract, everywhere(), database_name);

TEST_P(OversightContract, AnApprovalLetsExactlyThisActionThroughOnce) {
  ASSERT_TRUE(authz->create_policy(system, "pay", "permit(principal, action, resource);"));
  ASSERT_TRUE(
      authz->create_policy(system, "large", "@oversight(\"large-payments\") forbid(principal, action, resource);"));
  add_policy();
  const auto asked = payment("25000.00");
  const ApprovalStatus pending = ask(asked);
  EXPECT_EQ(pending.state, ApprovalState::pending);
  EXPECT_EQ(pending.override_token, "");
  const auto approved = respond(pending.request, *cfo, true);
  ASSERT_TRUE(approved) << approved.error().to_string();
  EXPECT_EQ(approved->state, ApprovalState::approved);

  const ApprovalStatus status = oversight->approval_status(as(*agent), pending.request).value();
  EXPECT_EQ(status.approver, cfo->identity);
  EXPECT_EQ(status.notes, "checked");
  ASSERT_NE(status.override_token, "");
  authz::CheckRequest check{.principal = *agent,
                            .chain = {ada->identity, *agent},
                            .action = "payments.pay",
                            .resource = {"Ledger", "main"},
                            .context = {},
                            .arguments_hash = crypto::sha3_256(as_bytes(asked.action.arguments)),
                            .override_token = status.override_token};
  EXPECT_TRUE(authz::allowed(authz->check(system, check)));
  const auto use = [&](std::string_view operation) {
    return db->transaction(system, [&](sql::Tx& tx) { return authz->consume_override(tx, system, check, operation); });
  };
  EXPECT_TRUE(use("op-1"));
  EXPECT_FALSE(use("op-2"));
  check.arguments_hash = crypto::sha3_256(as_bytes(payment("25000.01").action.arguments));
  EXPECT_FALSE(authz::allowed(authz->check(system, check)));
}

TEST_P(OversightContract, APolicyKnowsWhoseRequestItIsAndWhoIsAsked) {
  const auto requests = request_entities(*db);
  ASSERT_TRUE(authz->register_source(*requests));
  ASSERT_TRUE(authz->create_policy(system, "see", R"(
      permit(principal, action == Action::"oversight.get_request", resource is OversightRequest)
        when { resource.owner == principal || resource.approvers.contains(principal) && resource.state == "pending"
               && resource.target == Ledger::"main" };)"));
  add_policy();
  const RequestId id = ask(payment("25000")).request;
  const auto may = [&](const Identity& who, const std::string& request) {
    return authz::allowed(authz->check(system, {.principal = who,
                                                .chain = {},
                                                .action = "oversight.get_request",
                                                .resource = {"OversightRequest", request},
                                                .context = {},
                                                .arguments_hash = {},
                                                .override_token = {}}));
  };
  EXPECT_TRUE(may(*agent, id.to_string()));
  EXPECT_TRUE(may(cfo->identity, id.to_string()));
  EXPECT_FALSE(may(ceo->identity, id.to_string())) << "not yet asked";
  EXPECT_FALSE(may(*other_agent, id.to_string()));
  EXPECT_FALSE(may(*agent, "no id"));
  ASSERT_TRUE(respond(id, *cfo, true));
  EXPECT_FALSE(may(cfo->identity, id.to_string())) << "nobody is asked any more";
}

TEST_P(OversightContract, AskingAgainFindsWhatIsOpenOrStillUsable) {
  add_policy();
  const ApprovalStatus first = ask(payment("25000.00"));
  EXPECT_EQ(ask(payment("25000.00")).request, first.request);
  EXPECT_NE(ask(payment("25000.01")).request, first.request) << "other arguments are another request";
  ASSERT_TRUE(respond(first.request, *cfo, true));
  const ApprovalStatus again = ask(payment("25000.00"));
  EXPECT_EQ(again.request, first.request);
  EXPECT_NE(again.override_token, "");
  clock.advance(2h);
  EXPECT_NE(ask(payment("25000.00")).request, first.request) << "an approval that ended answers nothing";
}

TEST_P(OversightContract, ATimeoutIsToldApartFromADenial) {
  add_policy();
  const ApprovalStatus denied = ask(payment("1.00"));
  const ApprovalStatus late = ask(payment("2.00"));
  ASSERT_TRUE(respond(denied.request, *cfo, false));
  EXPECT_EQ(oversight->approval_status(as(*agent), denied.request)->state, ApprovalState::denied);
  EXPECT_EQ(oversight->approval_status(as(*agent), denied.request)->notes, "not this one");
  clock.advance(10min);
  ASSERT_TRUE(service->apply_timeouts());
  EXPECT_EQ(state_of(late.request), ApprovalState::escalated);
  EXPECT_EQ(respond(late.request, *cfo, true).error().kind(), ErrorKind::permission_denied) << "the first tier is over";
  clock.advance(1h);
  ASSERT_TRUE(service->apply_timeouts());
  const ApprovalStatus status = oversight->approval_status(as(*agent), late.request).value();
  EXPECT_EQ(status.state, ApprovalState::timed_out);
  EXPECT_FALSE(status.approver.has_value());
  EXPECT_EQ(status.override_token, "");
  EXPECT_EQ(respond(late.request, *ceo, true).error().kind(), ErrorKind::conflict) << "what ended stays as it is";
}

TEST_P(OversightContract, ARestartLosesNeitherRequestsNorTheirTime) {
  add_policy();
  const ApprovalStatus pending = ask(payment("1.00"));
  stop();
  clock.advance(2h);
  start();
  EXPECT_EQ(state_of(pending.request), ApprovalState::pending);
  ASSERT_TRUE(service->apply_timeouts());
  EXPECT_EQ(state_of(pending.request), ApprovalState::timed_out);
}

TEST_P(OversightContract, CountsOnlySignaturesOfThoseItAsks) {
  add_policy(2);
  const ApprovalStatus pending = ask(payment("1.00"));
  auto good = document(pending.request, *cfo, true);
  EXPECT_EQ(kind(send(good, ceo->key, cfo->identity)), "signature_invalid") << "another's key";
  const std::string bytes = good.signed_bytes().value();
  Signature signature = cfo->key.sign(as_bytes(bytes), as_bytes(ResponseDocument::type_name)).value();
  for (const std::size_t at : {std::size_t{0}, signature.value.size() - 1}) {
    Signature forged = signature;
    forged.value[at] ^= 1;
    EXPECT_EQ(kind(oversight->respond(as(cfo->identity), bytes, forged)), "signature_invalid") << "both halves count";
  }
  std::string changed = bytes;
  changed.replace(changed.find("checked"), 7, "Checked");
  EXPECT_EQ(kind(oversight->respond(as(cfo->identity), changed, signature)), "signature_invalid");
  EXPECT_FALSE(oversight->respond(as(cfo->identity), "nonsense", signature));
  EXPECT_FALSE(oversight->respond(as(cfo->identity), std::string(1 << 20, 'x'), signature));
  signature.algorithm = "ed25519";
  EXPECT_FALSE(oversight->respond(as(cfo->identity), bytes, signature)) << "half a signature is none";
  good.arguments_hash[0] ^= 1;
  EXPECT_EQ(kind(send(good, cfo->key, cfo->identity)), "conflict") << "he signed other arguments";

  auto not_asked = respond(pending.request, *ceo, true);
  ASSERT_FALSE(not_asked);
  EXPECT_EQ(not_asked.error().code(), "OV-403");
  EXPECT_EQ(kind(respond(pending.request, *ada, true)), "permission_denied") << "the agent acts for her";

  ASSERT_TRUE(respond(pending.request, *cfo, true));
  EXPECT_EQ(state_of(pending.request), ApprovalState::pending) << "one of two";
  EXPECT_TRUE(respond(pending.request, *cfo, true)) << "the same answer again changes nothing";
  EXPECT_EQ(oversight->get(system, pending.request)->responses.size(), 1u);
  EXPECT_EQ(kind(respond(pending.request, *cfo, false)), "conflict");
}

TEST_P(OversightContract, AnAnswerIsForOneRequestAlone) {
  add_policy();
  const ApprovalStatus first = ask(payment("1.00"));
  auto answer = document(first.request, *cfo, true);
  ASSERT_TRUE(send(answer, cfo->key, cfo->identity));
  clock.advance(3h);
  const ApprovalStatus second = ask(payment("1.00"));
  ASSERT_NE(second.request, first.request);
  EXPECT_TRUE(send(answer, cfo->key, cfo->identity)) << "the old request is as it was";
  EXPECT_EQ(state_of(second.request), ApprovalState::pending);
}

TEST_P(OversightContract, OthersNeitherAskNorLookNorCancel) {
  add_policy();
  const auto asked = payment("1.00");
  EXPECT_EQ(oversight->request_approval(as(*other_agent), asked).error().kind(), ErrorKind::permission_denied);
  const ApprovalStatus pending = ask(asked);
  EXPECT_EQ(oversight->approval_status(as(*other_agent), pending.request).error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(oversight->cancel_approval(as(*other_agent), pending.request).error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(state_of(pending.request), ApprovalState::pending);
  ASSERT_TRUE(oversight->cancel_approval(as(*agent), pending.request));
  EXPECT_EQ(state_of(pending.request), ApprovalState::cancelled);
  EXPECT_TRUE(oversight->cancel_approval(as(*agent), pending.request));
}

TEST_P(OversightContract, RefusesWhatItCannotShowOrAsk) {
  auto asked = payment("1.00");
  EXPECT_EQ(oversight->request_approval(system, asked).error().kind(), ErrorKind::not_found) << "no such policy";
  add_policy();
  asked.needs.front().approvers = {"human:nobody@example.com"};
  EXPECT_FALSE(oversight->request_approval(system, asked));
  asked = payment("1.00");
  asked.reasoning = std::string(10 << 20, 'x');
  EXPECT_FALSE(oversight->request_approval(system, asked));
  EXPECT_EQ(oversight->get(system, RequestId::fresh(clock.now())).error().kind(), ErrorKind::not_found);
  EXPECT_TRUE(oversight->list(system, {})->empty()) << "nothing was stored";
}

TEST_P(OversightContract, WhoWaitsIsToldOnce) {
  add_policy();
  const ApprovalStatus pending = ask(payment("1.00"));
  std::mutex mutex;
  std::condition_variable told;
  std::vector<ApprovalStatus> seen;
  const auto note = [&](const ApprovalStatus& status) {
    const std::lock_guard lock(mutex);
    seen.push_back(status);
    told.notify_all();
  };
  auto waiting = oversight->when_final(as(*agent), pending.request, note).value();
  int dropped_calls = 0;
  {
    auto dropped = oversight->when_final(as(*agent), pending.request, [&](const auto&) { ++dropped_calls; }).value();
  }
  ASSERT_TRUE(respond(pending.request, *cfo, true));
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(told.wait_for(lock, 20s, [&] { return !seen.empty(); }));
  }
  EXPECT_EQ(seen[0].state, ApprovalState::approved);
  EXPECT_NE(seen[0].override_token, "");
  auto late = oversight->when_final(as(*agent), pending.request, note).value();
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(told.wait_for(lock, 20s, [&] { return seen.size() == 2; })) << "at once where it is final already";
  }
  EXPECT_EQ(dropped_calls, 0);
}

TEST_P(OversightContract, WebhooksAreSignedAndRepeatedUntilTaken) {
  receiver.failures = 11;
  add_policy(1, FinalAction::auto_deny, {"webhook"});
  const ApprovalStatus pending = ask(payment("1.00"));
  auto calls = receiver.wait_for(1);
  // Past the bus' pauses before it repeats, each of which begins when the bus has noted the failure.
  for (int i = 0; i < 100 && calls.size() < 12; ++i) {
    clock.advance(30s);
    calls = receiver.wait_for(calls.size() + 1, 200ms);
  }
  ASSERT_GE(calls.size(), 12u) << "it is told however long that takes";
  // The eleven that failed and the one that did not; then it is the next approver's turn.
  EXPECT_EQ(calls[0].header("webhook-id"), calls[11].header("webhook-id")) << "a repetition keeps its id";
  for (const http::Request& call : calls) {
    const std::string content =
        fmt::format("{}.{}.{}", call.header("webhook-id"), call.header("webhook-timestamp"), call.body);
    EXPECT_EQ(call.header("webhook-signature"), "v1," + base64(crypto::hmac_sha256(Bytes(32, 9), as_bytes(content))));
    EXPECT_NE(call.body.find(pending.request.to_string()), std::string::npos);
  }
}

TEST_P(OversightContract, WhomAChannelRefusesToTellIsListed) {
  receiver.failures = 1;
  receiver.failure = 422;
  add_policy(1, FinalAction::auto_deny, {"webhook"});
  const ApprovalStatus pending = ask(payment("1.00"));
  ASSERT_TRUE(bus_->wait_until_idle(20s));
  EXPECT_EQ(receiver.wait_for(2).size(), 2u) << "the other approver is told all the same";
  const auto lost = oversight->lost_notifications(system, 10).value();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].request, pending.request);
  EXPECT_EQ(lost[0].channel, "webhook");
  EXPECT_NE(lost[0].error.find("422"), std::string::npos);
  EXPECT_FALSE(oversight->lost_notifications(system, 0));
}

TEST_P(OversightContract, EveryTierIsToldAndRecorded) {
  const std::vector<std::string> channels = {"webhook"};
  ASSERT_TRUE(oversight->put_policy(as(ada->identity), {.id = "large-payments",
                                                        .description = {},
                                                        .tiers = {{.approvers = {cfo->identity}, .timeout = 10min},
                                                                  {.approvers = {ceo->identity}, .timeout = 10min},
                                                                  {.approvers = {ada->identity}, .timeout = 10min}},
                                                        .channels = channels}));
  const ApprovalStatus pending = ask(payment("1.00"));
  for (int tier = 2; tier <= 3; ++tier) {
    clock.advance(10min);
    ASSERT_TRUE(service->apply_timeouts());
    EXPECT_EQ(state_of(pending.request), ApprovalState::escalated);
  }
  ASSERT_TRUE(bus_->wait_until_idle(20s));
  const auto calls = receiver.wait_for(3);
  ASSERT_EQ(calls.size(), 3u);
  EXPECT_NE(calls[0].body.find(cfo->identity.text()), std::string::npos);
  EXPECT_NE(calls[1].body.find(ceo->identity.text()), std::string::npos);
  EXPECT_NE(calls[2].body.find(ada->identity.text()), std::string::npos);
  EXPECT_EQ(audited(pending.request, "escalated"), 2);
  EXPECT_EQ(audited(pending.request, "response_received"), 0);
}

TEST_P(OversightContract, AnAnswerThatComesAfterItsTierIsRefusedAndTheTimePassesAllTheSame) {
  add_policy();
  const ApprovalStatus pending = ask(payment("1.00"));
  clock.advance(10min);
  EXPECT_EQ(respond(pending.request, *cfo, true).error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(state_of(pending.request), ApprovalState::escalated);
  EXPECT_EQ(audited(pending.request, "escalated"), 1);
}

TEST_P(OversightContract, WhoMayNotActAnyMoreApprovesNothing) {
  add_policy();
  const ApprovalStatus pending = ask(payment("1.00"));
  const auto signed_before = document(pending.request, *cfo, true);
  ASSERT_TRUE(nhi->update_agent(system, cfo->identity, {.status = nhi::AgentStatus::suspended}));
  EXPECT_EQ(kind(send(signed_before, cfo->key, ada->identity)), "permission_denied") << "whoever carries it";
  ASSERT_TRUE(nhi->update_agent(system, cfo->identity, {.status = nhi::AgentStatus::active}));
  ASSERT_TRUE(nhi->revoke_agent(system, cfo->identity, "left"));
  EXPECT_EQ(kind(send(signed_before, cfo->key, ada->identity)), "permission_denied");
  EXPECT_EQ(state_of(pending.request), ApprovalState::pending);
}

TEST_P(OversightContract, EachForbidIsNarrowedByItsOwnApproversAndTimeAlone) {
  // The agent's owner is ada, who may not approve for herself; so the policies name others.
  Human cto(*nhi, "cto@example.com");
  for (const char* id : {"money", "change"})
    ASSERT_TRUE(oversight->put_policy(
        as(ada->identity),
        {.id = id, .description = {}, .tiers = {{.approvers = {cfo->identity, cto.identity}, .timeout = 1h}}}));
  ASSERT_TRUE(authz->create_policy(system, "pay", "permit(principal, action, resource);"));
  ASSERT_TRUE(
      authz->create_policy(system, "a",
                           fmt::format(R"(@oversight("money") @approvers("{}") forbid(principal, action, resource);)",
                                       cfo->identity.text())));
  ASSERT_TRUE(
      authz->create_policy(system, "b",
                           fmt::format(R"(@oversight("change") @approvers("{}") @timeout("5m") forbid(principal, action,
      resource);)",
                                       cto.identity.text())));
  ASSERT_TRUE(authz->create_policy(system, "c", R"(@oversight("change") forbid(principal, action, resource);)"));

  auto asked = payment("1.00");
  const auto check = oversight->check_approval_required(system, asked.action).value();
  asked.needs = std::get<contracts::ApprovalRequired>(check).needs;
  ASSERT_EQ(asked.needs.size(), 3u);
  const ApprovalStatus pending = ask(asked);
  const Request request = oversight->get(system, pending.request).value();
  ASSERT_EQ(request.requirements.size(), 3u);
  const auto of = [&](const std::string& forbid) {
    return *std::ranges::find(request.requirements, forbid, &Requirement::forbid);
  };
  EXPECT_EQ(of("a").policy.tiers[0].approvers, std::vector{cfo->identity});
  EXPECT_EQ(of("b").policy.tiers[0].approvers, std::vector{cto.identity});
  EXPECT_EQ(of("c").policy.tiers[0].approvers, (std::vector{cfo->identity, cto.identity}));
  EXPECT_EQ(of("a").policy.tiers[0].timeout, 1h);
  EXPECT_EQ(of("b").policy.tiers[0].timeout, 5min);
  EXPECT_EQ(of("c").policy.tiers[0].timeout, 1h);

  ASSERT_TRUE(respond(pending.request, cto, true));
  EXPECT_EQ(state_of(pending.request), ApprovalState::pending) << "only the CFO meets the first";
  ASSERT_TRUE(respond(pending.request, *cfo, true));
  EXPECT_EQ(state_of(pending.request), ApprovalState::approved);
}

TEST_P(OversightContract, ARoleIsWhoHasItWhenTheRequestIsMade) {
  add_policy();
  ASSERT_TRUE(authz->create_policy(system, "pay", "permit(principal, action, resource);"));
  ASSERT_TRUE(authz->create_policy(
      system, "large", R"(@oversight("large-payments") @approvers("role:cfo") forbid(principal, action, resource);)"));
  auto asked = payment("25000.00");
  const auto check = oversight->check_approval_required(system, asked.action).value();
  asked.needs = std::get<contracts::ApprovalRequired>(check).needs;

  const auto nobody = oversight->request_approval(as(*agent), asked);
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().kind(), ErrorKind::invalid_input);
  EXPECT_NE(nobody.error().message().find("no active human has the role `cfo`"), std::string::npos);
  ASSERT_TRUE(nhi->set_roles(system, cfo->identity, {"cfo"}));
  ASSERT_TRUE(nhi->set_roles(system, ceo->identity, {"cfo-deputy"}));
  ASSERT_TRUE(nhi->update_agent(system, cfo->identity, {.status = nhi::AgentStatus::suspended}));
  EXPECT_FALSE(oversight->request_approval(as(*agent), asked)) << "who may not act has no role";
  ASSERT_TRUE(nhi->update_agent(system, cfo->identity, {.status = nhi::AgentStatus::active}));

  const ApprovalStatus pending = ask(asked);
  const Request request = oversight->get(system, pending.request).value();
  ASSERT_EQ(request.requirements[0].policy.tiers.size(), 1u) << "the chief executive is no `cfo`";
  EXPECT_EQ(request.requirements[0].policy.tiers[0].approvers, std::vector{cfo->identity});
  ASSERT_TRUE(respond(pending.request, *cfo, true));
  const ApprovalStatus status = oversight->approval_status(as(*agent), pending.request).value();
  EXPECT_EQ(status.state, ApprovalState::approved);
  const authz::CheckRequest lifted{.principal = *agent,
                                   .chain = {ada->identity, *agent},
                                   .action = "payments.pay",
                                   .resource = {"Ledger", "main"},
                                   .context = {},
                                   .arguments_hash = crypto::sha3_256(as_bytes(asked.action.arguments)),
                                   .override_token = status.override_token};
  EXPECT_TRUE(authz::allowed(authz->check(system, lifted)));
}

TEST_P(OversightContract, AnAgentThatAsksByItselfDoesNotChooseWhoApproves) {
  add_policy();
  Human friendly(*nhi, "friend@example.com");
  ASSERT_TRUE(oversight->put_policy(
      as(ada->identity),
      {.id = "lenient", .description = {}, .tiers = {{.approvers = {friendly.identity}, .timeout = 1h}}}));
  ASSERT_TRUE(authz->create_policy(system, "pay", "permit(principal, action, resource);"));
  auto asked = payment("25000.00");
  EXPECT_EQ(oversight->request_approval(as(*agent), asked).error().kind(), ErrorKind::conflict) << "nothing to approve";

  ASSERT_TRUE(
      authz->create_policy(system, "large", R"(@oversight("large-payments") forbid(principal, action, resource);)"));
  for (const char* forbid : {"large", ""}) {
    asked.needs = {{.policy = "lenient", .forbid = forbid, .timeout = {}, .approvers = {friendly.identity.text()}}};
    const auto pending = oversight->request_approval(as(*agent), asked);
    ASSERT_TRUE(pending) << pending.error().to_string();
    const Request request = oversight->get(system, pending->request).value();
    ASSERT_EQ(request.requirements.size(), 1u);
    EXPECT_EQ(request.requirements[0].policy.id, "large-payments");
    EXPECT_EQ(request.requirements[0].forbid, "large");
    EXPECT_FALSE(respond(pending->request, friendly, true)) << "he is nobody's approver here";
  }
  ASSERT_TRUE(authz->create_policy(system, "never", "forbid(principal, action, resource);"));
  EXPECT_EQ(oversight->request_approval(as(*agent), payment("1.00")).error().kind(), ErrorKind::permission_denied);
}

TEST_P(OversightContract, ACostThresholdAsksARoleWithoutAnyStoredPolicy) {
  ASSERT_TRUE(nhi->set_roles(system, cfo->identity, {"cfo"}));
  auto asked = payment("25000.00");
  asked.needs = {{.policy = "monthly-cost", .forbid = {}, .timeout = {}, .approvers = {"role:cfo"}}};
  const ApprovalStatus pending = ask(asked);
  ASSERT_TRUE(respond(pending.request, *cfo, true));
  const ApprovalStatus status = oversight->approval_status(as(*agent), pending.request).value();
  EXPECT_EQ(status.state, ApprovalState::approved);
  EXPECT_NE(status.override_token, "");
}

TEST_P(OversightContract, ADecisionLeavesAsASignedEvent) {
  add_policy();
  std::mutex mutex;
  std::vector<EventEnvelope> events;
  ASSERT_TRUE(bus_->subscribe("test", std::string(contracts::OversightDecisionEvent::subject),
                              [&](const bus::BusMessage& message) -> Result<> {
                                auto envelope = CRETO_TRY(EventEnvelope::from_json(message.body));
                                const std::lock_guard lock(mutex);
                                events.push_back(std::move(envelope));
                                return {};
                              }));
  const ApprovalStatus pending = ask(payment("1.00"));
  auto answer = document(pending.request, *cfo, true);
  answer.response = R"({"new_limit":"200000"})";
  ASSERT_TRUE(send(answer, cfo->key, cfo->identity));
  ASSERT_TRUE(bus_->wait_until_idle(20s));
  const std::lock_guard lock(mutex);
  ASSERT_EQ(events.size(), 1u);
  const Identity oversight_service = Identity::service("oversight").value();
  EXPECT_TRUE(nhi->verify(system, oversight_service, as_bytes(events[0].signed_bytes().value()),
                          events[0].signature.value(), event_signature_context));
  const auto event = contracts::OversightDecisionEvent::from_json(events[0].payload).value();
  EXPECT_EQ(event.request, pending.request);
  EXPECT_EQ(event.decision, ApprovalState::approved);
  EXPECT_EQ(event.response, R"({"new_limit":"200000"})");
}

TEST_P(OversightContract, WhatAnApproverSeesIsOfTheRequestsOwnOrganization) {
  const auto in = [&](Context ctx, std::string org) {
    ctx.org = std::move(org);
    return ctx;
  };
  for (const char* org : {"default", "acme"}) {
    if (org != system.org) {
      ASSERT_TRUE(nhi->register_human(in(system, org), cfo->identity, "cfo", cfo->key.verifying_key(), std::nullopt));
    }
    ASSERT_TRUE(service->put_policy(
        in(system, org), {.id = "large-payments", .description = {}, .tiers = {{.approvers = {cfo->identity}}}}));
    ASSERT_TRUE(memory->store(in(as(*agent), org), {.agent = *agent,
                                                    .content = fmt::format("the invoice is due, says {}", org),
                                                    .type = memory::MemoryType::reasoning,
                                                    .metadata = {},
                                                    .embedding = {},
                                                    .ttl = std::nullopt}));
  }
  const auto pending = service->request_approval(in(system, "acme"), payment("1.00")).value();
  const Request request = service->get(in(system, "acme"), pending.request).value();
  EXPECT_EQ(request.related_memories, std::vector<std::string>{"the invoice is due, says acme"});
}

TEST_P(OversightContract, AQuotaNoticeBecomesARequestOnlyWhereMeteringSignedIt) {
  add_policy();
  const Identity metering = Identity::service("metering").value();
  ASSERT_TRUE(nhi->ensure_service(Context::of_service(metering), metering));
  const auto publish = [&](const Identity& signer, const std::string& id, const std::string& kind = "quota_breach") {
    contracts::CostThresholdExceededEvent event;
    event.kind = kind;
    if (kind == "cost_anomaly") {
      event.expected = "120";
      event.confidence = "0.99";
    }
    event.threshold_id = id;
    event.triggering_event = "evt";
    event.current = "95000";
    event.limit = "100000";
    event.unit = "inference_tokens";
    event.period = "month";
    EventEnvelope envelope{std::string(event.event_type),
                           EventId::fresh(clock.now()),
                           *agent,
                           {ada->identity, *agent},
                           Timestamp{.logical = 1, .physical_ns = 1, .node = "test", .degraded = false},
                           event.to_json().value(),
                           std::nullopt};
    envelope.signature =
        nhi->sign(system, signer, as_bytes(envelope.signed_bytes().value()), event_signature_context).value();
    const std::string body = envelope.to_json().value();
    ASSERT_TRUE(db->transaction(system, [&](sql::Tx& tx) {
      return bus::publish(tx, system, contracts::CostThresholdExceededEvent::subject, envelope.event_id.to_string(),
                          body);
    }));
  };
  publish(*agent, "forged");
  publish(metering, "tokens");
  ASSERT_TRUE(bus_->wait_until_idle(20s));
  const auto requests = oversight->list(system, {}).value();
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0].action.action, "quota.raise");
  EXPECT_EQ(requests[0].action.resource_id, "tokens");
  publish(metering, "anomaly", "cost_anomaly");
  ASSERT_TRUE(bus_->wait_until_idle(20s));
  const auto unusual = oversight->list(system, {}).value();
  ASSERT_EQ(unusual.size(), 2u);
  EXPECT_TRUE(std::ranges::any_of(unusual, [](const Request& request) {
    return request.action.action == "cost.continue" &&
           request.description.find("in an hour that usually costs 120") != std::string::npos;
  }));
}

}  // namespace
}  // namespace creto::oversight
