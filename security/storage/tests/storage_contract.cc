#include "storage_contract.h"

#include <algorithm>

#include "creto/crypto/hash.h"
#include "creto/testing/result.h"

namespace creto::storage {
namespace {

using std::chrono::days;
using std::chrono::hours;
using std::chrono::minutes;
using testing::kind;

StorageRef at(const std::string& key) { return StorageRef{"default", key, ""}; }

}  // namespace

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(StorageContract);

TEST_P(StorageContract, ReturnsWhatWasStored) {
  auto spec = object("reports/2026.txt");
  spec.metadata = {{"year", "2026"}};
  const auto stored = storage().store(as(agent_), spec, as_bytes("hello"));
  ASSERT_TRUE(stored) << stored.error().to_string();
  EXPECT_EQ(stored->size_bytes, 5u);
  EXPECT_EQ(stored->content_hash, crypto::blake3(as_bytes("hello")));
  EXPECT_EQ(stored->expires_at, clock().now() + days(90));
  const auto got = storage().retrieve(as(agent_), at("reports/2026.txt"));
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(as_text(got->data), "hello");
  EXPECT_EQ(got->metadata.metadata.at("year"), "2026");
  EXPECT_EQ(got->metadata.content_type, "text/plain");
  EXPECT_EQ(got->metadata.ref, stored->ref);
}

TEST_P(StorageContract, MakesAKeyWhereNoneIsGiven) {
  const auto stored = storage().store(as(agent_), object(""), as_bytes("x"));
  ASSERT_TRUE(stored);
  EXPECT_EQ(*get(stored->ref.key), "x");
}

TEST_P(StorageContract, StreamsManyChunksBothWays) {
  std::string content;
  for (int i = 0; i < 20'000; ++i) content += static_cast<char>('a' + i % 26);
  std::size_t sent = 0;
  const auto stored =
      storage().store_stream(as(agent_), object("big"), [&](std::span<std::uint8_t> buffer) -> Result<std::size_t> {
        const auto size = std::min({buffer.size(), content.size() - sent, std::size_t{1777}});
        std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(sent), size, buffer.begin());
        sent += size;
        return size;
      });
  ASSERT_TRUE(stored) << stored.error().to_string();
  std::string received;
  const auto got = storage().retrieve_stream(as(agent_), at("big"), [&](BytesView piece) -> Result<> {
    received += as_text(piece);
    return {};
  });
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(received, content);
  EXPECT_EQ(got->size_bytes, content.size());
}

TEST_P(StorageContract, AFailedSourceLeavesNothing) {
  const auto stored =
      storage().store_stream(as(agent_), object("half"), [&](std::span<std::uint8_t>) -> Result<std::size_t> {
        return Error(Product::platform, ErrorKind::cancelled, "gone");
      });
  EXPECT_EQ(kind(stored), "cancelled");
  EXPECT_EQ(kind(get("half")), "permission_denied");
  EXPECT_EQ(storage().quota(as(agent_), agent_)->used_bytes, 0u);
}

TEST_P(StorageContract, KeepsVersionsUntilTheyAreDeleted) {
  const auto first = put("a", "one");
  clock().advance(std::chrono::milliseconds(2));
  const auto second = put("a", "second");
  ASSERT_TRUE(first && second);
  EXPECT_EQ(*get("a"), "second");
  EXPECT_EQ(*get("a", first->ref.version), "one");
  const auto versions = storage().versions(as(agent_), at("a"));
  ASSERT_EQ(versions->size(), 2u);
  EXPECT_EQ((*versions)[0].ref, second->ref);
  ASSERT_TRUE(storage().remove(as(agent_), second->ref));
  EXPECT_EQ(*get("a"), "one");
  ASSERT_TRUE(storage().remove(as(agent_), at("a")));
  EXPECT_EQ(kind(get("a")), "permission_denied");
  EXPECT_EQ(kind(storage().remove(as(agent_), at("a"))), "permission_denied");
}

TEST_P(StorageContract, ListsTheLatestOfEachPageByPage) {
  for (const auto* key : {"a/1", "a/2", "b/1"}) ASSERT_TRUE(put(key, "x"));
  clock().advance(std::chrono::milliseconds(2));
  ASSERT_TRUE(put("a/1", "xx"));
  auto compliance = object("c/1");
  compliance.classification = Classification::compliance;
  ASSERT_TRUE(storage().store(as(agent_), compliance, as_bytes("y")));
  ListQuery query{agent_, {}, "", "", "", 2};
  auto page = storage().list(as(agent_), query);
  ASSERT_TRUE(page) << page.error().to_string();
  ASSERT_EQ(page->objects.size(), 2u);
  EXPECT_EQ(page->objects[0].ref.key, "a/1");
  EXPECT_EQ(page->objects[0].size_bytes, 2u);
  query.cursor = page->next_cursor;
  page = storage().list(as(agent_), query);
  ASSERT_EQ(page->objects.size(), 2u);
  EXPECT_EQ(page->objects[1].ref.key, "c/1");
  EXPECT_EQ(page->next_cursor, "");
  query = ListQuery{agent_, Classification::compliance, "", "", "", 10};
  EXPECT_EQ(storage().list(as(agent_), query)->objects.size(), 1u);
  query = ListQuery{agent_, {}, "default", "a/", "", 10};
  EXPECT_EQ(storage().list(as(agent_), query)->objects.size(), 2u);
  query.cursor = "nonsense!";
  EXPECT_EQ(kind(storage().list(as(agent_), query)), "invalid_input");
}

TEST_P(StorageContract, OthersNeedPolicysPermission) {
  ASSERT_TRUE(put("a", "mine"));
  EXPECT_EQ(kind(storage().retrieve(as(other_), at("a"))), "permission_denied");
  EXPECT_EQ(kind(storage().retrieve(as(other_), at("nothing"))), "permission_denied");
  EXPECT_EQ(kind(storage().remove(as(other_), at("a"))), "permission_denied");
  EXPECT_EQ(kind(storage().list(as(other_), ListQuery{agent_, {}, "", "", "", 10})), "permission_denied");
  EXPECT_EQ(kind(storage().store(as(other_), object("b"), as_bytes("x"))), "permission_denied");
  under_test_.access->permit(other_.text() + " storage.read default/a");
  EXPECT_TRUE(storage().retrieve(as(other_), at("a")));
}

TEST_P(StorageContract, AKeyBelongsToItsFirstOwner) {
  ASSERT_TRUE(put("a", "mine"));
  auto taken = object("a");
  taken.owner = other_;
  EXPECT_EQ(kind(storage().store(as(other_), taken, as_bytes("x"))), "already_exists");
  EXPECT_EQ(*get("a"), "mine");
}

TEST_P(StorageContract, WhatHasExpiredIsGone) {
  auto spec = object("a");
  spec.ttl = minutes(1);
  ASSERT_TRUE(storage().store(as(agent_), spec, as_bytes("x")));
  clock().advance(minutes(1));
  EXPECT_EQ(kind(get("a")), "permission_denied");
}

TEST_P(StorageContract, ComplianceObjectsStaySevenYears) {
  auto spec = object("invoice.pdf");
  spec.classification = Classification::compliance;
  const auto stored = storage().store(as(agent_), spec, as_bytes("pdf"));
  ASSERT_TRUE(stored);
  EXPECT_EQ(stored->retained_until, clock().now() + days(2555));
  EXPECT_EQ(kind(storage().remove(as(agent_), at("invoice.pdf"))), "conflict");
  spec.key = "short";
  spec.ttl = hours(1);
  EXPECT_EQ(kind(storage().store(as(agent_), spec, as_bytes("x"))), "invalid_input");
  spec.key = "ever";
  spec.ttl = Nanos(0);
  ASSERT_TRUE(storage().store(as(agent_), spec, as_bytes("x")));
  clock().advance(days(2555));
  EXPECT_TRUE(storage().remove(as(agent_), at("ever")));
}

TEST_P(StorageContract, HoldsTheQuotaOfAnOwner) {
  StorageOptions small;
  small.quota_bytes = 10;
  start(small);
  ASSERT_TRUE(put("a", "12345678"));
  EXPECT_EQ(kind(put("b", "123")), "quota_exceeded");
  EXPECT_EQ(storage().quota(as(agent_), agent_)->used_bytes, 8u);
  ASSERT_TRUE(put("b", "12"));
  EXPECT_EQ(kind(put("c", "1")), "quota_exceeded");
  ASSERT_TRUE(storage().remove(as(agent_), at("a")));
  EXPECT_TRUE(put("c", "1"));
  EXPECT_EQ(storage().quota(as(agent_), agent_)->used_bytes, 3u);
}

TEST_P(StorageContract, RefusesWhatItsClassDoesNotHold) {
  auto spec = object("a");
  spec.classification = Classification::compliance;
  const Bytes large(10 * 1024 * 1024 + 1);
  EXPECT_EQ(kind(storage().store(as(agent_), spec, large)), "too_large");
  EXPECT_EQ(storage().quota(as(agent_), agent_)->used_bytes, 0u);
}

TEST_P(StorageContract, RefusesAContentOtherThanExpected) {
  auto spec = object("a");
  spec.expected_hash = crypto::blake3(as_bytes("x"));
  EXPECT_EQ(kind(storage().store(as(agent_), spec, as_bytes("y"))), "hash_mismatch");
  EXPECT_TRUE(storage().store(as(agent_), spec, as_bytes("x")));
}

TEST_P(StorageContract, ChangesCustomMetadata) {
  ASSERT_TRUE(put("a", "x"));
  const auto changed = storage().update_metadata(as(agent_), at("a"), {{"k", "v"}});
  ASSERT_TRUE(changed) << changed.error().to_string();
  EXPECT_EQ(storage().get_metadata(as(agent_), at("a"))->metadata.at("k"), "v");
}

TEST_P(StorageContract, RefusesBadInput) {
  for (const auto* key : {"/a", "a//b", "../a", "a\nb", "\xff"}) {
    EXPECT_EQ(kind(put(key, "x")), "invalid_input") << key;
  }
  EXPECT_EQ(kind(put(std::string(513, 'k'), "x")), "invalid_input");
  auto spec = object("a");
  spec.bucket = "Bad_Bucket";
  EXPECT_EQ(kind(storage().store(as(agent_), spec, as_bytes("x"))), "invalid_input");
  spec = object("a");
  spec.metadata = {{"k", std::string(9000, 'v')}};
  EXPECT_EQ(kind(storage().store(as(agent_), spec, as_bytes("x"))), "invalid_input");
  spec = object("a");
  spec.ttl = Nanos(-1);
  EXPECT_EQ(kind(storage().store(as(agent_), spec, as_bytes("x"))), "invalid_input");
  EXPECT_EQ(kind(storage().retrieve(as(agent_), StorageRef{"default", "a", "no-version"})), "invalid_input");
  EXPECT_TRUE(storage().list(as(agent_), ListQuery{agent_, {}, "", "", "", 10})->objects.empty());
}

TEST_P(StorageContract, AnEmptyObjectIsAnObject) {
  ASSERT_TRUE(put("empty", ""));
  EXPECT_EQ(*get("empty"), "");
}

TEST_P(StorageContract, IsHealthy) { EXPECT_EQ(storage().health().health, Health::healthy); }

}  // namespace creto::storage
