#include "vault_contract.h"

#include <atomic>
#include <thread>

#include "creto/testing/result.h"

namespace creto::vault {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;
using testing::kind;

SecretRef ref(const std::string& text) {
  auto parsed = SecretRef::parse(text);
  EXPECT_TRUE(parsed) << text;
  return *parsed;
}

}  // namespace

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(VaultContract);

Result<SecretInfo> VaultContract::create(const std::string& text, const std::string& value, const Identity& owner) {
  return vault().create_secret(as(owner), NewSecret{ref(text), Secret::copy_of(value), {}, {}});
}

std::size_t VaultContract::audited(const std::string& text) {
  const auto rows = sql::read(*under_test_.database, Context(),
                              [&](sql::Tx& tx) { return tx.query("SELECT entry FROM audit_pending"); });
  EXPECT_TRUE(rows);
  std::size_t count = 0;
  for (const auto& row : *rows) count += row.text(0).find(text) != std::string::npos ? 1 : 0;
  return count;
}

TEST_P(VaultContract, HandsTheOwnerItsSecretBack) {
  NewSecret secret{ref("agents/invoice/LEDGER_TOKEN"), Secret::copy_of("s3cret"), {}, clock().now() + hours(1)};
  secret.metadata = SecretMetadata{SecretType::token, "of the ledger", {{"team", "finance"}}};
  const auto made = vault().create_secret(as(ada_), std::move(secret));
  ASSERT_TRUE(made) << made.error().to_string();
  const auto got = vault().get_secret(as(ada_), ref("agents/invoice/LEDGER_TOKEN"));
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(got->value.reveal_text(), "s3cret");
  EXPECT_EQ(got->info.owner, ada_);
  EXPECT_EQ(got->info.version, 1u);
  EXPECT_EQ(got->info.metadata.type, SecretType::token);
  EXPECT_EQ(got->info.metadata.labels.at("team"), "finance");
  EXPECT_EQ(got->info.expires_at, clock().now() + hours(1));
}

TEST_P(VaultContract, RefusesASecondSecretOfOneName) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  EXPECT_EQ(kind(create("a/B", "2", ada_)), "already_exists");
  EXPECT_EQ(vault().get_secret(as(ada_), ref("a/B"))->value.reveal_text(), "1");
}

TEST_P(VaultContract, ARepeatedCreateWithTheSameKeyIsTheFirst) {
  auto ctx = as(ada_);
  ctx.idempotency_key = "k1";
  const auto first = vault().create_secret(ctx, NewSecret{ref("a/B"), Secret::copy_of("1"), {}, {}});
  ASSERT_TRUE(first) << first.error().to_string();
  const auto second = vault().create_secret(ctx, NewSecret{ref("a/B"), Secret::copy_of("1"), {}, {}});
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(second->created_at, first->created_at);
}

TEST_P(VaultContract, KeepsVersionsAndErasesTheOldest) {
  ASSERT_TRUE(create("a/B", "v1", ada_));
  for (int i = 2; i <= 12; ++i) {
    const auto next =
        vault().update_secret(as(ada_), SecretUpdate{ref("a/B"), Secret::copy_of("v" + std::to_string(i)), {}, {}, 0});
    ASSERT_TRUE(next) << next.error().to_string();
    EXPECT_EQ(next->version, static_cast<std::uint64_t>(i));
  }
  EXPECT_EQ(vault().get_secret(as(ada_), ref("a/B"))->value.reveal_text(), "v12");
  EXPECT_EQ(vault().get_secret(as(ada_), ref("a/B"), 3)->value.reveal_text(), "v3");
  EXPECT_EQ(kind(vault().get_secret(as(ada_), ref("a/B"), 2)), "not_found");
  EXPECT_EQ(kind(vault().get_secret(as(ada_), ref("a/B"), 13)), "not_found");
}

TEST_P(VaultContract, AnUpdateOfAnOlderVersionIsAConflict) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  ASSERT_TRUE(vault().update_secret(as(ada_), SecretUpdate{ref("a/B"), Secret::copy_of("2"), {}, {}, 1}));
  EXPECT_EQ(kind(vault().update_secret(as(ada_), SecretUpdate{ref("a/B"), Secret::copy_of("3"), {}, {}, 1})),
            "conflict");
  EXPECT_EQ(vault().get_secret(as(ada_), ref("a/B"))->value.reveal_text(), "2");
}

TEST_P(VaultContract, OthersNeedPolicysPermissionAndLearnNothingWithout) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  EXPECT_EQ(kind(vault().get_secret(as(bob_), ref("a/B"))), "permission_denied");
  EXPECT_EQ(kind(vault().get_secret(as(bob_), ref("a/NOTHING"))), "permission_denied");
  EXPECT_EQ(kind(vault().update_secret(as(bob_), SecretUpdate{ref("a/B"), Secret::copy_of("2"), {}, {}, 0})),
            "permission_denied");
  EXPECT_EQ(kind(vault().delete_secret(as(bob_), ref("a/B"))), "permission_denied");
  EXPECT_EQ(kind(vault().access_log(as(bob_), ref("a/B"), 0, 10)), "permission_denied");
  access().permit(bob_.text() + " secret.read a/B");
  EXPECT_EQ(vault().get_secret(as(bob_), ref("a/B"))->value.reveal_text(), "1");
  access().down = true;
  EXPECT_FALSE(vault().get_secret(as(bob_), ref("a/B")));
}

TEST_P(VaultContract, SeveralSecretsComeAllOrNone) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  ASSERT_TRUE(create("a/C", "2", ada_));
  ASSERT_TRUE(create("b/D", "3", bob_));
  const auto both = vault().get_secrets(as(ada_), {ref("a/C"), ref("a/B")});
  ASSERT_TRUE(both);
  EXPECT_EQ((*both)[0].value.reveal_text(), "2");
  EXPECT_EQ((*both)[1].value.reveal_text(), "1");
  EXPECT_EQ(kind(vault().get_secrets(as(ada_), {ref("a/B"), ref("b/D")})), "permission_denied");
  EXPECT_EQ(kind(vault().get_secrets(as(ada_), {ref("a/B"), ref("a/B")})), "invalid_input");
  EXPECT_EQ(kind(vault().get_secrets(as(ada_), {})), "invalid_input");
}

TEST_P(VaultContract, ListsWhatTheCallerMayReadPageByPage) {
  for (const auto* text : {"a/A", "a/B", "a/x/C", "ab/D", "b/E"}) ASSERT_TRUE(create(text, "1", ada_));
  ASSERT_TRUE(create("a/BOBS", "1", bob_));
  const auto names = [&](std::string_view prefix, std::string_view after, std::size_t limit) {
    std::vector<std::string> out;
    const auto found = vault().list_secrets(as(ada_), prefix, after, limit);
    EXPECT_TRUE(found);
    for (const auto& info : *found) out.push_back(info.ref.text());
    return out;
  };
  EXPECT_EQ(names("", "", 100), (std::vector<std::string>{"a/A", "a/B", "a/x/C", "ab/D", "b/E"}));
  EXPECT_EQ(names("a", "", 2), (std::vector<std::string>{"a/A", "a/B"}));
  EXPECT_EQ(names("a", "a/B", 2), (std::vector<std::string>{"a/x/C", "ab/D"}));
  EXPECT_EQ(names("b", "", 2), (std::vector<std::string>{"b/E"}));
  EXPECT_EQ(kind(vault().list_secrets(as(ada_), "", "", 0)), "invalid_input");
}

TEST_P(VaultContract, AnExpiredSecretIsNotHandedOut) {
  NewSecret secret{ref("a/B"), Secret::copy_of("1"), {}, clock().now() + seconds(10)};
  ASSERT_TRUE(vault().create_secret(as(ada_), std::move(secret)));
  clock().advance(seconds(10));
  EXPECT_EQ(kind(vault().get_secret(as(ada_), ref("a/B"))), "expired");
}

TEST_P(VaultContract, ADeletedSecretIsGoneFromDelegationsTooAndALaterOneIsAnother) {
  ASSERT_TRUE(create("a/B", "old", ada_));
  const auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, hours(1), {}});
  ASSERT_TRUE(lent);
  ASSERT_TRUE(vault().delete_secret(as(ada_), ref("a/B")));
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), lent->id, {})), "not_found");
  ASSERT_TRUE(create("a/B", "new", ada_));
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), lent->id, {})), "not_found");
}

TEST_P(VaultContract, ADelegationLendsToItsDelegateeAlone) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  const auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, hours(1), {}});
  ASSERT_TRUE(lent) << lent.error().to_string();
  EXPECT_EQ(lent->status, DelegationStatus::active);
  const auto used = vault().use_delegation(as(agent_), lent->id, {});
  ASSERT_TRUE(used) << used.error().to_string();
  EXPECT_EQ(used->secrets.at(0).value.reveal_text(), "1");
  EXPECT_EQ(used->delegation.uses, 1u);
  EXPECT_EQ(kind(vault().use_delegation(as(bob_), lent->id, {})), "not_found");
  EXPECT_EQ(kind(vault().get_delegation(as(bob_), lent->id)), "not_found");
  EXPECT_EQ(vault().get_delegation(as(ada_), lent->id)->uses, 1u);
}

TEST_P(VaultContract, OnlyWhatOneMayDelegateCanBeLent) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  EXPECT_EQ(kind(vault().create_delegation(as(bob_), DelegationRequest{bob_, {ref("a/B")}, hours(1), {}})),
            "permission_denied");
}

TEST_P(VaultContract, ADelegationEndsByTimeByRevocationAndByUse) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  const auto lend = [&](DelegationRestrictions restrictions) {
    auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, minutes(5), restrictions});
    EXPECT_TRUE(lent) << lent.error().to_string();
    return lent->id;
  };
  DelegationRestrictions single;
  single.single_use = true;
  const auto once = lend(single);
  EXPECT_TRUE(vault().use_delegation(as(agent_), once, {}));
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), once, {})), "resource_exhausted");
  EXPECT_EQ(vault().get_delegation(as(ada_), once)->status, DelegationStatus::exhausted);

  DelegationRestrictions two;
  two.max_uses = 2;
  const auto twice = lend(two);
  EXPECT_TRUE(vault().use_delegation(as(agent_), twice, {}));
  EXPECT_TRUE(vault().use_delegation(as(agent_), twice, {}));
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), twice, {})), "resource_exhausted");

  const auto revoked = lend({});
  EXPECT_EQ(vault().revoke_delegation(as(ada_), revoked)->status, DelegationStatus::revoked);
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), revoked, {})), "permission_denied");
  EXPECT_TRUE(vault().revoke_delegation(as(ada_), revoked)) << "repeating is fine";

  const auto timed = lend({});
  clock().advance(minutes(5));
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), timed, {})), "expired");
  EXPECT_EQ(vault().get_delegation(as(agent_), timed)->status, DelegationStatus::expired);
}

TEST_P(VaultContract, ADelegationBoundToASandboxServesNoOther) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  DelegationRestrictions bound;
  bound.bound_sandbox = sandbox_;
  const auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, hours(1), bound});
  ASSERT_TRUE(lent);
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), lent->id, other_sandbox_)), "permission_denied");
  EXPECT_EQ(kind(vault().use_delegation(as(agent_), lent->id, {})), "permission_denied");
  EXPECT_TRUE(vault().use_delegation(as(agent_), lent->id, sandbox_));
  EXPECT_EQ(vault().get_delegation(as(agent_), lent->id)->uses, 1u) << "refused uses do not count";
}

TEST_P(VaultContract, ManyAtOnceGetNoMoreUsesThanThereAre) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  DelegationRestrictions three;
  three.max_uses = 3;
  const auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, hours(1), three});
  ASSERT_TRUE(lent);
  std::atomic<int> served = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      if (vault().use_delegation(as(agent_), lent->id, {})) ++served;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(served, 3);
}

TEST_P(VaultContract, ASandboxGetsWhatItsAgentOwnsWasLentOrMayRead) {
  ASSERT_TRUE(create("own/A", "1", agent_));
  ASSERT_TRUE(create("lent/B", "2", ada_));
  ASSERT_TRUE(create("policy/C", "3", ada_));
  DelegationRestrictions one;
  one.max_uses = 1;
  const auto lent = vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("lent/B")}, minutes(10), one});
  ASSERT_TRUE(lent);
  access().permit(agent_.text() + " secret.read policy/C");
  const auto refs = std::vector{ref("own/A"), ref("lent/B"), ref("policy/C")};
  const auto given = vault().get_delegated_secrets(as(agent_), sandbox_, refs, hours(1));
  ASSERT_TRUE(given) << given.error().to_string();
  ASSERT_EQ(given->secrets.size(), 3u);
  EXPECT_EQ(given->secrets[1].value.reveal_text(), "2");
  EXPECT_EQ(given->delegation.restrictions.bound_sandbox, sandbox_);
  EXPECT_TRUE(given->delegation.restrictions.memory_only);
  EXPECT_EQ(given->delegation.expires_at, clock().now() + minutes(10)) << "no longer than what it rests on";
  EXPECT_EQ(vault().get_delegation(as(ada_), lent->id)->status, DelegationStatus::exhausted);
  EXPECT_FALSE(vault().get_delegated_secrets(as(agent_), other_sandbox_, refs, hours(1)));
  EXPECT_EQ(given->delegation.id, delegation_of(sandbox_));
  EXPECT_EQ(vault().get_delegated_secrets(as(agent_), sandbox_, {ref("own/A")}, hours(1)).error().kind(),
            ErrorKind::already_exists);
  // Given to the sandbox for its life: the same delegation serves it again, and no other, until it is revoked.
  EXPECT_TRUE(vault().use_delegation(as(agent_), given->delegation.id, sandbox_));
  EXPECT_FALSE(vault().use_delegation(as(agent_), given->delegation.id, other_sandbox_));
  ASSERT_TRUE(vault().revoke_delegation(as(agent_), given->delegation.id));
  EXPECT_FALSE(vault().use_delegation(as(agent_), given->delegation.id, sandbox_));
}

TEST_P(VaultContract, NamesEveryAccessAndNoValue) {
  ASSERT_TRUE(create("a/B", "the-very-value", ada_));
  ASSERT_TRUE(vault().get_secret(as(ada_), ref("a/B")));
  EXPECT_FALSE(vault().get_secret(as(bob_), ref("a/B")));
  const auto log = vault().access_log(as(ada_), ref("a/B"), 0, 10);
  ASSERT_TRUE(log);
  ASSERT_EQ(log->size(), 3u);
  EXPECT_EQ((*log)[0].who, bob_);
  EXPECT_FALSE((*log)[0].allowed);
  EXPECT_EQ((*log)[1].operation, "secret.read");
  EXPECT_EQ((*log)[2].operation, "secret.create");
  EXPECT_EQ(vault().access_log(as(ada_), ref("a/B"), (*log)[1].sequence, 10)->size(), 1u);
  EXPECT_EQ(audited("secret:a/B"), 3u);
  EXPECT_EQ(audited("the-very-value"), 0u);
}

TEST_P(VaultContract, RefusesBadInputAndKeepsNothingOfIt) {
  const auto refused = [&](SecretRef bad, const std::string& value) {
    return kind(vault().create_secret(as(ada_), NewSecret{std::move(bad), Secret::copy_of(value), {}, {}}));
  };
  for (const auto& bad :
       {SecretRef{"", "A"}, SecretRef{"../x", "A"}, SecretRef{"/a", "A"}, SecretRef{"a//b", "A"}, SecretRef{"a", ""},
        SecretRef{"a", "1A"}, SecretRef{"a", "A-B"}, SecretRef{"a\n", "A"}, SecretRef{std::string(257, 'a'), "A"},
        SecretRef{"a", std::string(129, 'A')}, SecretRef{"a/", "A"}}) {
    EXPECT_EQ(refused(bad, "1"), "invalid_input") << bad.text();
  }
  EXPECT_EQ(refused(ref("a/B"), ""), "invalid_input");
  EXPECT_EQ(refused(ref("a/B"), std::string(64 * 1024 + 1, 'x')), "too_large");
  NewSecret past{ref("a/B"), Secret::copy_of("1"), {}, clock().now()};
  EXPECT_EQ(kind(vault().create_secret(as(ada_), std::move(past))), "invalid_input");
  NewSecret wordy{ref("a/B"), Secret::copy_of("1"), {}, {}};
  wordy.metadata.description.assign(1025, 'x');
  EXPECT_EQ(kind(vault().create_secret(as(ada_), std::move(wordy))), "invalid_input");
  for (const auto ttl : {Nanos(0), Nanos(-1), Nanos(hours(25))}) {
    EXPECT_EQ(kind(vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, ttl, {}})),
              "invalid_input");
  }
  DelegationRestrictions to_disk;
  to_disk.memory_only = false;
  EXPECT_EQ(kind(vault().create_delegation(as(ada_), DelegationRequest{agent_, {ref("a/B")}, hours(1), to_disk})),
            "invalid_input");
  EXPECT_TRUE(vault().list_secrets(as(ada_), "", "", 10)->empty());
}

TEST_P(VaultContract, OrganizationsDoNotSeeEachOther) {
  ASSERT_TRUE(create("a/B", "1", ada_));
  auto elsewhere = as(ada_);
  elsewhere.org = "other";
  Vault& theirs = under_test_.elsewhere ? *under_test_.elsewhere : vault();
  EXPECT_FALSE(theirs.get_secret(elsewhere, ref("a/B")));
  EXPECT_TRUE(theirs.list_secrets(elsewhere, "", "", 10)->empty());
}

TEST_P(VaultContract, IsHealthy) { EXPECT_EQ(vault().health().health, Health::healthy); }

}  // namespace creto::vault
