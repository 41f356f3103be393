#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>

#include "cache_key.h"
#include "cedar/policy_set.h"
#include "creto/common/time.h"
#include "fingerprint.h"

namespace creto::authz {

/// What is remembered of an allowed request besides that it was.
struct CacheNote {
  std::uint64_t rate = 0;                        ///< number of the rate it depends on; 0: none
  std::uint64_t entities = 0;                    ///< `Trail::entities`
  const cedar::PlannedPolicy* policy = nullptr;  ///< the permit; for the decision log
};

/// Remembers which requests policies allowed, and a note with each, nothing else. Sets of 8 slots; a key may stand in
/// two of them, so that none overflows while others are empty. A slot is one cache line: it holds the key's
/// fingerprint, which no other key has (see `FingerprintKey`), and is read under a sequence counter, so readers take no
/// lock and never see half an entry. A few bits of each key of a set stand together in a table small enough to stay
/// near the processor, so that a lookup fetches one line from far away. An older version of policies or entities is
/// another key and so never hits.
class DecisionCache {
 public:
  /// At least so many; 0 remembers nothing.
  explicit DecisionCache(std::size_t entries);

  /// Where one key is looked for.
  class Place {
    friend DecisionCache;
    Fingerprint key{};
    std::size_t likely = 0;  ///< a slot
  };
  /// Begins to fetch what is likely to have the key: for who has something else to do meanwhile.
  Place look(const CacheKey& key) const;
  /// The note it was inserted with.
  std::optional<CacheNote> find(const Place& place, Monotonic now);
  /// Replaces an entry that has ended, else the one that was used longest ago. Does nothing where another thread is
  /// just writing there.
  void insert(const Place& place, Monotonic now, Nanos ttl, CacheNote note = {});

 private:
  static constexpr std::size_t ways = 8;
  /// Of the keys in one set, 16 bits each, four to a word.
  using Tags = std::array<std::atomic<std::uint64_t>, ways / 4>;
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> sequence{0};  ///< odd while it is written
    std::array<std::atomic<std::uint64_t>, 2> name{};
    std::atomic<std::int64_t> ends_at{0};  ///< 0: empty
    std::atomic<std::int64_t> used_at{0};  ///< coarse
    std::atomic<std::uint64_t> rate{0};
    std::atomic<std::uint64_t> entities{0};
    std::atomic<const cedar::PlannedPolicy*> policy{nullptr};
  };
  static_assert(sizeof(Slot) == 64);
  struct Freed {
    void operator()(Slot* slots) const { std::free(slots); }
  };
  std::array<std::size_t, 2> sets_of(const Fingerprint& key) const;
  std::size_t victim_for(const Fingerprint& key, std::int64_t tick) const;
  static std::optional<CacheNote> read(const Slot& slot, const Fingerprint& key, Monotonic now);

  /// Calls `use` with each slot that may have the key until it says that it is enough.
  template <class F>
  void each_likely(const Fingerprint& key, F&& use) const;
  std::optional<CacheNote> use(std::size_t slot, const Fingerprint& key, Monotonic now);

  const FingerprintKey secret_;
  std::size_t count_ = 0;
  std::unique_ptr<Tags[]> tags_;
  std::unique_ptr<Slot[], Freed> slots_;  ///< `ways` for each set
};

}  // namespace creto::authz
