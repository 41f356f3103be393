#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace creto::authz {

/// What stands for a sequence of words in a table.
struct Fingerprint {
  std::array<std::uint64_t, 2> name{};  ///< equal for equal sequences; see `FingerprintKey` for others
  std::uint64_t place = 0;              ///< where to look; drawn apart from `name`, so that time tells nothing of that

  friend bool operator==(const Fingerprint& a, const Fingerprint& b) { return a.name == b.name; }
};

/// Names sequences of words by 128 bits, so that two different ones have one name with a chance below 2^-125, whoever
/// chose them: he does not know the key, which is drawn at random and never leaves this object.
///
/// Each half of the name is made with a key of its own. First the sum of (w0 + k0)(w1 + k1) over all pairs of words,
/// modulo 2^128 (NH, of UMAC): two different sequences of one length have the same sum with a chance of 2^-64. Then the
/// upper half of a sum of this and the length, each times a random number of 128 bits (multilinear hashing): again
/// 2^-64. So one half is the same with at most 2^-63, both with 2^-126. `place` comes of a third key, which has nothing
/// to do with the two: what is seen of it, by timing, says nothing of the name, which is compared and no more.
/// Thread-safe.
class FingerprintKey {
 public:
  static constexpr std::size_t words_max = 58;

  FingerprintKey();  ///< draws it

  /// Requires: at most `words_max`, and a zero behind them where their count is odd.
  Fingerprint of(std::span<const std::uint64_t> words) const;

 private:
  using Wide = unsigned __int128;
  struct Half {
    Wide constant, low, high, length;
    std::uint64_t reduce(Wide sum, std::size_t count) const;
  };

  std::array<std::uint64_t, words_max> first_, second_, place_;
  std::array<Half, 2> halves_;
};

}  // namespace creto::authz
