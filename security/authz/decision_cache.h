#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "cedar/policy_set.h"
#include "creto/authz/authz.h"

namespace creto::authz {

/// The full key of a decision, written out in words: every text with its length, so that no two requests share one. Up
/// to 56 words stand as they are; more are replaced by their BLAKE3.
class CacheKey {
 public:
  static constexpr std::size_t words_max = 57;

  CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
           const CheckRequest& request);

  std::span<const std::uint64_t> words() const { return {words_.data(), count_}; }
  std::uint64_t hash() const { return hash_; }
  /// Everything that was written out, however long: what `DecodedKey` reads.
  BytesView written() const;

 private:
  void seal();
  void number(std::uint64_t value) {
    if (count_ == words_max - 1) spill();
    words_[count_++] = value;
  }
  void text(std::string_view text);
  void value(const Value& value);
  void spill();

  std::array<std::uint64_t, words_max> words_;
  std::size_t count_ = 0;
  std::uint64_t hash_ = 0;
  Bytes spilt_;  ///< what no longer fits in `words_`
};

/// What a key was written from.
struct DecodedKey {
  std::string_view org;
  std::int64_t state_version = 0;
  std::vector<std::string_view> chain;
  std::string_view principal, action, resource_type, resource_id;
  Attributes context;  ///< as given

  /// The views borrow from `written`. Requires: a key with so many source versions wrote it.
  static DecodedKey of(BytesView written, std::size_t source_versions);
  /// The first two alone.
  static std::pair<std::string_view, std::int64_t> place_of(BytesView written, std::size_t source_versions);
  /// How many bytes at its start are versions: what follows is the request alone.
  static std::size_t versions_size(std::size_t source_versions) { return (1 + source_versions) * 8; }
};

/// What is remembered of an allowed request besides that it was.
struct CacheNote {
  std::uint64_t rate = 0;                        ///< number of the rate it depends on; 0: none
  std::uint64_t entities = 0;                    ///< `Trail::entities`
  const cedar::PlannedPolicy* policy = nullptr;  ///< the permit; for the decision log
};

/// Remembers which requests policies allowed, and a note with each, nothing else. Sets of 8 slots; a key may stand in
/// two of them, so that none overflows while others are empty. Each slot holds its whole key and is read under a
/// sequence counter, so readers take no lock and never see half an entry. The hashes of a set stand together in one
/// cache line, so a lookup touches two such lines and the slot it finds. An older version of policies or entities is
/// another key and so never hits.
class DecisionCache {
 public:
  /// At least so many; 0 remembers nothing.
  explicit DecisionCache(std::size_t entries);

  /// The note it was inserted with.
  std::optional<CacheNote> find(const CacheKey& key, Monotonic now);
  /// Replaces an entry that has ended, else the one that was used longest ago. Does nothing where another thread is
  /// just writing there.
  void insert(const CacheKey& key, Monotonic now, Nanos ttl, CacheNote note = {});

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
    std::atomic<std::uint64_t> rate{0};
    std::atomic<std::uint64_t> entities{0};
    std::atomic<const cedar::PlannedPolicy*> policy{nullptr};
    std::array<std::atomic<std::uint64_t>, CacheKey::words_max> words{};
  };
  static_assert(sizeof(Slot) == 512);
  struct Freed {
    void operator()(Slot* slots) const { std::free(slots); }
  };
  std::array<std::size_t, 2> sets_of(const CacheKey& key) const;
  static std::optional<CacheNote> read(const Slot& slot, const CacheKey& key, Monotonic now);

  std::size_t count_ = 0;
  std::unique_ptr<Set[]> sets_;
  std::unique_ptr<Slot[], Freed> slots_;  ///< `ways` for each set
};

}  // namespace creto::authz
