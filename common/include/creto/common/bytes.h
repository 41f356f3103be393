#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/result.h"

namespace creto {

using Bytes = std::vector<std::uint8_t>;
using BytesView = std::span<const std::uint8_t>;
template <std::size_t N>
using ByteArray = std::array<std::uint8_t, N>;
using Hash256 = ByteArray<32>;

inline BytesView as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}
inline std::string_view as_text(BytesView bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
inline Bytes to_bytes(std::string_view text) { return {text.begin(), text.end()}; }
inline Bytes to_bytes(BytesView bytes) { return {bytes.begin(), bytes.end()}; }

std::string hex(BytesView bytes);  ///< lower case
Result<Bytes> from_hex(std::string_view text);

std::string base64(BytesView bytes);  ///< RFC 4648 §4, padded
/// Strict: canonical padding, no white space, no stray bits.
Result<Bytes> from_base64(std::string_view text);
std::string base64url(BytesView bytes);  ///< RFC 4648 §5, not padded
Result<Bytes> from_base64url(std::string_view text);

std::string base58(BytesView bytes);  ///< the Bitcoin alphabet
/// Refuses more than 256 characters: the algorithm is quadratic.
Result<Bytes> from_base58(std::string_view text);

/// Takes the same time for every content of equal length. Different lengths compare unequal at once.
bool equal_constant_time(BytesView a, BytesView b);

bool is_valid_utf8(std::string_view text);
/// What a stranger wrote, fit to be shown and recorded: UTF-8 of at most `bytes_max` bytes that ends with a whole
/// character; NUL and what is no UTF-8 become U+FFFD.
std::string legible(std::string_view text, std::size_t bytes_max = std::string_view::npos);

}  // namespace creto
