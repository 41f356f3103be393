#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "block_log.h"
#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/io/files.h"

namespace creto::metering {

/// A keyed 128-bit hash of organization, source and idempotency key. Nobody without the hash key finds two keys with
/// the same one, and by chance that does not happen: 10^12 keys meet with probability 10^-15.
struct KeyHash {
  std::uint64_t high = 0, low = 0;
  friend auto operator<=>(const KeyHash&, const KeyHash&) = default;
};

/// What is remembered of an event for the idempotency window.
struct KnownKey {
  KeyHash key;
  std::uint32_t segment = 0;
  std::uint32_t offset = 0;     ///< of its block
  std::uint32_t index = 0;      ///< in the block
  std::uint32_t arrived_s = 0;  ///< since 1970
  std::uint64_t content = 0;    ///< of its hash
};
static_assert(sizeof(KnownKey) == 40);

/// Finds an idempotency key among hundreds of millions: new keys in a table in memory, older ones in sorted runs on
/// disk behind filters (16 bits a key), so that a key never seen costs a few cache lines and no disk.
///
/// A run covers a range of segments of the usage log and follows from it: one that is missing or damaged at the start
/// is made again. Not thread-safe, except that `write_run` and `merge` may run beside all other calls.
class KeyIndex {
 public:
  /// Opens the runs in `directory`; damaged and overlapping ones are removed. Errors: those of files.
  static Result<std::unique_ptr<KeyIndex>> open(io::FileSystem& files, std::filesystem::path directory);
  ~KeyIndex();

  /// The last segment whose keys are all in runs from the first one on; 0: none.
  std::uint32_t covered() const;

  /// Brings what `find` will look at into the cache.
  void prefetch(const KeyHash& key) const;
  /// The newest entry that arrived at `since_s` or later. Errors: those of reading a run.
  Result<std::optional<KnownKey>> find(const KeyHash& key, std::uint32_t since_s) const;
  void insert(const KnownKey& entry);
  /// Takes back the entry that was inserted last. Requires: it is of `key`, and no `freeze` came between.
  void erase_last(const KeyHash& key);

  /// The entries of `segment`, all that were inserted since the last call. `find` sees them until a run of them is
  /// adopted; later ones go to a new table.
  class Table;
  std::shared_ptr<const Table> freeze(std::uint32_t segment);
  class Run;
  using Runs = std::vector<std::shared_ptr<const Run>>;
  /// A run of frozen entries. Thread-safe.
  Result<std::shared_ptr<const Run>> write_run(std::uint32_t segment, const Table& frozen) const;
  /// One run of neighbouring ones, without what arrived before `since_s`. Thread-safe.
  Result<std::shared_ptr<const Run>> merge(const Runs& runs, std::uint32_t since_s) const;
  /// Puts a run in the place of the frozen entries or older runs that it was made of, whose files it removes.
  Result<> adopt(std::shared_ptr<const Run> run);
  /// Neighbouring runs that should become one; empty where there are none.
  Runs mergeable() const;
  /// Forgets runs in which nothing arrived at `since_s` or later.
  Result<> forget_before(std::uint32_t since_s);

  std::size_t memory_bytes() const;
  std::size_t runs() const;

 private:
  KeyIndex(io::FileSystem& files, std::filesystem::path directory);
  std::filesystem::path path_of(std::uint32_t first, std::uint32_t last) const;

  io::FileSystem& files_;
  const std::filesystem::path directory_;
  std::shared_ptr<Table> table_;
  struct Frozen {
    std::uint32_t segment;
    std::shared_ptr<const Table> table;
  };
  std::vector<Frozen> frozen_;  ///< oldest first
  Runs runs_;                   ///< by segments, oldest first
};

}  // namespace creto::metering
