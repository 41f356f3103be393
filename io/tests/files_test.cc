#include <gtest/gtest.h>

#include "creto/io/files.h"
#include "creto/testing/fault_files.h"
#include "creto/testing/temp_dir.h"

namespace creto::io {
namespace {

using testing::FaultFiles;
using testing::TempDir;

std::string text_of(FileSystem& files, const std::filesystem::path& path) {
  auto bytes = files.read(path, 1 << 20);
  return bytes ? std::string(as_text(*bytes)) : "error: " + bytes.error().to_string();
}

TEST(RealFiles, DoWhatThePortSays) {
  TempDir directory;
  FileSystem& files = real_files();
  ASSERT_TRUE(files.create_directories(directory / "a/b"));
  ASSERT_TRUE(files.create_directories(directory / "a/b"));
  const auto path = directory / "a/b/file";
  EXPECT_EQ(files.read(path, 10).error().kind(), ErrorKind::not_found);
  {
    auto file = *files.create(path, 0640);
    ASSERT_TRUE(file->append(as_bytes("hello")));
    ASSERT_TRUE(file->sync());
    EXPECT_EQ(file->size(), 5u);
  }
  {
    auto file = *files.open_append(path);
    EXPECT_EQ(file->size(), 5u);
    ASSERT_TRUE(file->append(as_bytes(" world")));
  }
  EXPECT_EQ(text_of(files, path), "hello world");
  EXPECT_EQ(files.read(path, 5).error().kind(), ErrorKind::too_large);
  EXPECT_EQ(as_text(*files.read_at(path, 6, 100)), "world");
  ASSERT_TRUE(files.truncate(path, 5));
  EXPECT_EQ(*files.size(path), 5u);
  ASSERT_TRUE(files.rename(path, directory / "a/moved"));
  EXPECT_FALSE(*files.exists(path));
  EXPECT_EQ(*files.list(directory / "a"), (std::vector<std::string>{"b", "moved"}));
  ASSERT_TRUE(files.remove(directory / "a/moved"));
  ASSERT_TRUE(files.remove(directory / "a/moved"));
  EXPECT_EQ(files.list(directory / "none").error().kind(), ErrorKind::not_found);
}

TEST(FaultFiles, LoseWhatWasNotSynced) {
  FaultFiles files;
  ASSERT_TRUE(files.create_directories("d"));
  auto file = *files.create("d/f", 0600);
  ASSERT_TRUE(file->append(as_bytes("one")));
  ASSERT_TRUE(file->sync());
  ASSERT_TRUE(files.sync_directory("d"));
  ASSERT_TRUE(file->append(as_bytes("two")));
  ASSERT_TRUE(files.create("d/g", 0600));
  files.crash();
  EXPECT_EQ(text_of(files, "d/f"), "one");
  EXPECT_FALSE(*files.exists("d/g"));
  EXPECT_FALSE(file->append(as_bytes("x")));
}

TEST(WriteDurably, LeavesTheOldContentOrTheNewWhereverItDies) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (std::uint64_t step = 1; step <= 6; ++step) {
      FaultFiles files;
      ASSERT_TRUE(files.create_directories("d"));
      ASSERT_TRUE(write_durably(files, "d/f", as_bytes("old")));
      files.die_at(step);
      const auto written = write_durably(files, "d/f", as_bytes("new and longer"));
      EXPECT_EQ(written.has_value(), step == 6);
      files.crash(seed);
      const auto left = text_of(files, "d/f");
      if (written) {
        EXPECT_EQ(left, "new and longer");
      } else {
        EXPECT_TRUE(left == "old" || left == "new and longer") << left << " after dying at " << step;
      }
    }
  }
}

TEST(WriteDurably, ChangesNothingOnAFullDisk) {
  FaultFiles files;
  ASSERT_TRUE(write_durably(files, "f", as_bytes("old")));
  files.set_disk_bytes_max(5);
  const auto written = write_durably(files, "f", as_bytes("new and longer"));
  EXPECT_EQ(written.error().kind(), ErrorKind::resource_exhausted);
  EXPECT_EQ(text_of(files, "f"), "old");
}

std::vector<std::string> replay(FileSystem& files, Result<std::unique_ptr<Journal>>& journal) {
  std::vector<std::string> records;
  journal = Journal::open(files, "j", [&](BytesView record) -> Result<> {
    records.emplace_back(as_text(record));
    return {};
  });
  return records;
}

TEST(Journal, ReplaysWhatWasAppended) {
  FaultFiles files;
  Result<std::unique_ptr<Journal>> journal;
  EXPECT_TRUE(replay(files, journal).empty());
  ASSERT_TRUE((*journal)->append(as_bytes("a")));
  ASSERT_TRUE((*journal)->append(as_bytes("")));
  ASSERT_TRUE((*journal)->append(as_bytes(std::string(100'000, 'x'))));
  ASSERT_TRUE((*journal)->sync());
  EXPECT_EQ(replay(files, journal), (std::vector<std::string>{"a", "", std::string(100'000, 'x')}));
}

TEST(Journal, KeepsWhatWasSyncedAndInventsNothingWhereverItDies) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    FaultFiles files;
    Result<std::unique_ptr<Journal>> journal;
    replay(files, journal);
    files.die_at(1 + seed % 25);
    std::vector<std::string> appended;
    std::size_t acknowledged = 0;
    for (int i = 0; i < 20; ++i) {
      auto record = "record " + std::to_string(i);
      if (!(*journal)->append(as_bytes(record))) break;
      appended.push_back(std::move(record));
      if (i % 3 == 2) {
        if (!(*journal)->sync()) break;
        acknowledged = appended.size();
      }
    }
    files.crash(seed);
    const auto left = replay(files, journal);
    ASSERT_TRUE(journal) << journal.error().to_string();
    ASSERT_GE(left.size(), acknowledged);
    ASSERT_LE(left.size(), appended.size() + 1);
    for (std::size_t i = 0; i < std::min(left.size(), appended.size()); ++i) EXPECT_EQ(left[i], appended[i]);
    // And it goes on from there.
    ASSERT_TRUE((*journal)->append(as_bytes("after")));
    ASSERT_TRUE((*journal)->sync());
    EXPECT_EQ(replay(files, journal).back(), "after");
  }
}

TEST(Journal, NamesDamageThatNoCrashLeaves) {
  FaultFiles files;
  Result<std::unique_ptr<Journal>> journal;
  replay(files, journal);
  for (const char* record : {"one", "two", "three"}) {
    ASSERT_TRUE((*journal)->append(as_bytes(record)));
    ASSERT_TRUE((*journal)->sync());
  }
  files.flip_bit("j", 8 * (8 + 20 + 1));  // inside "one"
  replay(files, journal);
  ASSERT_FALSE(journal);
  EXPECT_EQ(journal.error().kind(), ErrorKind::hash_mismatch);
}

TEST(Journal, RefusesAnotherFile) {
  FaultFiles files;
  ASSERT_TRUE(write_durably(files, "j", as_bytes("something else entirely")));
  Result<std::unique_ptr<Journal>> journal;
  replay(files, journal);
  ASSERT_FALSE(journal);
  EXPECT_EQ(journal.error().kind(), ErrorKind::invalid_input);
}

}  // namespace
}  // namespace creto::io
