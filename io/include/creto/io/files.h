#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"

namespace creto::io {

/// An open file for writing at its end. Nothing is durable before `sync`. Not thread-safe.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual Result<> append(BytesView bytes) = 0;
  virtual Result<> sync() = 0;
  virtual std::uint64_t size() const = 0;
};

/// The little of a file system that durable formats need, as a port, so that a test can drop what was not synced.
/// Thread-safe. Paths are used as they are. A new, renamed or removed name is durable after `sync_directory`.
///
/// Errors: not_found; already_exists; resource_exhausted (disk full, quota); permission_denied; unavailable (other
/// I/O).
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  /// Opens a new, empty file (an old one is emptied). Permissions are `mode`.
  virtual Result<std::unique_ptr<WritableFile>> create(const std::filesystem::path& path, unsigned mode = 0600) = 0;
  /// Opens for appending; created where absent.
  virtual Result<std::unique_ptr<WritableFile>> open_append(const std::filesystem::path& path,
                                                            unsigned mode = 0600) = 0;
  /// Errors: too_large over `bytes_max`.
  virtual Result<Bytes> read(const std::filesystem::path& path, std::uint64_t bytes_max) = 0;
  /// Up to `size` bytes from `offset`; fewer only at the end.
  virtual Result<Bytes> read_at(const std::filesystem::path& path, std::uint64_t offset, std::size_t size) = 0;
  virtual Result<std::uint64_t> size(const std::filesystem::path& path) = 0;
  virtual Result<bool> exists(const std::filesystem::path& path) = 0;
  virtual Result<> truncate(const std::filesystem::path& path, std::uint64_t size) = 0;  ///< and syncs the file
  virtual Result<> rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  virtual Result<> remove(const std::filesystem::path& path) = 0;  ///< not_found is a success
  /// The directory and its parents, each synced into its parent; those that exist are left alone. Mode 0700.
  virtual Result<> create_directories(const std::filesystem::path& path) = 0;
  virtual Result<> sync_directory(const std::filesystem::path& path) = 0;
  /// Names of files and directories in it, sorted.
  virtual Result<std::vector<std::string>> list(const std::filesystem::path& path) = 0;
};

/// The machine's own. Lives for the whole process.
FileSystem& real_files();

/// After success the file holds exactly `bytes`, also after a power loss; at every moment before, it holds the old
/// content or the new, never a mixture: temporary file beside it, sync, rename, sync of the directory.
Result<> write_durably(FileSystem& files, const std::filesystem::path& path, BytesView bytes, unsigned mode = 0600);

/// An append-only sequence of records that survives a crash: what was appended before a successful `sync` is there
/// after it; a torn tail is recognised by its checksum and cut off at open. Format: docs/formats.md, "Journal". Not
/// thread-safe.
class Journal {
 public:
  static constexpr std::size_t record_bytes_max = 16 << 20;

  /// Calls `replay` for each intact record, in order.
  /// Errors: invalid_input (not a journal); hash_mismatch (damage before the tail: not what a crash leaves); what
  /// `replay` returns.
  static Result<std::unique_ptr<Journal>> open(FileSystem& files, const std::filesystem::path& path,
                                               const std::function<Result<>(BytesView)>& replay);

  /// Calls `use` for each intact record of a journal's bytes, in order, and returns where they end: the size of `file`
  /// unless its tail is torn. Changes nothing, so also for what another process is writing. The records are parts of
  /// `file`. Errors: invalid_input (not a journal); what `use` returns.
  static Result<std::size_t> scan(BytesView file, const std::function<Result<>(BytesView)>& use);

  /// Errors: too_large; else those of FileSystem. After a failed append or sync the journal refuses further use: reopen
  /// it.
  Result<> append(BytesView record);
  Result<> sync();
  std::uint64_t size_bytes() const;

 private:
  explicit Journal(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  std::unique_ptr<WritableFile> file_;
  std::uint64_t durable_ = 0;
  bool broken_ = false;
};

}  // namespace creto::io
