#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace creto::authz {

/// Hashes for tables in memory: fast, and of no other strength. Whoever finds something by one compares the thing
/// itself.
inline std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

/// The last `size` % 8 bytes before `end` of a text of `size` bytes, as a number; 0 where there are none. By loads of
/// fixed size that overlap: a copy of so few bytes would cost a call.
inline std::uint64_t last_word(const char* end, std::size_t size) {
  static_assert(std::endian::native == std::endian::little);
  const std::size_t left = size % 8;
  if (left == 0) return 0;
  if (size > 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, end - 8, 8);
    return word >> (64 - 8 * left);
  }
  if (left >= 4) {
    std::uint32_t low = 0, high = 0;
    std::memcpy(&low, end - left, 4);
    std::memcpy(&high, end - 4, 4);
    return low | static_cast<std::uint64_t>(high) << (8 * (left - 4));
  }
  const auto byte = [&](std::size_t at) {
    return static_cast<std::uint64_t>(static_cast<unsigned char>((end - left)[at])) << (8 * at);
  };
  return byte(0) | byte(left / 2) | byte(left - 1);
}

inline std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0) {
  std::uint64_t hash = seed ^ fold(text.size() ^ 0xa0761d6478bd642fu, 0xe7037ed1a0b428dbu);
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); end - at >= 8; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, 8);
    hash = fold(hash ^ word, 0xd6e8feb86659fd93u);
  }
  return fold(hash ^ last_word(end, text.size()), 0x8ebc6af09c88c6e3u);
}

/// As `a == b`, without a call for short ones.
inline bool same_text(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  if (a.size() > 32) return std::memcmp(a.data(), b.data(), a.size()) == 0;
  const char* const end = a.data() + a.size();
  for (const char *x = a.data(), *y = b.data(); end - x >= 8; x += 8, y += 8) {
    std::uint64_t one = 0, other = 0;
    std::memcpy(&one, x, 8);
    std::memcpy(&other, y, 8);
    if (one != other) return false;
  }
  return last_word(end, a.size()) == last_word(b.data() + b.size(), b.size());
}

}  // namespace creto::authz
