#include "delegation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "creto/testing/result.h"
#include "token.h"

namespace creto::nhi {
namespace {

using std::chrono::hours;
const Instant noon = from_unix_ns(1'767'268'800'000'000'000);

Identity agent(std::uint8_t n) {
  ByteArray<32> key{};
  key[0] = n;
  return Identity::agent(key);
}
const Identity ada = Identity::human("ada@example.com").value();

Delegation link(Identity from, Identity to, std::optional<DelegationId> parent, std::vector<std::string> permissions,
                Instant expires_at = noon + hours(1)) {
  return Delegation{DelegationId::fresh(noon),
                    "default",
                    std::move(from),
                    std::move(to),
                    parent,
                    std::move(permissions),
                    noon,
                    expires_at,
                    "k",
                    {},
                    false};
}

TEST(Delegation, CoversByNameAndByWildcard) {
  EXPECT_TRUE(covers("*", "payments.pay"));
  EXPECT_TRUE(covers("payments.pay", "payments.pay"));
  EXPECT_TRUE(covers("payments.*", "payments.pay"));
  EXPECT_TRUE(covers("payments.*", "payments.*"));
  EXPECT_FALSE(covers("payments.*", "payments"));
  EXPECT_FALSE(covers("payments.*", "paymentsx.pay"));
  EXPECT_FALSE(covers("payments.*", "payments."));
  EXPECT_FALSE(covers("payments.pay", "payments.*"));
  EXPECT_FALSE(covers("payments.pay", "payments.payout"));
}

TEST(Delegation, RefusesMalformedPermissions) {
  EXPECT_TRUE(check_permissions({"*"}).has_value());
  EXPECT_TRUE(check_permissions({"a.b", "a.c-d_2", "b.*"}).has_value());
  for (std::string bad : {"", ".", "a.", ".a", "a..b", "A.b", "a b", "**", "*.a", "a.*.b", "a*", "\n"})
    EXPECT_FALSE(check_permissions({bad}).has_value()) << bad;
  EXPECT_FALSE(check_permissions({}).has_value());
  EXPECT_FALSE(check_permissions({"b", "a"}).has_value());
  EXPECT_FALSE(check_permissions({"a", "a"}).has_value());
  EXPECT_FALSE(check_permissions(std::vector<std::string>(65, "a")).has_value());
}

TEST(Delegation, AcceptsAChainThatNarrows) {
  auto first = link(ada, agent(1), {}, {"payments.*", "sandbox.spawn"});
  auto second = link(agent(1), agent(2), first.id, {"payments.pay"});
  EXPECT_TRUE(check_structure(ada, std::vector{first, second}, noon).has_value());
  Chain chain{{ada, "ada", AgentType::human, ada, noon, noon, AgentStatus::active, {}}, {first, second}, noon};
  EXPECT_EQ(chain.identities(), (DelegationChain{ada, agent(1), agent(2)}));
  EXPECT_TRUE(chain.permits("payments.pay"));
  EXPECT_FALSE(chain.permits("sandbox.spawn"));
}

TEST(Delegation, RefusesAChainThatDoesNotHold) {
  auto first = link(ada, agent(1), {}, {"payments.*"});
  auto kind = [&](Delegation second, Instant now = noon) {
    return testing::kind(check_structure(ada, std::vector{first, second}, now));
  };
  auto good = link(agent(1), agent(2), first.id, {"payments.pay"});
  EXPECT_EQ(kind(good), "ok");
  EXPECT_EQ(kind(link(agent(1), agent(2), first.id, {"sandbox.spawn"})), "permission_denied");
  EXPECT_EQ(kind(link(agent(1), agent(2), first.id, {"*"})), "permission_denied");
  EXPECT_EQ(kind(link(agent(1), agent(2), first.id, {"payments.pay"}, noon + hours(2))), "permission_denied");
  EXPECT_EQ(kind(link(agent(3), agent(2), first.id, {"payments.pay"})), "permission_denied");
  EXPECT_EQ(kind(link(agent(1), agent(2), {}, {"payments.pay"})), "permission_denied");
  EXPECT_EQ(kind(link(agent(1), agent(1), first.id, {"payments.pay"})), "permission_denied");
  EXPECT_EQ(kind(good, noon + hours(1)), "expired");
  auto revoked = good;
  revoked.revoked = true;
  EXPECT_EQ(kind(revoked), "permission_denied");
  EXPECT_FALSE(check_structure(agent(1), std::vector{good}, noon).has_value());
}

TEST(Delegation, StopsAtDepthTen) {
  std::vector<Delegation> links = {link(ada, agent(1), {}, {"*"})};
  while (links.size() < 9) {
    auto n = static_cast<std::uint8_t>(links.size());
    links.push_back(link(agent(n), agent(static_cast<std::uint8_t>(n + 1)), links.back().id, {"*"}));
  }
  EXPECT_TRUE(check_structure(ada, links, noon).has_value());
  links.push_back(link(agent(9), agent(10), links.back().id, {"*"}));
  EXPECT_FALSE(check_structure(ada, links, noon).has_value());
}

TEST(Delegation, SignsEveryField) {
  auto base = link(ada, agent(1), {}, {"a.b"});
  std::string bytes = base.signed_bytes().value();
  EXPECT_TRUE(bytes.starts_with("creto.delegation\n{"));
  auto differs = [&](auto change) {
    auto other = base;
    change(other);
    return other.signed_bytes().value() != bytes;
  };
  EXPECT_TRUE(differs([](Delegation& d) { d.id = DelegationId::fresh(noon); }));
  EXPECT_TRUE(differs([](Delegation& d) { d.org = "other"; }));
  EXPECT_TRUE(differs([](Delegation& d) { d.delegatee = agent(2); }));
  EXPECT_TRUE(differs([](Delegation& d) { d.parent = d.id; }));
  EXPECT_TRUE(differs([](Delegation& d) { d.permissions.push_back("c"); }));
  EXPECT_TRUE(differs([](Delegation& d) { d.created_at += Nanos(1); }));
  EXPECT_TRUE(differs([](Delegation& d) { d.expires_at += Nanos(1); }));
  EXPECT_TRUE(differs([](Delegation& d) { d.key_id = "other"; }));
  EXPECT_FALSE(differs([](Delegation& d) { d.revoked = true; }));
}

TEST(Token, IsRefusedWhenMalformed) {
  for (std::string bad : {"", "creto1.", "creto1..", "creto1.e30", "creto1.e30.", "creto2.e30.AA", "creto1.e30.AA",
                          "creto1.!.AA", "creto1.W10.AA", "Bearer x"}) {
    auto parsed = parse_token(bad);
    ASSERT_FALSE(parsed.has_value()) << bad;
    EXPECT_EQ(parsed.error().kind(), ErrorKind::unauthenticated);
  }
  EXPECT_FALSE(parse_token(std::string(10 << 20, 'x')).has_value());
}

TEST(Token, HoldsOnlyWithinItsTime) {
  auto key = crypto::SigningKey::generate(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
  auto token = parse_token(make_token(key, ada, "default", noon, hours(1)).value()).value();
  EXPECT_EQ(token.issuer, ada);
  EXPECT_EQ(token.org, "default");
  constexpr Nanos skew = std::chrono::minutes(5);
  EXPECT_TRUE(check_token_time(token, noon, skew).has_value());
  EXPECT_TRUE(check_token_time(token, noon - skew, skew).has_value());
  EXPECT_FALSE(check_token_time(token, noon - skew - Nanos(1), skew).has_value());
  EXPECT_EQ(check_token_time(token, noon + hours(1), skew).error().kind(), ErrorKind::expired);
  token.expires_at = noon + hours(25);
  EXPECT_FALSE(check_token_time(token, noon, skew).has_value());
  EXPECT_FALSE(make_token(key, ada, "default", noon, hours(25)).has_value());
  EXPECT_FALSE(make_token(key, ada, "default", noon, Nanos(0)).has_value());
}

}  // namespace
}  // namespace creto::nhi
