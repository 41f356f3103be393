#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "creto/authz/authz.h"

namespace creto::authz {

/// The full key of a decision, written out: every part with its length, so that no two requests share one. Up to 448
/// bytes stand as they are; longer ones are replaced by their BLAKE3.
class CacheKey {
 public:
  static constexpr std::size_t words_max = 56;

  CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
           const CheckRequest& request);

  std::span<const std::uint64_t> words() const { return {words_.data(), count_}; }
  std::uint64_t hash() const { return hash_; }

 private:
  void seal();
  void append(const void* data, std::size_t size);
  void number(std::uint64_t value) { append(&value, sizeof value); }
  void text(std::string_view text) {
    number(text.size());
    append(text.data(), text.size());
  }
  void value(const Value& value);

  std::array<std::uint64_t, words_max> words_;
  std::size_t size_ = 0;  ///< bytes written
  std::size_t count_ = 0;
  std::uint64_t hash_ = 0;
  Bytes overflow_;  ///< the whole key, once it is too long for `words_`
};

/// Remembers which requests policies allowed, nothing else. Sets of 8 slots; each slot holds its whole key and is read
/// under a sequence counter, so readers take no lock and never see half an entry. The hashes of a set stand together in
/// one cache line, so a lookup touches that line and at most the slot it finds. An older version of policies or
/// entities is another key and so never hits.
class DecisionCache {
 public:
  /// Rounded up to a multiple of 8; 0 remembers nothing.
  explicit DecisionCache(std::size_t entries);

  bool contains(const CacheKey& key, Monotonic now);
  /// Replaces an entry that has ended, else the one that was used longest ago. Does nothing where another thread is
  /// just writing there.
  void insert(const CacheKey& key, Monotonic now, Nanos ttl);

 private:
  static constexpr std::size_t ways = 8;
  using Hashes = std::array<std::atomic<std::uint64_t>, ways>;
  static_assert(sizeof(Hashes) == 64);
  struct alignas(64) Set {
    Hashes hashes{};
  };
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> sequence{0};  ///< odd while it is written
    std::atomic<std::int64_t> ends_at{0};    ///< 0: empty
    std::atomic<std::int64_t> used_at{0};    ///< coarse
    std::atomic<std::uint64_t> count{0};
    std::array<std::atomic<std::uint64_t>, CacheKey::words_max> words{};
  };
  std::size_t set_of(const CacheKey& key) const;
  static bool holds(const Slot& slot, const CacheKey& key, Monotonic now);

  std::size_t count_ = 0;
  std::unique_ptr<Set[]> sets_;
  std::unique_ptr<Slot[]> slots_;  ///< `ways` for each set
};

}  // namespace creto::authz
