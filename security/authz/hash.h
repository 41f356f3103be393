#pragma once

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

inline std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0) {
  std::uint64_t hash = seed ^ fold(text.size() ^ 0xa0761d6478bd642fu, 0xe7037ed1a0b428dbu);
  while (text.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data(), 8);
    hash = fold(hash ^ word, 0xd6e8feb86659fd93u);
    text.remove_prefix(8);
  }
  std::uint64_t rest = 0;
  if (!text.empty()) std::memcpy(&rest, text.data(), text.size());
  return fold(hash ^ rest, 0x8ebc6af09c88c6e3u);
}

}  // namespace creto::authz
