#include "memory_contract.h"

#include <limits>

#include "creto/testing/result.h"

namespace creto::memory {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using testing::kind;

using Texts = std::vector<std::string>;

}  // namespace

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MemoryContract);

Texts MemoryContract::found(const Query& query) {
  Texts texts;
  const auto result = memory().query(as(agent_), query);
  EXPECT_TRUE(result) << result.error().to_string();
  if (result) {
    for (const auto& one : *result) texts.push_back(one.entry.content);
  }
  return texts;
}

TEST_P(MemoryContract, ReturnsWhatWasStoredWithItsModel) {
  auto given = entry("the ledger answered 201", MemoryType::tool_result);
  given.metadata = {{"tool", "pay"}};
  given.ttl = hours(1);
  const auto id = put(given);
  const auto got = memory().get(as(agent_), agent_, id);
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(got->content, "the ledger answered 201");
  EXPECT_EQ(got->type, MemoryType::tool_result);
  EXPECT_EQ(got->metadata.at("tool"), "pay");
  EXPECT_EQ(got->embedding_model, "creto-hash-384");
  EXPECT_EQ(got->created_at, clock().now());
  EXPECT_EQ(got->expires_at, clock().now() + hours(1));
}

TEST_P(MemoryContract, FindsTheMostSimilarFirst) {
  put(entry("the garden was watered in the morning"));
  put(entry("invoice RKD-5520 of Rackdale Hardware is for server racks"));
  put(entry("server racks were delivered"));
  EXPECT_EQ(found(query("Rackdale Hardware invoice for server racks")),
            (Texts{"invoice RKD-5520 of Rackdale Hardware is for server racks", "server racks were delivered"}));
  auto strict = query("Rackdale Hardware invoice for server racks");
  strict.relevance_threshold = 0.99F;
  EXPECT_EQ(found(strict), Texts{});
  auto one = query("Rackdale Hardware invoice for server racks");
  one.limit = 1;
  EXPECT_EQ(found(one).size(), 1u);
  auto all = query("Rackdale Hardware invoice for server racks");
  all.relevance_threshold = 0.0F;
  EXPECT_EQ(found(all).size(), 3u);
}

TEST_P(MemoryContract, FiltersByTypeAndTime) {
  put(entry("alpha beta", MemoryType::reasoning));
  const auto between = clock().now() + minutes(5);
  clock().advance(minutes(10));
  put(entry("alpha beta gamma", MemoryType::context));
  auto typed = query("alpha beta");
  typed.types = {MemoryType::context, MemoryType::long_term};
  EXPECT_EQ(found(typed), Texts{"alpha beta gamma"});
  auto before = query("alpha beta");
  before.to = between;
  EXPECT_EQ(found(before), Texts{"alpha beta"});
  auto after = query("alpha beta");
  after.from = between;
  EXPECT_EQ(found(after), Texts{"alpha beta gamma"});
}

TEST_P(MemoryContract, QueriesSeeWhatWasStoredDeletedOrExpiredSinceTheLastOne) {
  const auto first = put(entry("alpha one"));
  EXPECT_EQ(found(query("alpha")).size(), 1u);
  put(entry("alpha two"));
  EXPECT_EQ(found(query("alpha")).size(), 2u);
  ASSERT_TRUE(memory().remove(as(agent_), agent_, first));
  EXPECT_EQ(found(query("alpha")), Texts{"alpha two"});
  auto brief = entry("alpha three");
  brief.ttl = minutes(1);
  const auto expiring = put(brief);
  EXPECT_EQ(found(query("alpha")).size(), 2u);
  clock().advance(minutes(1));
  EXPECT_EQ(found(query("alpha")), Texts{"alpha two"});
  EXPECT_EQ(kind(memory().get(as(agent_), agent_, expiring)), "not_found");
  EXPECT_EQ(kind(memory().remove(as(agent_), agent_, first)), "not_found");
}

TEST_P(MemoryContract, ABatchIsStoredWholeOrNotAtAll) {
  const auto ids = memory().store_batch(as(agent_), {entry("alpha one"), entry("alpha two")});
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->size(), 2u);
  EXPECT_EQ(kind(memory().store_batch(as(agent_), {entry("alpha three"), entry("")})), "invalid_input");
  auto foreign = entry("alpha four");
  foreign.agent = other_;
  EXPECT_EQ(kind(memory().store_batch(as(agent_), {entry("alpha three"), foreign})), "invalid_input");
  EXPECT_EQ(kind(memory().store_batch(as(agent_), {})), "invalid_input");
  EXPECT_EQ(found(query("alpha")).size(), 2u);
}

TEST_P(MemoryContract, TheSameKeyStoresOnce) {
  auto ctx = as(agent_);
  ctx.idempotency_key = "k";
  ctx.request_hash[0] = 1;
  const std::vector<NewEntry> batch = {entry("first"), entry("second")};
  const auto first = memory().store_batch(ctx, batch);
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_EQ(memory().store_batch(ctx, batch).value(), *first);
  ctx.request_hash[0] = 2;
  EXPECT_EQ(kind(memory().store_batch(ctx, {entry("other")})), "conflict");
  EXPECT_EQ(found(query("first second")).size(), 2u);
}

TEST_P(MemoryContract, NobodyReadsOrWritesAnothersMemoryWithoutPermission) {
  const auto id = put(entry("alpha secret"));
  EXPECT_EQ(kind(memory().get(as(other_), agent_, id)), "permission_denied");
  EXPECT_EQ(kind(memory().query(as(other_), query("alpha"))), "permission_denied");
  EXPECT_EQ(kind(memory().get_reasoning(as(other_), agent_, "a")), "permission_denied");
  EXPECT_EQ(kind(memory().store(as(other_), entry("planted"))), "permission_denied");
  EXPECT_EQ(kind(memory().remove(as(other_), agent_, id)), "permission_denied");
  EXPECT_EQ(kind(memory().get(as(other_), other_, id)), "not_found") << "not under one's own name either";
  under_test_.access->permit(other_.text() + " memory.read " + agent_.text());
  EXPECT_TRUE(memory().get(as(other_), agent_, id));
  EXPECT_EQ(memory().query(as(other_), query("alpha"))->size(), 1u);
  EXPECT_EQ(kind(memory().store(as(other_), entry("planted"))), "permission_denied");
}

TEST_P(MemoryContract, ReadsByOthersAreAudited) {
  const auto id = put(entry("alpha"));
  const auto records = [&] {
    const auto rows = sql::read(*under_test_.database, Context(), [](sql::Tx& tx) {
      return tx.query("SELECT count(*) FROM audit_pending WHERE entry LIKE '%memory.read%'");
    });
    return rows->front().integer(0);
  };
  EXPECT_TRUE(memory().get(as(agent_), agent_, id));
  EXPECT_EQ(records(), 0);
  EXPECT_FALSE(memory().get(as(other_), agent_, id));
  EXPECT_EQ(records(), 1);
}

TEST_P(MemoryContract, GivesTheReasoningForAnActionWithWhatBearsOnIt) {
  auto old = entry("I ask to pay Rackdale Hardware 25000 USD for server racks", MemoryType::reasoning);
  old.metadata = {{"action_id", "pay:1"}};
  put(old);
  put(entry("Rackdale Hardware delivered the server racks", MemoryType::observation));
  put(entry("the garden is green"));
  const auto found = memory().get_reasoning(as(agent_), agent_, "pay:1");
  ASSERT_TRUE(found) << found.error().to_string();
  ASSERT_TRUE(found->has_value());
  EXPECT_EQ((*found)->text, old.content);
  ASSERT_EQ((*found)->related.size(), 1u);
  EXPECT_EQ((*found)->related[0].content, "Rackdale Hardware delivered the server racks");
  EXPECT_GT((*found)->confidence, 0.7F);
  clock().advance(hours(24 * 30));
  EXPECT_LT((*memory().get_reasoning(as(agent_), agent_, "pay:1"))->confidence, (*found)->confidence);
  EXPECT_FALSE(memory().get_reasoning(as(agent_), agent_, "pay:2")->has_value());
}

TEST_P(MemoryContract, TakesAnEmbeddingThatIsMadeElsewhere) {
  auto given = entry("anything");
  given.embedding.assign(384, 0.0F);
  given.embedding[3] = 2.0F;
  EXPECT_TRUE(memory().store(as(agent_), given));
  given.embedding.pop_back();
  EXPECT_EQ(kind(memory().store(as(agent_), given)), "invalid_input");
  given.embedding.assign(384, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(kind(memory().store(as(agent_), given)), "invalid_input");
}

TEST_P(MemoryContract, HoldsNoMoreThanItsLimit) {
  under_test_ = GetParam().make({.entries_per_agent_max = 2});
  const auto first = put(entry("alpha one"));
  put(entry("alpha two"));
  EXPECT_EQ(kind(memory().store(as(agent_), entry("alpha three"))), "resource_exhausted");
  ASSERT_TRUE(memory().remove(as(agent_), agent_, first));
  EXPECT_TRUE(memory().store(as(agent_), entry("alpha three")));
}

TEST_P(MemoryContract, RefusesBadInput) {
  EXPECT_EQ(kind(memory().store(as(agent_), entry(""))), "invalid_input");
  EXPECT_EQ(kind(memory().store(as(agent_), entry("\xff"))), "invalid_input");
  EXPECT_EQ(kind(memory().store(as(agent_), entry(std::string(64 * 1024 + 1, 'x')))), "invalid_input");
  auto wordy = entry("x");
  wordy.metadata = {{"k", std::string(5000, 'v')}};
  EXPECT_EQ(kind(memory().store(as(agent_), wordy)), "invalid_input");
  auto dead = entry("x");
  dead.ttl = Nanos(-1);
  EXPECT_EQ(kind(memory().store(as(agent_), dead)), "invalid_input");
  for (const std::size_t limit : {std::size_t{0}, std::size_t{101}}) {
    auto bad = query("x");
    bad.limit = limit;
    EXPECT_EQ(kind(memory().query(as(agent_), bad)), "invalid_input");
  }
  auto bad = query("x");
  bad.relevance_threshold = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(kind(memory().query(as(agent_), bad)), "invalid_input");
  EXPECT_EQ(kind(memory().get_reasoning(as(agent_), agent_, "")), "invalid_input");
}

TEST_P(MemoryContract, IsHealthy) { EXPECT_EQ(memory().health().health, Health::healthy); }

}  // namespace creto::memory
