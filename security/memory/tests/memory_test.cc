#include "creto/memory/memory.h"

#include <gtest/gtest.h>

#include "creto/memory/memory_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/wire.h"
#include "memory_contract.h"

namespace creto::memory {
namespace {

struct Local {
  Local(testing::DatabaseKind kind, MemoryOptions options)
      : test_database(kind, clock), database(test_database.open()), embedder(create_hash_embedder()) {
    auto made = create_memory(*database, *embedder, access, clock, no_telemetry(), options);
    EXPECT_TRUE(made) << made.error().to_string();
    memory = std::move(*made);
  }
  testing::FakeClock clock;
  testing::TestDatabase test_database;
  std::unique_ptr<sql::Database> database;
  std::unique_ptr<Embedder> embedder;
  ListedAccess access;
  std::unique_ptr<Memory> memory;
};

MemoryFactory local(std::string name, testing::DatabaseKind kind) {
  return {std::move(name), [kind](MemoryOptions options) {
            auto all = std::make_shared<Local>(kind, options);
            return MemoryUnderTest{all, all->memory.get(), &all->access, &all->clock, all->database.get()};
          }};
}

MemoryFactory over_the_wire() {
  return {"client", [](MemoryOptions options) {
            struct Remote {
              explicit Remote(MemoryOptions o) : local(testing::DatabaseKind::sqlite, o) {}
              Local local;
              testing::Wire wire{local.clock};
              std::unique_ptr<Memory> client;
            };
            auto all = std::make_shared<Remote>(options);
            register_memory(all->wire.dispatcher(), *all->local.memory);
            all->client = create_memory_client(all->wire.connect());
            auto& l = all->local;
            return MemoryUnderTest{all, all->client.get(), &l.access, &l.clock, l.database.get()};
          }};
}

INSTANTIATE_TEST_SUITE_P(, MemoryContract,
                         ::testing::Values(local("sqlite", testing::DatabaseKind::sqlite),
                                           local("postgres", testing::DatabaseKind::postgres), over_the_wire()),
                         [](const auto& info) { return info.param.name; });

/// A model that does not answer, or answers with another dimension than it said.
class OtherEmbedder final : public Embedder {
 public:
  const std::string& model() const override { return name; }
  std::size_t dimension() const override { return 2; }
  float default_threshold() const override { return 0.5F; }
  Result<std::vector<std::vector<float>>> embed(const Context&, const std::vector<std::string>& texts) override {
    if (down) return Error(Product::platform, ErrorKind::unavailable, "embedding failed");
    return std::vector<std::vector<float>>(texts.size(), {1.0F, 0.0F});
  }
  const std::string name = "other-2";
  bool down = false;
};

TEST(Memory, NeverComparesVectorsOfDifferentModels) {
  Local all(testing::DatabaseKind::sqlite, {});
  const auto agent = Identity::agent(ByteArray<32>{1});
  const auto ctx = Context::of(agent, {agent});
  ASSERT_TRUE(all.memory->store(ctx, NewEntry{agent, "alpha", {}, {}, {}, {}}));
  OtherEmbedder embedder;
  const auto later = std::move(*create_memory(*all.database, embedder, all.access, all.clock, no_telemetry()));
  EXPECT_TRUE(later->query(ctx, Query{agent, "alpha", 10, {}, {}, {}, {}})->empty());
  ASSERT_TRUE(later->store(ctx, NewEntry{agent, "beta", {}, {}, {}, {}}));
  EXPECT_EQ(later->query(ctx, Query{agent, "alpha", 10, {}, {}, {}, {}})->size(), 1u);
  EXPECT_EQ(all.memory->query(ctx, Query{agent, "alpha", 10, {}, {}, {}, {}})->front().entry.content, "alpha");
}

TEST(Memory, StoresNothingWhereTheModelDoesNotAnswer) {
  Local all(testing::DatabaseKind::sqlite, {});
  const auto agent = Identity::agent(ByteArray<32>{1});
  const auto ctx = Context::of(agent, {agent});
  OtherEmbedder embedder;
  const auto memory = std::move(*create_memory(*all.database, embedder, all.access, all.clock, no_telemetry()));
  embedder.down = true;
  EXPECT_EQ(memory->store(ctx, NewEntry{agent, "alpha", {}, {}, {}, {}}).error().kind(), ErrorKind::unavailable);
  embedder.down = false;
  EXPECT_TRUE(memory->query(ctx, Query{agent, "alpha", 10, {}, {}, {}, {}})->empty());
}

TEST(Memory, SweepsWhatHasExpired) {
  Local all(testing::DatabaseKind::sqlite, {});
  const auto agent = Identity::agent(ByteArray<32>{1});
  const auto ctx = Context::of(agent, {agent});
  ASSERT_TRUE(all.memory->store(ctx, NewEntry{agent, "alpha", {}, {}, {}, std::chrono::minutes(1)}));
  ASSERT_TRUE(all.memory->store(ctx, NewEntry{agent, "alpha too", {}, {}, {}, {}}));
  EXPECT_EQ(*all.memory->sweep(ctx), 0u);
  all.clock.advance(std::chrono::minutes(2));
  EXPECT_EQ(*all.memory->sweep(ctx), 1u);
  EXPECT_EQ(all.memory->query(ctx, Query{agent, "alpha", 10, {}, {}, {}, {}})->size(), 1u);
}

}  // namespace
}  // namespace creto::memory
