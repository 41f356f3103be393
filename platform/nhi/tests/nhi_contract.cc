// What every Nhi keeps, whether it runs here or at the other end of a connection.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "creto/common/event.h"
#include "creto/crypto/random.h"
#include "creto/nhi/nhi_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/human.h"
#include "creto/testing/result.h"
#include "creto/testing/sealer.h"
#include "creto/testing/wire.h"

namespace creto::nhi {
namespace {

using creto::testing::Human;
using creto::testing::kind;
using creto::testing::Where;
using creto::testing::Wire;
using std::chrono::hours;
using std::chrono::minutes;
constexpr auto hybrid = crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;

class NhiContract : public ::testing::TestWithParam<Where> {
 protected:
  NhiContract() {
    start();
    ada.emplace(*nhi, "ada@example.com");
  }
  ~NhiContract() override { stop(); }

  void start() {
    db = database_.open();
    service_ = create_nhi(*db, sealer_, clock).value();
    nhi = service_.get();
    if (GetParam() != Where::grpc) return;
    wire_.emplace(clock, [this](const Identity& caller) { return chain_of(caller); });
    register_nhi(wire_->dispatcher(), *service_);
    client_ = create_nhi_client(wire_->connect());
    nhi = client_.get();
  }
  void stop() {
    client_.reset();
    wire_.reset();
    service_.reset();
    db.reset();
  }

  static Context as_service() { return Context::of_service(Identity::service("test").value()); }
  DelegationChain chain_of(const Identity& identity) {
    const auto found = service_->get_delegation_chain(as_service(), identity);
    return found ? found->identities() : DelegationChain{identity};
  }
  Context as(const Identity& identity) { return Context::of(identity, chain_of(identity)); }
  Agent agent(std::string name) {
    auto made = nhi->register_agent(as(ada->identity), {.name = std::move(name)});
    EXPECT_TRUE(made.has_value()) << made.error().to_string();
    return *made;
  }
  NewDelegation signed_by(const Human& by, const Identity& to, const std::vector<std::string>& permissions,
                          Nanos valid_for = hours(24)) {
    return by.delegation(to, permissions, clock.now(), valid_for);
  }
  Delegation delegate(const Human& by, const Identity& to, const std::vector<std::string>& permissions,
                      Nanos valid_for = hours(24)) {
    auto made = nhi->create_delegation(as(by.identity), signed_by(by, to, permissions, valid_for));
    EXPECT_TRUE(made.has_value()) << made.error().to_string();
    return *made;
  }

  std::set<std::string> audited() {
    std::set<std::string> all;
    auto read = db->read({}, [&](sql::Tx& tx) -> Result<> {
      auto rows = CRETO_TRY(tx.query("SELECT count(*) FROM audit_pending"));
      all.insert(std::to_string(rows.front().integer(0)));
      return {};
    });
    EXPECT_TRUE(read.has_value());
    return all;
  }

  creto::testing::FakeClock clock{system_clock().now()};
  creto::testing::TestDatabase database_{database_of(GetParam()), clock};
  creto::testing::TestSealer sealer_;
  std::unique_ptr<sql::Database> db;
  std::unique_ptr<Nhi> service_, client_;
  std::optional<Wire> wire_;
  Nhi* nhi = nullptr;
  std::optional<Human> ada;
};

TEST_P(NhiContract, RegistersAnAgentWhoseIdentityIsItsKey) {
  auto made = nhi->register_agent(as(ada->identity), {.name = "clerk", .attributes = {{"team", "accounts"}}}).value();
  EXPECT_EQ(made.owner, ada->identity);
  EXPECT_EQ(made.status, AgentStatus::active);
  auto keys = nhi->get_public_keys(as_service(), made.identity).value();
  EXPECT_TRUE(std::ranges::equal(keys.ed25519(), made.identity.pinned_key()));
  EXPECT_EQ(keys.ml_dsa_65().size(), 1952u);
  EXPECT_EQ(keys.x25519().size(), 32u);
  EXPECT_EQ(keys.ml_kem_768().size(), 1184u);
  EXPECT_EQ(nhi->get_agent(as_service(), made.identity).value(), made);
  EXPECT_EQ(nhi->find_agent(as_service(), "clerk").value(), made);
  EXPECT_TRUE(nhi->is_registered(as_service(), made.identity).value());
  EXPECT_FALSE(nhi->is_revoked(as_service(), made.identity).value());
}

TEST_P(NhiContract, SurvivesARestart) {
  auto made = agent("clerk");
  auto before = nhi->sign(as(made.identity), made.identity, as_bytes("x")).value();
  stop();
  start();
  EXPECT_EQ(nhi->get_agent(as_service(), made.identity).value(), made);
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("x"), before)), "ok");
  auto after = nhi->sign(as(made.identity), made.identity, as_bytes("y")).value();
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("y"), after)), "ok");
}

TEST_P(NhiContract, ForgetsWhatAnotherProcessChangedWhenItLooks) {
  const Agent clerk = agent("clerk");
  const auto other = create_nhi(*db, sealer_, clock).value();
  EXPECT_FALSE(other->is_revoked(as_service(), clerk.identity).value());
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), clerk.identity, "replaced").has_value());
  EXPECT_FALSE(other->is_revoked(as_service(), clerk.identity).value()) << "it has not looked yet";
  const std::uint64_t before = db->signal("nhi.changed").count();
  ASSERT_TRUE(other->refresh(as_service()).has_value());
  EXPECT_TRUE(other->is_revoked(as_service(), clerk.identity).value());
  EXPECT_GT(db->signal("nhi.changed").count(), before);
  const std::uint64_t after = db->signal("nhi.changed").count();
  ASSERT_TRUE(other->refresh(as_service()).has_value());
  EXPECT_EQ(db->signal("nhi.changed").count(), after) << "nothing has changed since";
}

TEST_P(NhiContract, RepeatsARegistrationByItsKeyAndRefusesOtherContent) {
  Context ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  ctx.request_hash[0] = 1;
  auto first = nhi->register_agent(ctx, {.name = "clerk"}).value();
  auto again = nhi->register_agent(ctx, {.name = "clerk"});
  ASSERT_TRUE(again.has_value()) << again.error().to_string();
  EXPECT_EQ(again->identity, first.identity);
  ctx.request_hash[0] = 2;
  EXPECT_EQ(kind(nhi->register_agent(ctx, {.name = "other"})), "conflict");
}

TEST_P(NhiContract, KeepsNamesUniqueUntilTheirHolderIsRevoked) {
  auto first = agent("clerk");
  EXPECT_EQ(kind(nhi->register_agent(as(ada->identity), {.name = "clerk"})), "already_exists");
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), first.identity, "replaced").has_value());
  EXPECT_EQ(kind(nhi->register_agent(as(ada->identity), {.name = "clerk"})), "ok");
}

TEST_P(NhiContract, RefusesBadInput) {
  auto tried = [&](NewAgent wanted) { return kind(nhi->register_agent(as(ada->identity), wanted)); };
  EXPECT_EQ(tried({.name = ""}), "invalid_input");
  EXPECT_EQ(tried({.name = std::string(129, 'x')}), "invalid_input");
  EXPECT_EQ(tried({.name = "a\nb"}), "invalid_input");
  EXPECT_EQ(tried({.name = "human:eve@example.com"}), "invalid_input");
  EXPECT_EQ(tried({.name = "x", .type = AgentType::human}), "invalid_input");
  EXPECT_EQ(tried({.name = "x", .valid_for = Nanos(-1)}), "invalid_input");
  EXPECT_EQ(tried({.name = "x", .valid_for = hours(24 * 4000)}), "invalid_input");
  EXPECT_EQ(tried({.name = "x", .attributes = {{"", "v"}}}), "invalid_input");
  EXPECT_EQ(tried({.name = "x", .attributes = {{"k", std::string(1025, 'v')}}}), "invalid_input");
  const Human eve(*nhi, "eve@example.com");
  EXPECT_EQ(tried({.name = "x", .owner = eve.identity}), "permission_denied");
  EXPECT_TRUE(nhi->list_agents(as_service(), {.type = AgentType::autonomous}).value().empty());
  EXPECT_EQ(kind(nhi->get_agent(as_service(), Identity::human("nobody@example.com").value())), "not_found");
  EXPECT_EQ(kind(nhi->find_agent(as_service(), "nobody")), "not_found");
  EXPECT_EQ(kind(nhi->list_agents(as_service(), {.limit = 1001})), "invalid_input");
}

TEST_P(NhiContract, ListsInPages) {
  std::set<std::string> made, seen;
  for (int i = 0; i < 5; ++i) made.insert(agent(fmt::format("a{}", i)).identity.text());
  AgentFilter filter{.type = AgentType::autonomous, .limit = 2};
  for (;;) {
    auto page = nhi->list_agents(as_service(), filter).value();
    for (const Agent& one : page) seen.insert(one.identity.text());
    if (page.size() < 2) break;
    filter.after = page.back().identity.text();
  }
  EXPECT_EQ(seen, made);
  EXPECT_EQ(nhi->list_agents(as_service(), {.owner = ada->identity, .name = "a3"}).value().size(), 1u);
}

TEST_P(NhiContract, ChangesWhatMayChange) {
  auto made = agent("clerk");
  auto changed =
      nhi->update_agent(as(ada->identity), made.identity,
                        {.name = "chief", .expires_at = clock.now() + hours(1), .attributes = {{{"a", "b"}}}})
          .value();
  EXPECT_EQ(changed.name, "chief");
  EXPECT_EQ(nhi->get_agent(as_service(), made.identity).value(), changed);
  EXPECT_EQ(kind(nhi->update_agent(as(ada->identity), made.identity, {.expires_at = clock.now() + hours(2)})),
            "invalid_input");
  ASSERT_TRUE(nhi->update_agent(as(ada->identity), made.identity, {.status = AgentStatus::suspended}).has_value());
  EXPECT_TRUE(nhi->is_revoked(as_service(), made.identity).value());
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("x"))), "permission_denied");
  ASSERT_TRUE(nhi->update_agent(as(ada->identity), made.identity, {.status = AgentStatus::active}).has_value());
  EXPECT_FALSE(nhi->is_revoked(as_service(), made.identity).value());
  clock.advance(hours(1));
  EXPECT_TRUE(nhi->is_revoked(as_service(), made.identity).value());
}

TEST_P(NhiContract, RevokesForGood) {
  auto made = agent("clerk");
  delegate(*ada, made.identity, {"*"});
  ASSERT_TRUE(nhi->get_delegation_chain(as_service(), made.identity).has_value());
  EXPECT_EQ(nhi->revoke_agent(as(ada->identity), made.identity, "gone").value().status, AgentStatus::revoked);
  EXPECT_EQ(kind(nhi->revoke_agent(as(ada->identity), made.identity, "again")), "ok");
  EXPECT_TRUE(nhi->is_revoked(as_service(), made.identity).value());
  EXPECT_EQ(kind(nhi->get_delegation_chain(as_service(), made.identity)), "permission_denied");
  EXPECT_EQ(kind(nhi->update_agent(as(ada->identity), made.identity, {.status = AgentStatus::active})), "conflict");
}

TEST_P(NhiContract, SignsForAnAgentAndVerifies) {
  auto made = agent("clerk");
  auto signature = nhi->sign(as(made.identity), made.identity, as_bytes("hello"), "runtime.attestation").value();
  EXPECT_EQ(signature.algorithm, "hybrid-ed25519-ml-dsa-65");
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("hello"), signature, "runtime.attestation")), "ok");
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("hello"), signature)), "signature_invalid");
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("hellO"), signature, "runtime.attestation")),
            "signature_invalid");
  for (std::size_t at : {std::size_t(0), signature.value.size() - 1}) {
    auto broken = signature;  // ML-DSA's half, then Ed25519's
    broken.value[at] ^= 1;
    EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("hello"), broken, "runtime.attestation")),
              "signature_invalid");
  }
  auto unknown = signature;
  unknown.algorithm = "rot13";
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("hello"), unknown)), "unsupported_algorithm");
  auto other = agent("other");
  EXPECT_EQ(kind(nhi->verify(as_service(), other.identity, as_bytes("hello"), signature, "runtime.attestation")),
            "signature_invalid");
}

TEST_P(NhiContract, SignsOnlyForWhomTheCallerSpeaks) {
  auto made = agent("clerk"), other = agent("other");
  EXPECT_EQ(kind(nhi->sign(as(other.identity), made.identity, as_bytes("x"))), "permission_denied");
  EXPECT_EQ(kind(nhi->sign(as(ada->identity), made.identity, as_bytes("x"))), "permission_denied");
  EXPECT_EQ(kind(nhi->sign(as_service(), ada->identity, as_bytes("x"))), "permission_denied");  // her key is not here
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("x"), "creto.token")), "permission_denied");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("x"), "creto.delegation")), "permission_denied");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("x"), "creto.succession")), "permission_denied");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, Bytes((4 << 20) + 1))), "too_large");
}

TEST_P(NhiContract, ResolvesTokens) {
  auto made = agent("clerk");
  auto token = nhi->issue_token(as(ada->identity), made.identity, hours(1)).value();
  auto resolved = nhi->resolve_token(as_service(), token).value();
  EXPECT_EQ(resolved.agent.identity, made.identity);
  EXPECT_EQ(resolved.org, "default");
  EXPECT_EQ(nhi->resolve_token(as_service(), token).value().id, resolved.id);
  auto hers = make_token(ada->key, ada->identity, "default", clock.now(), hours(1)).value();
  EXPECT_EQ(nhi->resolve_token(as_service(), hers).value().agent.identity, ada->identity);

  // Somebody else's signature, another organization, a changed byte.
  auto eve = crypto::SigningKey::generate(hybrid);
  EXPECT_EQ(
      kind(nhi->resolve_token(as_service(), make_token(eve, ada->identity, "default", clock.now(), hours(1)).value())),
      "unauthenticated");
  EXPECT_EQ(kind(nhi->resolve_token(as_service(),
                                    make_token(ada->key, ada->identity, "other", clock.now(), hours(1)).value())),
            "unauthenticated");
  std::string broken = token;
  broken[broken.size() - 30] = broken[broken.size() - 30] == 'A' ? 'B' : 'A';
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), broken)), "unauthenticated");
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), "nonsense")), "unauthenticated");

  clock.advance(hours(1));
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), token)), "expired");
  auto fresh = nhi->issue_token(as(ada->identity), made.identity, hours(1)).value();
  ASSERT_TRUE(nhi->resolve_token(as_service(), fresh).has_value());
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), made.identity, "").has_value());
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), fresh)), "unauthenticated");
}

TEST_P(NhiContract, DelegatesFromAHumanToAnAgentToItsChild) {
  auto parent = agent("parent");
  delegate(*ada, parent.identity, {"payments.*", "sandbox.spawn"});
  auto child = nhi->register_agent(as(parent.identity), {.name = "child"}).value();
  EXPECT_EQ(child.owner, ada->identity);
  auto made = nhi->create_delegation(
      as(parent.identity),
      {parent.identity, child.identity, {}, {"payments.pay"}, clock.now() + hours(1), {}, {}, {}, {}});
  ASSERT_TRUE(made.has_value()) << made.error().to_string();
  auto chain = nhi->get_delegation_chain(as_service(), child.identity).value();
  EXPECT_EQ(chain.identities(), (DelegationChain{ada->identity, parent.identity, child.identity}));
  EXPECT_EQ(chain.valid_until, clock.now() + hours(1));
  EXPECT_TRUE(chain.permits("payments.pay"));
  EXPECT_FALSE(chain.permits("sandbox.spawn"));
  EXPECT_EQ(kind(nhi->verify_delegation(as_service(), chain)), "ok");
  EXPECT_EQ(nhi->get_delegation_chain(as_service(), ada->identity).value().identities(),
            DelegationChain{ada->identity});

  auto forged = chain;
  forged.delegations[1].permissions = {"payments.*"};
  EXPECT_EQ(kind(nhi->verify_delegation(as_service(), forged)), "signature_invalid");
  forged = chain;
  forged.delegations.erase(forged.delegations.begin());
  EXPECT_EQ(kind(nhi->verify_delegation(as_service(), forged)), "permission_denied");

  clock.advance(hours(1));
  EXPECT_EQ(kind(nhi->get_delegation_chain(as_service(), child.identity)), "permission_denied");
  EXPECT_EQ(kind(nhi->verify_delegation(as_service(), chain)), "expired");
}

TEST_P(NhiContract, RefusesDelegationsThatWidenOrAreNotTheirMakers) {
  auto parent = agent("parent"), child = agent("child");
  delegate(*ada, parent.identity, {"payments.pay"});
  auto tried = [&](const Identity& by, std::vector<std::string> permissions, Nanos valid_for = hours(1)) {
    return kind(nhi->create_delegation(
        as(by),
        {parent.identity, child.identity, {}, std::move(permissions), clock.now() + valid_for, {}, {}, {}, {}}));
  };
  EXPECT_EQ(tried(parent.identity, {"payments.*"}), "permission_denied");
  EXPECT_EQ(tried(parent.identity, {"payments.pay"}, hours(48)), "permission_denied");
  EXPECT_EQ(tried(child.identity, {"payments.pay"}), "permission_denied");
  EXPECT_EQ(tried(parent.identity, {}), "invalid_input");
  EXPECT_EQ(tried(parent.identity, {"Payments"}), "invalid_input");
  EXPECT_EQ(tried(parent.identity, {"payments.pay"}, -hours(1)), "invalid_input");
  EXPECT_EQ(kind(nhi->get_delegation_chain(as_service(), child.identity)), "permission_denied");

  // Ada's has to be signed by her own key, over exactly what is asked.
  auto unsigned_one = signed_by(*ada, child.identity, {"a.b"});
  unsigned_one.signature.reset();
  EXPECT_EQ(kind(nhi->create_delegation(as(ada->identity), unsigned_one)), "invalid_input");
  auto widened = signed_by(*ada, child.identity, {"a.b"});
  widened.permissions = {"a.*"};
  EXPECT_EQ(kind(nhi->create_delegation(as(ada->identity), widened)), "signature_invalid");
  const Human eve(*nhi, "eve@example.com");
  auto hers = signed_by(*ada, child.identity, {"a.b"});
  EXPECT_EQ(kind(nhi->create_delegation(as(eve.identity), hers)), "permission_denied");
  auto old = signed_by(*ada, child.identity, {"a.b"});
  clock.advance(minutes(6));
  EXPECT_EQ(kind(nhi->create_delegation(as(ada->identity), old)), "invalid_input");
}

TEST_P(NhiContract, TakesADelegationTwiceAsOne) {
  auto made = agent("clerk");
  auto wanted = signed_by(*ada, made.identity, {"a.b"});
  ASSERT_TRUE(nhi->create_delegation(as(ada->identity), wanted).has_value());
  EXPECT_EQ(kind(nhi->create_delegation(as(ada->identity), wanted)), "ok");
}

TEST_P(NhiContract, LetsNobodyElseChangeForWhomAnAgentActs) {
  auto made = agent("clerk");
  delegate(*ada, made.identity, {"a.b"});
  const Human eve(*nhi, "eve@example.com");
  auto hers = delegate(eve, made.identity, {"*"});
  EXPECT_EQ(nhi->get_delegation_chain(as_service(), made.identity).value().root.identity, ada->identity);
  EXPECT_EQ(nhi->get_delegation_chain(as_service(), made.identity, hers.id).value().root.identity, eve.identity);
}

TEST_P(NhiContract, EndsEveryChainThroughARevokedDelegation) {
  auto parent = agent("parent"), child = agent("child");
  auto first = delegate(*ada, parent.identity, {"*"});
  auto second =
      nhi->create_delegation(as(parent.identity),
                             {parent.identity, child.identity, {}, {"a.b"}, clock.now() + hours(1), {}, {}, {}, {}})
          .value();
  const Human eve(*nhi, "eve@example.com");
  EXPECT_EQ(kind(nhi->revoke_delegation(as(eve.identity), second.id)), "permission_denied");
  EXPECT_EQ(kind(nhi->revoke_delegation(as(child.identity), second.id)), "permission_denied");
  auto chain = nhi->get_delegation_chain(as_service(), child.identity).value();
  EXPECT_EQ(kind(nhi->revoke_delegation(as(ada->identity), first.id)), "ok");
  EXPECT_EQ(kind(nhi->revoke_delegation(as(ada->identity), first.id)), "ok");
  EXPECT_EQ(kind(nhi->get_delegation_chain(as_service(), child.identity)), "permission_denied");
  EXPECT_EQ(kind(nhi->verify_delegation(as_service(), chain)), "permission_denied");
  EXPECT_EQ(kind(nhi->revoke_delegation(as(ada->identity), DelegationId::fresh(clock.now()))), "not_found");
}

TEST_P(NhiContract, TellsWhoseAnAgentWasAtATimeAlsoAfterItsEnd) {
  const auto past = [&](const Identity& identity, Instant when) {
    const auto found = nhi->get_past_delegation_chain(as_service(), identity, when);
    return found ? found->chain.identities() : DelegationChain{};
  };
  auto parent = agent("parent"), other = agent("other"), child = agent("child");
  EXPECT_EQ(kind(nhi->get_past_delegation_chain(as_service(), child.identity, clock.now())), "permission_denied");
  delegate(*ada, parent.identity, {"*"});
  delegate(*ada, other.identity, {"*"});
  const auto from = [&](const Agent& delegator, Nanos valid_for) {
    return nhi
        ->create_delegation(as(delegator.identity),
                            {delegator.identity, child.identity, {}, {"a.b"}, clock.now() + valid_for, {}, {}, {}, {}})
        .value();
  };
  const DelegationChain by_parent{ada->identity, parent.identity, child.identity};
  const DelegationChain by_other{ada->identity, other.identity, child.identity};
  const Instant begin = clock.now();
  from(parent, hours(5));
  clock.advance(hours(1));
  const auto second = from(other, hours(2));
  clock.advance(hours(1));
  ASSERT_TRUE(nhi->revoke_delegation(as(other.identity), second.id));
  clock.advance(hours(1));
  EXPECT_EQ(past(child.identity, begin), by_parent);
  EXPECT_EQ(past(child.identity, begin + hours(1) - minutes(1)), by_parent) << "the second one came later";
  EXPECT_EQ(past(child.identity, begin + hours(1)), by_other);
  EXPECT_EQ(past(child.identity, begin + hours(2)), by_parent) << "the second one was revoked then";
  const auto between = nhi->get_past_delegation_chain(as_service(), child.identity, begin + minutes(90)).value();
  EXPECT_EQ(between.from, begin + hours(1));
  EXPECT_EQ(between.until, begin + hours(2));
  EXPECT_EQ(past(child.identity, begin - minutes(1)), by_parent) << "before any it was the first one's";
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), parent.identity, "gone"));
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), child.identity, "gone"));
  EXPECT_EQ(past(child.identity, clock.now() - minutes(1)), by_parent);
  clock.advance(hours(10));
  EXPECT_EQ(past(child.identity, clock.now()), by_parent) << "the last one that held";
  EXPECT_EQ(past(ada->identity, clock.now()), DelegationChain{ada->identity});
}

TEST_P(NhiContract, VerifiesWhatWasSignedBeforeAnEndAndLetsAServiceTellWhatWasUsed) {
  auto made = nhi->register_agent(as(ada->identity), {.name = "clerk", .valid_for = hours(1)}).value();
  const Instant begin = clock.now();
  const auto signature = nhi->sign(as(made.identity), made.identity, as_bytes("x"), event_signature_context).value();
  clock.advance(hours(2));
  const auto verify = [&](Instant when) {
    return kind(nhi->verify_past(as_service(), made.identity, as_bytes("x"), signature, event_signature_context, when));
  };
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("x"), signature, event_signature_context)),
            "signature_invalid");
  EXPECT_EQ(verify(begin), "ok");
  EXPECT_EQ(verify(clock.now()), "ok");
  EXPECT_EQ(verify(begin - hours(1)), "ok");
  EXPECT_EQ(kind(nhi->sign(as(made.identity), made.identity, as_bytes("y"), event_signature_context)), "expired");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("y"), event_signature_context)), "ok");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("y"), "other")), "expired");
}

TEST_P(NhiContract, RegistersAHumanOnceWithHisKeys) {
  EXPECT_EQ(kind(nhi->register_human(as_service(), ada->identity, "ada", ada->key.verifying_key(), std::nullopt)),
            "ok");
  auto other = crypto::SigningKey::generate(hybrid);
  EXPECT_EQ(kind(nhi->register_human(as_service(), ada->identity, "ada", other.verifying_key(), std::nullopt)),
            "already_exists");
  auto classical = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ed25519);
  EXPECT_EQ(kind(nhi->register_human(as_service(), Identity::human("bob@example.com").value(), "bob",
                                     classical.verifying_key(), std::nullopt)),
            "unsupported_algorithm");
}

TEST_P(NhiContract, HoldsAServicesKeys) {
  auto service = Identity::service("metering").value();
  auto made = nhi->ensure_service(as_service(), service).value();
  EXPECT_EQ(nhi->ensure_service(as_service(), service).value(), made);
  auto signature = nhi->sign(as_service(), service, as_bytes("invoice")).value();
  EXPECT_EQ(kind(nhi->verify(as_service(), service, as_bytes("invoice"), signature)), "ok");
}

TEST_P(NhiContract, OpensWhatWasWrappedForAnAgent) {
  auto made = agent("clerk");
  auto keys = nhi->get_public_keys(as_service(), made.identity).value();
  auto wrapped = keys.kem->encapsulate().value();
  auto opened = nhi->decapsulate(as_service(), made.identity, keys.key_id, wrapped.ciphertext);
  if (GetParam() == Where::grpc) {  // secrets do not travel
    EXPECT_EQ(kind(opened), "unavailable");
    return;
  }
  ASSERT_TRUE(opened.has_value()) << opened.error().to_string();
  EXPECT_TRUE(equal_constant_time(opened->reveal(), wrapped.shared_secret.reveal()));
  EXPECT_EQ(kind(nhi->decapsulate(as_service(), made.identity, "other", wrapped.ciphertext)), "not_found");
  EXPECT_EQ(kind(nhi->decapsulate(as(ada->identity), made.identity, keys.key_id, wrapped.ciphertext)),
            "permission_denied");
  ASSERT_TRUE(nhi->decapsulate(as(made.identity), made.identity, keys.key_id, wrapped.ciphertext));

  // What was kept for it stays readable, but not to itself.
  ASSERT_TRUE(nhi->revoke_agent(as(ada->identity), made.identity, "left"));
  EXPECT_EQ(kind(nhi->decapsulate(as(made.identity), made.identity, keys.key_id, wrapped.ciphertext)),
            "permission_denied");
  EXPECT_TRUE(nhi->decapsulate(as_service(), made.identity, keys.key_id, wrapped.ciphertext));
}

TEST_P(NhiContract, GivesEachOneTimePrekeyOnce) {
  auto made = agent("clerk");
  Context ctx = as(made.identity);
  auto sign = [&](PrekeyUse use, std::uint32_t id, const Bytes& key) {
    return nhi->sign(ctx, made.identity, as_bytes(prekey_signed_bytes(made.identity, use, id, key)), "creto.prekey")
        .value();
  };
  auto prekey = [&](PrekeyUse use, std::uint32_t id, std::size_t size) {
    Bytes key = crypto::random_bytes(size);
    return SignedPrekey{id, key, sign(use, id, key)};
  };
  EXPECT_EQ(kind(nhi->take_key_bundle(as_service(), made.identity)), "not_found");
  KeyBundleUpload upload;
  upload.identity_dh = crypto::random_bytes(32);
  upload.identity_dh_signature = sign(PrekeyUse::identity_dh, 0, upload.identity_dh);
  upload.signed_prekey = prekey(PrekeyUse::signed_prekey, 7, 32);
  upload.last_resort_kem = prekey(PrekeyUse::kem, 8, 1184);
  for (std::uint32_t i = 1; i <= 6; ++i) upload.one_time.push_back({i, crypto::random_bytes(32)});
  for (std::uint32_t i = 1; i <= 2; ++i) upload.one_time_kem.push_back(prekey(PrekeyUse::kem, 100 + i, 1184));

  auto forged = upload;
  forged.signed_prekey.key[0] ^= 1;
  EXPECT_EQ(kind(nhi->publish_key_bundle(ctx, made.identity, forged)), "signature_invalid");
  EXPECT_EQ(kind(nhi->publish_key_bundle(as(ada->identity), made.identity, upload)), "permission_denied");
  EXPECT_EQ(nhi->publish_key_bundle(ctx, made.identity, upload).value().one_time, 6);

  std::mutex mutex;
  std::set<std::uint32_t> ids;
  int last_resort = 0, taken = 0;
  {
    std::vector<std::jthread> takers;
    for (int t = 0; t < 3; ++t)
      takers.emplace_back([&] {
        for (int i = 0; i < 2; ++i) {
          auto bundle = nhi->take_key_bundle(as_service(), made.identity);
          std::lock_guard lock(mutex);
          ASSERT_TRUE(bundle.has_value()) << bundle.error().to_string();
          ++taken;
          if (bundle->one_time) ids.insert(bundle->one_time->id);
          last_resort += bundle->kem_is_last_resort;
          EXPECT_EQ(bundle->identity_dh, upload.identity_dh);
          EXPECT_EQ(bundle->signed_prekey.id, 7u);
        }
      });
  }
  EXPECT_EQ(taken, 6);
  EXPECT_EQ(ids.size(), 6u);
  EXPECT_EQ(last_resort, 4);
  auto count = nhi->prekey_count(as_service(), made.identity).value();
  EXPECT_EQ(count.one_time, 0);
  EXPECT_EQ(count.one_time_kem, 0);
  EXPECT_FALSE(nhi->take_key_bundle(as_service(), made.identity).value().one_time.has_value());
}

TEST_P(NhiContract, RotatesKeysAndLetsWhatTheOldOnesSignedCountForTheOverlap) {
  const auto made = agent("clerk");
  const auto first = nhi->get_public_keys(as_service(), made.identity).value();
  const auto signed_before = nhi->sign(as(made.identity), made.identity, as_bytes("x")).value();
  const Instant begin = clock.now();
  const auto second = nhi->rotate_keys(as(ada->identity), made.identity, {.overlap = hours(1)});
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(nhi->get_public_keys(as_service(), made.identity).value().key_id, second->key_id);
  const auto third = nhi->rotate_keys(as(made.identity), made.identity, {.overlap = hours(2)}).value();

  const auto sets = nhi->key_sets(as_service(), made.identity).value();
  ASSERT_EQ(sets.size(), 3u);
  EXPECT_EQ(sets[0].key_id, third.key_id);
  EXPECT_EQ(sets[1].valid_until, begin + hours(2));
  EXPECT_EQ(sets[2].key_id, first.key_id);
  EXPECT_EQ(sets[2].valid_until, begin + hours(1)) << "what has its end keeps it";
  EXPECT_EQ(kind(check_succession("default", made.identity, sets)), "ok");
  EXPECT_TRUE(std::ranges::equal(sets[2].ed25519(), made.identity.pinned_key()));

  const auto verify = [&](const Signature& signature) {
    return kind(nhi->verify(as_service(), made.identity, as_bytes("x"), signature));
  };
  const auto signed_after = nhi->sign(as(made.identity), made.identity, as_bytes("x")).value();
  EXPECT_EQ(kind(third.signing.verify(as_bytes("x"), signed_after)), "ok");
  EXPECT_EQ(verify(signed_before), "ok");
  EXPECT_EQ(verify(signed_after), "ok");
  clock.advance(hours(1));
  EXPECT_EQ(verify(signed_before), "signature_invalid");
  EXPECT_EQ(verify(signed_after), "ok");
  const auto past = [&](const Signature& signature, Instant when) {
    return kind(nhi->verify_past(as_service(), made.identity, as_bytes("x"), signature, "", when));
  };
  EXPECT_EQ(past(signed_before, begin), "ok");
  EXPECT_EQ(past(signed_before, clock.now()), "signature_invalid");
  EXPECT_EQ(past(signed_after, begin - hours(1)), "ok") << "of what was before, told and signed today";
  stop();
  start();
  EXPECT_EQ(nhi->key_sets(as_service(), made.identity).value().size(), 3u);
  EXPECT_EQ(verify(nhi->sign(as(made.identity), made.identity, as_bytes("x")).value()), "ok");
}

TEST_P(NhiContract, WhatACompromisedSetSignsCountsNoMoreAtOnce) {
  const auto made = agent("clerk");
  const auto token = nhi->issue_token(as(ada->identity), made.identity, hours(1)).value();
  ASSERT_TRUE(nhi->resolve_token(as_service(), token));
  const auto signature = nhi->sign(as(made.identity), made.identity, as_bytes("x")).value();
  const Instant before = clock.now();
  clock.advance(minutes(1));
  ASSERT_TRUE(nhi->rotate_keys(as(ada->identity), made.identity, {.compromised = true}));
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), token)), "unauthenticated");
  EXPECT_EQ(kind(nhi->verify(as_service(), made.identity, as_bytes("x"), signature)), "signature_invalid");
  const auto past = [&](std::optional<Instant> told) {
    return kind(nhi->verify_past(as_service(), made.identity, as_bytes("x"), signature, "", before, told));
  };
  EXPECT_EQ(past(std::nullopt), "signature_invalid") << "a thief can write any date";
  EXPECT_EQ(past(clock.now()), "signature_invalid");
  EXPECT_EQ(past(before), "ok") << "it was there before the theft was known";
  const auto fresh = nhi->issue_token(as(ada->identity), made.identity, hours(1)).value();
  EXPECT_TRUE(nhi->resolve_token(as_service(), fresh));
}

TEST_P(NhiContract, AHumanSignsTheSuccessionOfHisKeysHimself) {
  const auto made = agent("clerk");
  const Human eve(*nhi, "eve@example.com");
  delegate(*ada, made.identity, {"*"});
  const auto fresh = crypto::SigningKey::generate(hybrid);
  const auto rotate = [&](const Identity& caller, std::optional<NextKeys> next, bool compromised = false) {
    return kind(nhi->rotate_keys(as(caller), ada->identity, {.compromised = compromised, .next = std::move(next)}));
  };
  EXPECT_EQ(rotate(ada->identity, std::nullopt), "invalid_input");
  EXPECT_EQ(rotate(eve.identity, ada->next(fresh, clock.now())), "permission_denied");
  auto forged = ada->next(fresh, clock.now());
  forged.succession.signature = eve.next(fresh, clock.now()).succession.signature;
  EXPECT_EQ(rotate(ada->identity, forged), "signature_invalid");
  forged = ada->next(fresh, clock.now());
  forged.succession.previous_key_id = "0123456789abcdef";
  EXPECT_EQ(rotate(ada->identity, forged), "signature_invalid");
  EXPECT_EQ(rotate(ada->identity, ada->next(fresh, clock.now() - minutes(6))), "invalid_input");
  EXPECT_EQ(rotate(ada->identity, ada->next(ada->key, clock.now())), "ok") << "they are the ones that she has";
  EXPECT_EQ(nhi->key_sets(as_service(), ada->identity).value().size(), 1u);
  EXPECT_EQ(kind(nhi->rotate_keys(as(ada->identity), made.identity, {.next = ada->next(fresh, clock.now())})),
            "invalid_input");

  const auto old_delegation = signed_by(*ada, made.identity, {"a.b"});
  const auto old_token = make_token(ada->key, ada->identity, "default", clock.now(), hours(1)).value();
  clock.advance(minutes(1));
  const auto next = ada->next(fresh, clock.now());
  EXPECT_EQ(rotate(ada->identity, next, true), "ok");
  EXPECT_EQ(rotate(ada->identity, next, true), "ok") << "the same again";
  EXPECT_EQ(nhi->key_sets(as_service(), ada->identity).value().size(), 2u);
  EXPECT_EQ(kind(nhi->create_delegation(as(ada->identity), old_delegation)), "signature_invalid")
      << "signed with an ended key, at a time when it had not ended";
  EXPECT_EQ(kind(nhi->resolve_token(as_service(), old_token)), "unauthenticated");
  EXPECT_EQ(kind(nhi->get_delegation_chain(as_service(), made.identity)), "ok") << "what she delegated before stays";
  const auto token = make_token(fresh, ada->identity, "default", clock.now(), hours(1)).value();
  EXPECT_EQ(nhi->resolve_token(as_service(), token).value().agent.identity, ada->identity);
  const auto old_key = crypto::SigningKey::from_seed(hybrid, ada->key.seed().reveal()).value();
  Human renewed = std::move(*ada);
  renewed.key = crypto::SigningKey::from_seed(hybrid, fresh.seed().reveal()).value();
  renewed.key_id = key_id_of(fresh.verifying_key(), std::nullopt);
  EXPECT_EQ(kind(nhi->create_delegation(as(renewed.identity), signed_by(renewed, made.identity, {"a.b"}))), "ok");
  const auto used = renewed.next(old_key, clock.now());
  EXPECT_EQ(kind(nhi->rotate_keys(as(renewed.identity), renewed.identity, {.next = used})), "conflict");
  ada.emplace(std::move(renewed));
}

TEST_P(NhiContract, RepeatsARotationByItsKeyAndLeavesOneOfTwoAtOnce) {
  const auto made = agent("clerk");
  Context ctx = as(ada->identity);
  ctx.idempotency_key = "once";
  const auto first = nhi->rotate_keys(ctx, made.identity, {}).value();
  EXPECT_EQ(nhi->rotate_keys(ctx, made.identity, {}).value().key_id, first.key_id);
  EXPECT_EQ(kind(nhi->rotate_keys(as(ada->identity), made.identity, {.overlap = -hours(1)})), "invalid_input");
  EXPECT_EQ(kind(nhi->rotate_keys(as(ada->identity), made.identity, {.overlap = hours(24 * 367)})), "invalid_input");
  const auto other = create_nhi(*db, sealer_, clock).value();
  std::atomic<std::size_t> done = 0;
  {
    std::vector<std::jthread> threads;
    for (Nhi* one : {nhi, other.get(), nhi, other.get()})
      threads.emplace_back([&, one] {
        const auto result = kind(one->rotate_keys(as_service(), made.identity, {}));
        EXPECT_TRUE(result == "ok" || result == "conflict" || result == "unavailable") << result;
        if (result == "ok") ++done;
      });
  }
  ASSERT_TRUE(nhi->refresh(as_service()));
  ASSERT_TRUE(service_->refresh(as_service()));
  const auto sets = nhi->key_sets(as_service(), made.identity);
  ASSERT_TRUE(sets) << sets.error().to_string();
  EXPECT_EQ(sets->size(), 2 + done);
}

TEST_P(NhiContract, OpensWhatWasWrappedForAnEarlierSet) {
  if (GetParam() == Where::grpc) return;  // secrets do not travel
  const auto made = agent("clerk");
  const auto before = nhi->get_public_keys(as_service(), made.identity).value();
  const auto wrapped = before.kem->encapsulate().value();
  ASSERT_TRUE(nhi->rotate_keys(as(ada->identity), made.identity, {.compromised = true}));
  const auto opened = nhi->decapsulate(as(made.identity), made.identity, before.key_id, wrapped.ciphertext);
  ASSERT_TRUE(opened) << opened.error().to_string();
  EXPECT_TRUE(equal_constant_time(opened->reveal(), wrapped.shared_secret.reveal()));
}

TEST_P(NhiContract, GivesOutPrekeysOfASetThatIsInForceAlone) {
  const auto made = agent("clerk");
  const Context ctx = as(made.identity);
  std::uint32_t id = 0;
  const auto publish = [&] {
    const auto prekey = [&](PrekeyUse use, std::size_t size) {
      const Bytes key = crypto::random_bytes(size);
      const std::uint32_t number = use == PrekeyUse::identity_dh ? 0 : ++id;
      const std::string bytes = prekey_signed_bytes(made.identity, use, number, key);
      return SignedPrekey{number, key, nhi->sign(ctx, made.identity, as_bytes(bytes), prekey_context).value()};
    };
    const auto identity_dh = prekey(PrekeyUse::identity_dh, 32);
    KeyBundleUpload upload{.identity_dh = identity_dh.key,
                           .identity_dh_signature = identity_dh.signature,
                           .signed_prekey = prekey(PrekeyUse::signed_prekey, 32),
                           .last_resort_kem = prekey(PrekeyUse::kem, 1184),
                           .one_time = {{++id, crypto::random_bytes(32)}, {++id, crypto::random_bytes(32)}},
                           .one_time_kem = {prekey(PrekeyUse::kem, 1184), prekey(PrekeyUse::kem, 1184)}};
    return nhi->publish_key_bundle(ctx, made.identity, upload).value();
  };
  const auto holds = [&](const KeyBundle& bundle) {
    const auto bytes = prekey_signed_bytes(made.identity, PrekeyUse::kem, bundle.kem.id, bundle.kem.key);
    return kind(bundle.keys.signing.verify(as_bytes(bytes), bundle.kem.signature, as_bytes(prekey_context)));
  };
  EXPECT_EQ(publish().one_time_kem, 2);
  const auto second = nhi->rotate_keys(ctx, made.identity, {.overlap = hours(1)}).value();
  const auto between = nhi->take_key_bundle(as_service(), made.identity).value();
  EXPECT_NE(between.keys.key_id, second.key_id);
  EXPECT_EQ(holds(between), "ok");
  EXPECT_EQ(nhi->prekey_count(as_service(), made.identity).value().one_time_kem, 0);
  EXPECT_EQ(nhi->prekey_count(as_service(), made.identity).value().one_time, 1) << "nothing signs these";

  const auto filled = publish();
  EXPECT_EQ(filled.one_time_kem, 2);
  EXPECT_EQ(filled.one_time, 3);
  const auto renewed = nhi->take_key_bundle(as_service(), made.identity).value();
  EXPECT_EQ(renewed.keys.key_id, second.key_id);
  EXPECT_EQ(holds(renewed), "ok");

  ASSERT_TRUE(nhi->rotate_keys(ctx, made.identity, {.compromised = true}));
  EXPECT_EQ(kind(nhi->take_key_bundle(as_service(), made.identity)), "not_found");
  publish();
  EXPECT_EQ(holds(nhi->take_key_bundle(as_service(), made.identity).value()), "ok");
}

TEST_P(NhiContract, RefusesKeysThatSomebodyWroteIntoTheDatabase) {
  const auto made = agent("clerk");
  const auto other = agent("other");
  ASSERT_TRUE(nhi->rotate_keys(as(ada->identity), made.identity, {}));
  const auto move_keys = [&](std::string_view change) {
    ASSERT_TRUE(db->transaction({}, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec(change, {made.identity.text(), other.identity.text()}));
      return {};
    }));
    stop();
    start();
  };
  move_keys("UPDATE nhi_keys SET signature = signing WHERE identity = $1 AND number = 2 AND $2 <> ''");
  EXPECT_EQ(kind(nhi->get_public_keys(as_service(), made.identity)), "internal");
  EXPECT_EQ(kind(nhi->sign(as_service(), made.identity, as_bytes("x"))), "internal");
  move_keys(
      "UPDATE nhi_keys SET signing = (SELECT k.signing FROM nhi_keys k WHERE k.identity = $1 AND k.number = 1) "
      "WHERE identity = $2");
  EXPECT_EQ(kind(nhi->get_public_keys(as_service(), other.identity)), "internal");
}

TEST_P(NhiContract, AuditsEveryChangeInItsTransaction) {
  auto before = audited();
  auto made = agent("clerk");
  auto after = audited();
  EXPECT_NE(before, after);
  EXPECT_EQ(kind(nhi->register_agent(as(ada->identity), {.name = "clerk"})), "already_exists");
  EXPECT_EQ(audited(), after);
}

TEST_P(NhiContract, IsHealthyWhileItAnswers) { EXPECT_EQ(nhi->health().health, Health::healthy); }

INSTANTIATE_TEST_SUITE_P(, NhiContract, everywhere(),
                         [](const auto& info) { return ::testing::PrintToString(info.param); });

TEST_P(NhiContract, RolesAreAHumansAndFoundByTheirWholeName) {
  Human cfo(*nhi, "cfo@example.com");
  Human deputy(*nhi, "deputy@example.com");
  const auto set = nhi->set_roles(as_service(), cfo.identity, {"cfo", "board", "cfo"});
  ASSERT_TRUE(set) << set.error().to_string();
  EXPECT_EQ(set->roles, (std::vector<std::string>{"board", "cfo"}));
  EXPECT_EQ(nhi->get_agent(as_service(), cfo.identity).value(), *set);
  ASSERT_TRUE(nhi->set_roles(as_service(), deputy.identity, {"cfo-deputy"}));
  const auto holders = [&](const std::string& role) {
    std::vector<Identity> found;
    for (const Agent& one : nhi->list_agents(as_service(), {.role = role}).value()) found.push_back(one.identity);
    return found;
  };
  EXPECT_EQ(holders("cfo"), std::vector{cfo.identity});
  EXPECT_EQ(holders("cf_"), std::vector<Identity>{});
  EXPECT_EQ(holders("%"), std::vector<Identity>{});
  ASSERT_TRUE(nhi->set_roles(as_service(), cfo.identity, {}));
  EXPECT_EQ(holders("cfo"), std::vector<Identity>{});

  EXPECT_EQ(kind(nhi->set_roles(as_service(), agent("clerk").identity, {"cfo"})), "invalid_input");
  EXPECT_EQ(kind(nhi->set_roles(as_service(), cfo.identity, {"Chief \"x\""})), "invalid_input");
  EXPECT_EQ(kind(nhi->set_roles(as_service(), cfo.identity, std::vector<std::string>(17, "cfo"))), "invalid_input");
  EXPECT_EQ(kind(nhi->set_roles(as_service(), Identity::human("nobody@example.com").value(), {"cfo"})), "not_found");
}

}  // namespace
}  // namespace creto::nhi
