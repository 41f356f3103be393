#include "creto/storage/storage.h"

#include <gtest/gtest.h>

#include "creto/storage/storage_rpc.h"
#include "creto/testing/databases.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/temp_dir.h"
#include "creto/testing/wire.h"
#include "storage_contract.h"

namespace creto::storage {
namespace {

struct Local {
  Local(testing::DatabaseKind kind, io::FileSystem& file_system, StorageOptions options)
      : files(file_system), test_database(kind, clock), database(test_database.open()), settings(std::move(options)) {
    open();
  }
  void open() {
    storage.reset();
    auto made = create_storage(*database, files, keys, access, clock, no_telemetry(), Secret(32), settings);
    EXPECT_TRUE(made) << made.error().to_string();
    if (made) storage = std::move(*made);
  }
  io::FileSystem& files;
  testing::FakeClock clock;
  testing::TestDatabase test_database;
  std::unique_ptr<sql::Database> database;
  MadeKeys keys;
  ListedAccess access;
  StorageOptions settings;
  std::unique_ptr<Storage> storage;
};

struct OnDisk {
  testing::TempDir directory;
  std::unique_ptr<Local> local;
};

StorageFactory local(std::string name, testing::DatabaseKind kind) {
  return {std::move(name), [kind](StorageOptions options) {
            auto all = std::make_shared<OnDisk>();
            options.root = all->directory / "objects";
            all->local = std::make_unique<Local>(kind, io::real_files(), options);
            auto& l = *all->local;
            return StorageUnderTest{all, l.storage.get(), &l.access, &l.clock};
          }};
}

StorageFactory over_the_wire() {
  return {"client", [](StorageOptions options) {
            struct Remote : OnDisk {
              std::unique_ptr<testing::Wire> wire;
              std::unique_ptr<Storage> client;
            };
            auto all = std::make_shared<Remote>();
            options.root = all->directory / "objects";
            all->local = std::make_unique<Local>(testing::DatabaseKind::sqlite, io::real_files(), options);
            auto& l = *all->local;
            all->wire = std::make_unique<testing::Wire>(l.clock);
            register_storage(all->wire->dispatcher(), *l.storage, l.clock);
            all->client = create_storage_client(all->wire->connect());
            return StorageUnderTest{all, all->client.get(), &l.access, &l.clock};
          }};
}

INSTANTIATE_TEST_SUITE_P(, StorageContract,
                         ::testing::Values(local("sqlite", testing::DatabaseKind::sqlite),
                                           local("postgres", testing::DatabaseKind::postgres), over_the_wire()),
                         [](const auto& info) { return info.param.name; });

/// On files that a test can damage, lose and fill.
class StorageOnFaultyDisk : public ::testing::Test {
 protected:
  StorageOnFaultyDisk() {
    StorageOptions options;
    options.root = "/objects";
    options.chunk_bytes = 4096;
    options.public_url = "https://creto.example";
    all_ = std::make_unique<Local>(testing::DatabaseKind::sqlite, files_, options);
  }

  Storage& storage() { return *all_->storage; }
  Result<ObjectMetadata> put(const std::string& key, const std::string& data) {
    return storage().store(ctx_, NewObject{"default", key, agent_, {}, "text/plain", {}, {}, {}}, as_bytes(data));
  }
  Result<Object> get(const std::string& key) { return storage().retrieve(ctx_, StorageRef{"default", key, ""}); }
  static std::string file_of(const ObjectMetadata& m) {
    return "/objects/objects/" + m.ref.version.substr(m.ref.version.size() - 2) + "/" + m.ref.version;
  }
  std::size_t files_there() {
    std::size_t count = files_.list("/objects/tmp")->size();
    const auto directories = *files_.list("/objects/objects");
    for (const auto& directory : directories) count += files_.list("/objects/objects/" + directory)->size();
    return count;
  }

  testing::FaultFiles files_;
  std::unique_ptr<Local> all_;
  const Identity agent_ = Identity::agent(ByteArray<32>{1});
  const Context ctx_ = Context::of(agent_, {agent_});
};

TEST_F(StorageOnFaultyDisk, EveryFlippedBitIsAHashMismatch) {
  const auto stored = put("a", std::string(9000, 'x'));
  ASSERT_TRUE(stored);
  const auto size = *files_.size(file_of(*stored));
  for (std::uint64_t byte = 0; byte < size; byte += 97) {
    files_.flip_bit(file_of(*stored), byte * 8);
    const auto got = get("a");
    EXPECT_FALSE(got) << byte;
    if (!got && byte > 6) {
      EXPECT_EQ(got.error().kind(), ErrorKind::hash_mismatch) << byte << got.error().to_string();
    }
    files_.flip_bit(file_of(*stored), byte * 8);
  }
  EXPECT_TRUE(get("a"));
}

TEST_F(StorageOnFaultyDisk, ACutExtendedOrLostFileIsAHashMismatch) {
  const auto stored = put("a", std::string(9000, 'x'));
  ASSERT_TRUE(stored);
  const auto file = file_of(*stored);
  auto bytes = *files_.read(file, 1 << 20);
  for (const auto size : {bytes.size() - 1, bytes.size() - 4096, std::size_t{1300}, std::size_t{0}}) {
    ASSERT_TRUE(io::write_durably(files_, file, BytesView(bytes).first(size)));
    EXPECT_EQ(get("a").error().kind(), ErrorKind::hash_mismatch) << size;
  }
  auto longer = bytes;
  longer.push_back(0);
  ASSERT_TRUE(io::write_durably(files_, file, longer));
  EXPECT_EQ(get("a").error().kind(), ErrorKind::hash_mismatch);
  ASSERT_TRUE(files_.remove(file));
  EXPECT_EQ(get("a").error().kind(), ErrorKind::hash_mismatch);
}

TEST_F(StorageOnFaultyDisk, FilesExchangedBetweenObjectsAreNoticed) {
  const auto a = put("a", "first");
  const auto b = put("b", "other");
  ASSERT_TRUE(io::write_durably(files_, file_of(*a), *files_.read(file_of(*b), 1 << 20)));
  EXPECT_EQ(get("a").error().kind(), ErrorKind::hash_mismatch);
}

TEST_F(StorageOnFaultyDisk, WhatWasAcknowledgedSurvivesPowerLoss) {
  ASSERT_TRUE(put("a", "acknowledged"));
  files_.crash();
  all_->open();
  const auto got = get("a");
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(as_text(got->data), "acknowledged");
}

TEST_F(StorageOnFaultyDisk, DyingAtAnyStepLeavesAWholeObjectOrNoneAndTheSweeperCleansUp) {
  all_->settings.sweep_grace = Nanos(0);
  for (std::uint64_t step = 1; step < 40; ++step) {
    const auto key = "k" + std::to_string(step);
    files_.die_at(step);
    const auto stored = put(key, std::string(9000, 'x'));
    const bool finished = !files_.dead();
    files_.crash(step);
    all_->open();
    const auto got = get(key);
    EXPECT_EQ(got.has_value(), stored.has_value()) << step << (got ? "" : got.error().to_string());
    ASSERT_TRUE(storage().sweep(ctx_)) << step;
    if (finished) break;
    EXPECT_EQ(files_there(), 0u) << step;
    ASSERT_LT(step, 39u) << "never ran to its end";
  }
  EXPECT_EQ(files_there(), 1u);
}

TEST_F(StorageOnFaultyDisk, AFullDiskRefusesAndKeepsNothing) {
  ASSERT_TRUE(put("a", std::string(5000, 'x')));
  files_.set_disk_bytes_max(9000);
  EXPECT_EQ(put("b", std::string(5000, 'x')).error().kind(), ErrorKind::resource_exhausted);
  EXPECT_TRUE(get("a"));
  EXPECT_EQ(get("b").error().kind(), ErrorKind::permission_denied);
  EXPECT_EQ(files_there(), 1u);
}

TEST_F(StorageOnFaultyDisk, TheSweeperRemovesWhatHasExpiredAndNothingElse) {
  NewObject brief{"default", "brief", agent_, {}, "text/plain", {}, std::chrono::minutes(1), {}};
  ASSERT_TRUE(storage().store(ctx_, brief, as_bytes("x")));
  ASSERT_TRUE(put("stays", "x"));
  NewObject invoice{"default", "invoice", agent_, Classification::compliance, "text/plain", {}, {}, {}};
  ASSERT_TRUE(storage().store(ctx_, invoice, as_bytes("x")));
  all_->clock.advance(std::chrono::minutes(1));
  EXPECT_EQ(*storage().sweep(ctx_), 1u);
  all_->clock.advance(std::chrono::days(91));
  EXPECT_EQ(*storage().sweep(ctx_), 1u);
  EXPECT_TRUE(get("invoice"));
  EXPECT_EQ(files_there(), 1u);
  EXPECT_EQ(storage().quota(ctx_, agent_)->used_bytes, 1u);
}

TEST_F(StorageOnFaultyDisk, TheSweeperLeavesRunningUploadsAlone) {
  all_->settings.sweep_grace = Nanos(0);
  all_->open();
  auto upload = storage().begin_upload(ctx_, NewObject{"default", "a", agent_, {}, "text/plain", {}, {}, {}});
  ASSERT_TRUE(upload);
  ASSERT_TRUE((*upload)->append(as_bytes("x")));
  all_->clock.advance(std::chrono::hours(2));
  EXPECT_EQ(*storage().sweep(ctx_), 0u);
  ASSERT_TRUE((*upload)->finish());
  EXPECT_TRUE(get("a"));
}

std::string target_of(const std::string& url) { return url.substr(std::string("https://creto.example").size()); }

TEST_F(StorageOnFaultyDisk, APresignedUrlReadsOneObjectUntilItExpires) {
  ASSERT_TRUE(put("dir/a b&c", "content"));
  const auto url =
      storage().presigned_url(ctx_, StorageRef{"default", "dir/a b&c", ""}, PresignedGet{}, std::chrono::minutes(5));
  ASSERT_TRUE(url) << url.error().to_string();
  std::string read;
  const auto sink = [&](BytesView piece) -> Result<> {
    read += as_text(piece);
    return {};
  };
  const auto got = storage().presigned_get(target_of(*url), sink);
  ASSERT_TRUE(got) << got.error().to_string();
  EXPECT_EQ(read, "content");
  const auto target = target_of(*url);
  for (std::size_t i = 0; i < target.size(); ++i) {
    auto changed = target;
    changed[i] = changed[i] == 'a' ? 'b' : 'a';
    EXPECT_FALSE(storage().presigned_get(changed, sink)) << i;
  }
  all_->clock.advance(std::chrono::minutes(5));
  EXPECT_EQ(storage().presigned_get(target, sink).error().kind(), ErrorKind::expired);
}

TEST_F(StorageOnFaultyDisk, APresignedUrlWritesWhatItSaysAndNoMore) {
  const PresignedPut put_operation{"text/plain", 5, Classification::agent_data};
  const auto url =
      storage().presigned_url(ctx_, StorageRef{"default", "new", ""}, put_operation, std::chrono::minutes(5));
  ASSERT_TRUE(url) << url.error().to_string();
  const auto send = [&](std::string data, std::string_view type) {
    bool sent = false;
    return storage().presigned_put(target_of(*url), type,
                                   [&, data](std::span<std::uint8_t> buffer) -> Result<std::size_t> {
                                     if (sent) return std::size_t{0};
                                     sent = true;
                                     std::copy(data.begin(), data.end(), buffer.begin());
                                     return data.size();
                                   });
  };
  EXPECT_EQ(send("123456", "text/plain").error().kind(), ErrorKind::too_large);
  EXPECT_EQ(send("12345", "text/html").error().kind(), ErrorKind::permission_denied);
  const auto stored = send("12345", "text/plain");
  ASSERT_TRUE(stored) << stored.error().to_string();
  EXPECT_EQ(stored->owner, agent_);
  EXPECT_EQ(as_text(get("new")->data), "12345");
}

}  // namespace
}  // namespace creto::storage
