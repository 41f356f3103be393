#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "creto/io/files.h"

namespace creto::testing {

/// A file system in memory that keeps apart what was written and what is durable, and loses the difference on demand:
/// kill -9 alone forgives a missing fsync. Thread-safe.
class FaultFiles final : public io::FileSystem {
 public:
  FaultFiles();
  ~FaultFiles() override;

  /// Power loss: only synced content under synced names is left. With a seed other than 0 each unsynced change survives
  /// or not, files may be torn, as disks do; 0 drops them all. Open files become useless. Lifts `die_at` and
  /// `disk_bytes_max`.
  void crash(std::uint64_t seed = 0);

  /// The `step`-th changing call from now (1 is the next) and all after it fail with unavailable: a process that died
  /// there.
  void die_at(std::uint64_t step);
  /// How many changing calls there were since the last `die_at` or construction.
  std::uint64_t steps() const;
  bool dead() const;
  /// Writes that would make all files larger than this together fail with resource_exhausted.
  void set_disk_bytes_max(std::uint64_t bytes);
  /// While true, a `sync` of a file waits: a disk that stalls.
  void stall_syncs(bool stall);
  /// The next `sync` of a file fails with unavailable; what was written stays as it is.
  void fail_sync();
  /// Flips one bit of a file, durably: damage.
  void flip_bit(const std::filesystem::path& path, std::uint64_t bit);

  Result<std::unique_ptr<io::WritableFile>> create(const std::filesystem::path& path, unsigned mode) override;
  Result<std::unique_ptr<io::WritableFile>> open_append(const std::filesystem::path& path, unsigned mode) override;
  Result<Bytes> read(const std::filesystem::path& path, std::uint64_t bytes_max) override;
  Result<Bytes> read_at(const std::filesystem::path& path, std::uint64_t offset, std::size_t size) override;
  Result<std::uint64_t> size(const std::filesystem::path& path) override;
  Result<bool> exists(const std::filesystem::path& path) override;
  Result<> truncate(const std::filesystem::path& path, std::uint64_t size) override;
  Result<> rename(const std::filesystem::path& from, const std::filesystem::path& to) override;
  Result<> remove(const std::filesystem::path& path) override;
  Result<> create_directories(const std::filesystem::path& path) override;
  Result<> sync_directory(const std::filesystem::path& path) override;
  Result<std::vector<std::string>> list(const std::filesystem::path& path) override;

 private:
  struct Inode;
  class Open;
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  Result<> change();
  Result<std::shared_ptr<Inode>> find(const std::filesystem::path& path) const;
  std::uint64_t used() const;
  Result<std::unique_ptr<io::WritableFile>> open(const std::filesystem::path& path, bool empty);

  mutable std::mutex mutex_;
  std::condition_variable unstalled_;
  bool stalled_ = false, sync_fails_ = false;
  Names names_;          // what a process sees
  Names durable_names_;  // what is left after a crash
  std::uint64_t steps_ = 0;
  std::uint64_t die_at_ = 0;
  std::uint64_t disk_bytes_max_ = UINT64_MAX;
  std::uint64_t generation_ = 0;
};

}  // namespace creto::testing
