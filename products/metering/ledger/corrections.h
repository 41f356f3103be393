#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "block_log.h"
#include "creto/common/bytes.h"
#include "layout.h"

namespace creto::metering {

/// Events that count for nothing, as seen up to some place in the log. Ascending, each once.
using TakenOut = std::vector<RowPlace>;

/// Which events other ones have taken out (docs/formats.md, "Corrections"). Events never change: what they mean changes
/// by this alone, and it follows from the log. An event is taken out once, and by one that came after it.
///
/// Thread-safe. `add` and `drop_from` are the ledger's writer's.
class Corrections {
 public:
  struct Entry {
    RowPlace by;         ///< the correction, ...
    RowPlace of;         ///< ... and what it takes out
    bool voids = false;  ///< the correction counts for nothing itself
    friend bool operator==(const Entry&, const Entry&) = default;
  };

  /// Requires: `of` is not taken out, and `by` comes after those of all calls before.
  void add(const Entry& entry);
  /// Forgets those that came at `place` or later: they did not become durable.
  void drop_from(const RowPlace& place);
  void clear() { drop_from({}); }
  /// Forgets corrections that lie before `first`, and with them what they took out, which lies before them.
  void forget_before(BlockAddress first);

  /// Which correction took it out, if any.
  std::optional<RowPlace> by(const RowPlace& of) const;
  std::size_t count() const;
  std::vector<Entry> before(BlockAddress until) const;
  /// What counts for nothing for who sees the log up to, not including, `until`. Null where that is nothing.
  std::shared_ptr<const TakenOut> taken_out(BlockAddress until) const;

  /// Entries that came before `until`.
  void write(BlockAddress until, Bytes& out) const;
  /// Takes what `write` wrote. Requires: there are none yet. Errors: hash_mismatch.
  Result<> read(layout::Reader& reader);

 private:
  std::size_t count_before(BlockAddress until) const;

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  ///< by `by`
  std::map<RowPlace, RowPlace> by_;
  /// The last answer of `taken_out`: nearly always the next one, too.
  mutable std::size_t known_count_ = 0;
  mutable std::shared_ptr<const TakenOut> known_;
};

}  // namespace creto::metering
