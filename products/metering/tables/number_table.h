#pragma once

#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "creto/common/assert.h"
#include "tables/large_pages.h"

namespace creto::metering {

/// Finds the numbers (from 1) of things by their hashes: open addressing with linear probing, 8 bytes a slot, half to
/// three quarters of which are empty. What is compared lies with whoever asks. Not thread-safe.
class NumberTable {
 public:
  explicit NumberTable(std::size_t expected = 0) : slots_(std::bit_ceil(std::max<std::size_t>(expected * 2, 1024))) {}

  void prefetch(std::uint32_t hash) const { __builtin_prefetch(&slots_[hash & mask()]); }
  /// What `find` will probably see first, without a comparison; 0: nothing.
  std::uint32_t likely(std::uint32_t hash) const { return slots_[hash & mask()].number; }
  /// A number under `hash` for which `same(number)` holds; 0: none.
  template <class Same>
  std::uint32_t find(std::uint32_t hash, Same&& same) const {
    for (std::size_t at = hash & mask(); slots_[at].number != 0; at = (at + 1) & mask()) {
      if (slots_[at].hash == hash && same(slots_[at].number)) return slots_[at].number;
    }
    return 0;
  }
  void insert(std::uint32_t hash, std::uint32_t number) {
    CRETO_ASSERT(number != 0);
    if ((size_ + 1) * 2 > slots_.size()) grow();
    place({hash, number});
    ++size_;
  }
  /// Requires: it was inserted.
  void erase(std::uint32_t hash, std::uint32_t number) {
    std::size_t hole = hash & mask();
    while (slots_[hole].number != number) {
      CRETO_ASSERT(slots_[hole].number != 0);
      hole = (hole + 1) & mask();
    }
    // What follows without a gap moves up, so that no search ends too early.
    for (std::size_t at = (hole + 1) & mask(); slots_[at].number != 0; at = (at + 1) & mask()) {
      const std::size_t from_start = (at - slots_[at].hash) & mask();
      const std::size_t from_hole = (at - hole) & mask();
      if (from_start < from_hole) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = {};
    --size_;
  }
  std::size_t memory_bytes() const { return slots_.size() * sizeof(Slot); }

 private:
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t number = 0;
  };
  using Slots = std::vector<Slot, LargePages<Slot>>;

  std::size_t mask() const { return slots_.size() - 1; }
  void place(Slot slot) {
    std::size_t at = slot.hash & mask();
    while (slots_[at].number != 0) at = (at + 1) & mask();
    slots_[at] = slot;
  }
  void grow() {
    Slots old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.number != 0) place(slot);
    }
  }

  Slots slots_;
  std::size_t size_ = 0;
};

}  // namespace creto::metering
