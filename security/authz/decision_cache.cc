#include "decision_cache.h"

#include <sys/mman.h>

#include <bit>
#include <new>

namespace creto::authz {
namespace {

constexpr std::size_t huge_page = 2 << 20;
constexpr Nanos use_grain = std::chrono::milliseconds(100);

}  // namespace

DecisionCache::DecisionCache(std::size_t entries) {
  if (entries == 0) return;
  // With half of the slots to spare, no key finds both its sets full, unless chance wills it once in millions.
  count_ = (2 * entries + ways - 1) / ways;
  tags_ = std::make_unique<Tags[]>(count_);
  // Read at random: with pages of 4 KiB most of a lookup would go into finding the page.
  const std::size_t bytes = (count_ * ways * sizeof(Slot) + huge_page - 1) / huge_page * huge_page;
  void* memory = std::aligned_alloc(huge_page, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  slots_.reset(static_cast<Slot*>(memory));
  std::uninitialized_default_construct_n(slots_.get(), count_ * ways);
}

std::array<std::size_t, 2> DecisionCache::sets_of(const Fingerprint& key) const {
  const auto scaled = [this](std::uint64_t hash) {
    return static_cast<std::size_t>(static_cast<unsigned __int128>(hash) * count_ >> 64);
  };
  return {scaled(key.place), scaled(std::rotl(key.place, 32))};
}

namespace {

constexpr std::uint64_t lanes = 0x0001'0001'0001'0001;

/// The bits of `place` that choose no set.
std::uint64_t tag_of(const Fingerprint& key) { return key.place & 0xffff; }

}  // namespace

template <class F>
void DecisionCache::each_likely(const Fingerprint& key, F&& use) const {
  for (const std::size_t set : sets_of(key)) {
    for (std::size_t half = 0; half < ways / 4; ++half) {
      // The top bit of each lane that is equal, and perhaps of one above it: the slot itself tells.
      const std::uint64_t unequal = tags_.get()[set][half].load(std::memory_order_relaxed) ^ (tag_of(key) * lanes);
      std::uint64_t equal = (unequal - lanes) & ~unequal & (lanes << 15);
      for (; equal != 0; equal &= equal - 1)
        if (use(set * ways + half * 4 + static_cast<std::size_t>(std::countr_zero(equal)) / 16)) return;
    }
  }
}

DecisionCache::Place DecisionCache::look(const CacheKey& key) const {
  Place place;
  if (count_ == 0) return place;
  place.key = secret_.of(key.words());
  each_likely(place.key, [&](std::size_t slot) {
    place.likely = slot;
    return true;
  });
  __builtin_prefetch(&slots_.get()[place.likely]);
  return place;
}

std::optional<CacheNote> DecisionCache::read(const Slot& slot, const Fingerprint& key, Monotonic now) {
  const std::uint64_t before = slot.sequence.load(std::memory_order_acquire);
  // Acquire loads, so that the sequence is read again only after all of them; on x86 they cost nothing.
  const std::uint64_t different = (slot.name[0].load(std::memory_order_acquire) ^ key.name[0]) |
                                  (slot.name[1].load(std::memory_order_acquire) ^ key.name[1]);
  const std::int64_t ends_at = slot.ends_at.load(std::memory_order_acquire);
  const CacheNote note{slot.rate.load(std::memory_order_acquire), slot.entities.load(std::memory_order_acquire),
                       slot.policy.load(std::memory_order_acquire)};
  const bool torn = (before & 1) != 0 || slot.sequence.load(std::memory_order_relaxed) != before;
  if (torn || different != 0 || ends_at <= now.time_since_epoch().count()) return std::nullopt;
  return note;
}

std::optional<CacheNote> DecisionCache::use(std::size_t at, const Fingerprint& key, Monotonic now) {
  Slot& slot = slots_.get()[at];
  const auto note = read(slot, key, now);
  if (!note) return note;
  const auto tick = now.time_since_epoch().count();
  if (tick - slot.used_at.load(std::memory_order_relaxed) > use_grain.count())
    slot.used_at.store(tick, std::memory_order_relaxed);
  return note;
}

std::optional<CacheNote> DecisionCache::find(const Place& place, Monotonic now) {
  if (count_ == 0) return std::nullopt;
  auto note = use(place.likely, place.key, now);
  if (!note) {
    each_likely(place.key, [&](std::size_t slot) {
      note = use(slot, place.key, now);
      return note.has_value();
    });
  }
  return note;
}

/// Where `key` goes: into the first of its sets while that has room to spare, so that most are found there; else into
/// the one with more room; else in the place of what was used longest ago.
std::size_t DecisionCache::victim_for(const Fingerprint& key, std::int64_t tick) const {
  struct Choice {
    std::size_t free = 0, at = 0;  ///< `at`: the first free, or else the oldest
    std::int64_t used_at = INT64_MAX;
  };
  const auto choose = [&](std::size_t set) {
    Choice choice;
    for (std::size_t at = set * ways; at < (set + 1) * ways; ++at) {
      const bool free = slots_.get()[at].ends_at.load(std::memory_order_relaxed) <= tick;
      const std::int64_t used_at = free ? INT64_MIN : slots_.get()[at].used_at.load(std::memory_order_relaxed);
      choice.free += free;
      if (used_at >= choice.used_at) continue;
      choice.at = at;
      choice.used_at = used_at;
    }
    return choice;
  };
  const auto sets = sets_of(key);
  const Choice first = choose(sets[0]);
  if (first.free >= 2) return first.at;
  const Choice second = choose(sets[1]);
  if (first.free != second.free) return first.free > second.free ? first.at : second.at;
  return first.used_at <= second.used_at ? first.at : second.at;
}

void DecisionCache::insert(const Place& place, Monotonic now, Nanos ttl, CacheNote note) {
  if (count_ == 0) return;
  const Fingerprint& key = place.key;
  const auto tick = now.time_since_epoch().count();
  const std::size_t victim = victim_for(key, tick);
  Slot& slot = slots_[victim];
  std::uint64_t sequence = slot.sequence.load(std::memory_order_relaxed);
  if (sequence & 1 || !slot.sequence.compare_exchange_strong(sequence, sequence + 1, std::memory_order_acq_rel)) {
    return;
  }
  // The tags only say where to look; others of the same word may be written at this moment.
  std::atomic<std::uint64_t>& tags = tags_[victim / ways][victim % ways / 4];
  const std::size_t shift = victim % 4 * 16;
  std::uint64_t word = tags.load(std::memory_order_relaxed);
  while (!tags.compare_exchange_weak(word, (word & ~(std::uint64_t{0xffff} << shift)) | tag_of(key) << shift,
                                     std::memory_order_relaxed)) {
  }
  // Release stores after the odd sequence: a reader that sees any of them sees the odd sequence too.
  slot.name[0].store(key.name[0], std::memory_order_release);
  slot.name[1].store(key.name[1], std::memory_order_release);
  slot.rate.store(note.rate, std::memory_order_release);
  slot.entities.store(note.entities, std::memory_order_release);
  slot.policy.store(note.policy, std::memory_order_release);
  slot.used_at.store(tick, std::memory_order_release);
  slot.ends_at.store(tick + ttl.count(), std::memory_order_release);
  slot.sequence.store(sequence + 2, std::memory_order_release);
}

}  // namespace creto::authz
