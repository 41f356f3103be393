#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "columns.h"
#include "creto/common/telemetry.h"
#include "ledger.h"

namespace creto::metering {

/// The columns of everything that a ledger has: a file per full segment, and parts in memory of the one that grows,
/// made when they are asked for. All of it follows from the log; a file that is missing, damaged or of another log is
/// made again.
///
/// The growing segment is kept as few immutable parts, each more than twice as large (in bytes of the log) as the next:
/// what came since the last call becomes a part, together with those before it that are not much larger. So readers
/// take no lock, a file and a part are the same thing, and an event is read again a few times only.
///
/// Thread-safe. Making columns never holds up the ledger; what was handed out stays valid.
class ColumnStore {
 public:
  using All = std::vector<std::shared_ptr<const Columns>>;

  /// Opens what is in `directory`. All references must outlive it. Errors: those of files.
  static Result<std::unique_ptr<ColumnStore>> open(Ledger& ledger, io::FileSystem& files,
                                                   std::filesystem::path directory, Telemetry& telemetry);

  /// Makes the file of a segment to which nothing is added any more; nothing where it exists. For the thread that
  /// learns of it first: else the next `all` does it.
  Result<> seal(std::uint32_t segment);
  /// Every segment that is full.
  Result<> seal_all();
  /// Columns of every event whose `append` has returned, in the order of the log.
  Result<All> all();
  /// Removes those of segments that the ledger no longer has.
  Result<> forget_cut();
  /// Calls `use` with `all()`, of which nothing is removed meanwhile; once more where that finds a column damaged,
  /// which is then made again.
  Result<> use(const std::function<Result<>(const All&)>& use);
  /// The events of the given attributions (ascending) with a time before `until`, in the order of the log.
  Result<std::vector<RowPlace>> locate(std::span<const AttributionNumber> whose, Instant until);
  /// Where the events with these ids lie; none of an id that no event has. `whose` (ascending) are the attributions
  /// that their agents have: an event that brought its id along is looked for among theirs alone.
  Result<std::vector<std::optional<RowPlace>>> find(std::span<const EventId> ids,
                                                    std::span<const AttributionNumber> whose);
  std::size_t memory_bytes() const;

 private:
  ColumnStore(Ledger& ledger, io::FileSystem& files, std::filesystem::path directory, Telemetry& telemetry);
  Result<> seal_unlocked(std::uint32_t segment, const Ledger::Held& held);
  Result<Bytes> image(BlockAddress from, BlockAddress until, const Ledger::Held& held) const;
  Result<> drop_damaged();
  std::filesystem::path path_of(std::uint32_t segment) const;

  Ledger& ledger_;
  io::FileSystem& files_;
  const std::filesystem::path directory_;
  Telemetry& telemetry_;
  const KeyHash log_;  ///< names the ledger's log

  mutable std::mutex mutex_;
  std::map<std::uint32_t, std::shared_ptr<const Columns>> sealed_;
  struct Part {
    std::shared_ptr<const Columns> columns;
    std::size_t bytes;
  };
  std::vector<Part> parts_;  ///< of the segment that grows
};

/// Up to where all of these see the log.
BlockAddress end_of(const ColumnStore::All& columns);
/// The rows of `columns` that count for nothing, ascending. `taken_out` may be null. Errors: those of reading columns.
Result<std::vector<std::uint32_t>> rows_taken_out(const Columns& columns, const TakenOut* taken_out);

}  // namespace creto::metering
