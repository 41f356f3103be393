#pragma once

#include <compare>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/io/files.h"

namespace creto::sql {
class Database;
}

namespace creto::metering {

/// Where a block lies. Later blocks compare greater.
struct BlockAddress {
  std::uint32_t segment = 0;  ///< from 1
  std::uint32_t offset = 0;
  friend auto operator<=>(const BlockAddress&, const BlockAddress&) = default;
};

/// Where an event lies in the log. Later ones compare greater.
struct RowPlace {
  BlockAddress block;
  std::uint32_t index = 0;  ///< in the block
  friend auto operator<=>(const RowPlace&, const RowPlace&) = default;
};

/// What stands for the segments that were cut off the front of a log (docs/formats.md, "Usage base").
struct LogBase {
  std::uint32_t segment = 1;  ///< the first one that is held
  Hash256 before{};           ///< of the last block before it
  Bytes content{};            ///< see CutOff
  Hash256 hash{};             ///< of all that; of one that was read
};
Bytes encode_base(const LogBase& base);
Hash256 hash_of_base(BytesView encoded);
/// Errors: hash_mismatch.
Result<LogBase> decode_base(BytesView encoded);

/// The truth about usage: blocks of events in the order of their arrival, each chained to the one before by its hash
/// (docs/formats.md, "Usage log"). What else the ledger keeps can be made anew from it.
///
/// Of one writer, who alone may ask for `end` and `head`; `read` and `scan` may run on other threads beside it, and on
/// one more `cut` and `remove_cut`.
class BlockLog {
 public:
  static constexpr std::size_t block_bytes_max = 32 << 20;
  static constexpr std::uint64_t segment_bytes_max = 1 << 30;  ///< `seal` before a block would begin beyond it
  /// Where a block lies, what is in it, and its hash, which names everything up to it.
  using Visit = std::function<Result<>(BlockAddress, BytesView, const Hash256&)>;

  virtual ~BlockLog() = default;

  /// Where the very first block lies, or will, or lay before it was cut off.
  virtual BlockAddress begin() const = 0;
  /// Where `append` puts the next block.
  virtual BlockAddress end() const = 0;
  /// The hash of the last block: names everything up to it. Zero where there is none.
  virtual Hash256 head() const = 0;
  /// Durable when it returns. After an error nothing was added, and the next call may succeed. Errors:
  /// resource_exhausted (the disk is full); unavailable; conflict where another process has taken the log over.
  virtual Result<> append(BytesView block) = 0;
  /// The next block begins a new segment. Nothing where the present one is empty.
  virtual Result<> seal() = 0;
  /// Errors: hash_mismatch where the block is damaged.
  virtual Result<Bytes> read(BlockAddress address) = 0;
  /// Each block from `from` on that begins before `until`, in order. `until` is no later than an `end` that was.
  /// Errors: hash_mismatch; those of `visit`.
  virtual Result<> scan(BlockAddress from, BlockAddress until, const Visit& visit) = 0;

  /// The base in force; none where nothing was cut. Errors: hash_mismatch.
  virtual Result<std::optional<LogBase>> base() = 0;
  /// Called with the hash of a base that is durable and not in force yet.
  using Vouch = std::function<Result<>(const Hash256&)>;
  /// From now on `base` stands for all segments before its own. They stay until `remove_cut`, for who is reading them;
  /// a start removes them. Whoever stops this at any moment finds the former state or the new one. Errors: those of
  /// `vouch` and of writing; then the former base is in force, or at the next start the new one. Requires: its segment
  /// has been begun, and is later than that of the base before.
  virtual Result<> cut(const LogBase& base, const Vouch& vouch) = 0;
  virtual Result<> remove_cut() = 0;
};

/// Segments as files `<number>.usage` in `directory`, which is made where absent. Cuts off what a crash left
/// unfinished. Errors: hash_mismatch where durable content is damaged.
Result<std::unique_ptr<BlockLog>> open_block_files(io::FileSystem& files, std::filesystem::path directory);

/// The same, to be read alone, also while another process writes: ends before what is unfinished, changes nothing.
Result<std::unique_ptr<BlockLog>> read_block_files(io::FileSystem& files, std::filesystem::path directory);

/// Rows of a PostgreSQL or SQLite database. Who opens the log last owns it: the one before can append no more.
Result<std::unique_ptr<BlockLog>> open_block_table(sql::Database& database);

}  // namespace creto::metering
