#include "creto/common/bytes.h"

#include <fmt/format.h>

#include <algorithm>

#include "creto/common/secret.h"

namespace creto {
namespace {

Error malformed(std::string_view what, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("{}: {}", what, rule));
}

constexpr std::string_view hex_digits = "0123456789abcdef";
constexpr std::string_view base64_standard = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::string_view base64_url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
constexpr std::string_view base58_bitcoin = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
constexpr std::size_t base58_length_max = 256;

/// Digit value of each character, -1 where it is none.
constexpr std::array<std::int8_t, 256> reverse(std::string_view alphabet) {
  std::array<std::int8_t, 256> table{};
  table.fill(-1);
  for (std::size_t i = 0; i < alphabet.size(); ++i)
    table[static_cast<std::uint8_t>(alphabet[i])] = static_cast<std::int8_t>(i);
  return table;
}
constexpr auto from_standard = reverse(base64_standard);
constexpr auto from_url = reverse(base64_url);
constexpr auto from_bitcoin = reverse(base58_bitcoin);

std::string encode64(BytesView bytes, std::string_view alphabet, bool pad) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < n ? bytes[i + k] : 0U);
    for (std::size_t k = 0; k < 4; ++k) {
      if (k <= n)
        text += alphabet[group >> (18 - 6 * k) & 63];
      else if (pad)
        text += '=';
    }
  }
  return text;
}

Result<Bytes> decode64(std::string_view text, const std::array<std::int8_t, 256>& table, bool padded) {
  const std::string_view what = padded ? "base64" : "base64url";
  if (padded) {
    if (text.size() % 4 != 0) return malformed(what, "length must be a multiple of 4");
    for (int k = 0; k < 2 && text.ends_with('='); ++k) text.remove_suffix(1);
  }
  if (text.size() % 4 == 1) return malformed(what, "impossible length");
  Bytes bytes(text.size() * 3 / 4);
  std::uint8_t* out = bytes.data();
  int all = 0;  // negative once a digit was
  const auto digit = [&](std::size_t at) {
    const int value = table[static_cast<std::uint8_t>(text[at])];
    all |= value;
    return static_cast<std::uint32_t>(value);
  };
  std::size_t at = 0;
  for (; at + 4 <= text.size(); at += 4) {
    const std::uint32_t group = digit(at) << 18 | digit(at + 1) << 12 | digit(at + 2) << 6 | digit(at + 3);
    *out++ = static_cast<std::uint8_t>(group >> 16);
    *out++ = static_cast<std::uint8_t>(group >> 8);
    *out++ = static_cast<std::uint8_t>(group);
  }
  std::uint32_t stray = 0;
  if (text.size() - at == 2) {
    const std::uint32_t group = digit(at) << 6 | digit(at + 1);
    *out++ = static_cast<std::uint8_t>(group >> 4);
    stray = group & 0xf;
  } else if (text.size() - at == 3) {
    const std::uint32_t group = digit(at) << 12 | digit(at + 1) << 6 | digit(at + 2);
    *out++ = static_cast<std::uint8_t>(group >> 10);
    *out++ = static_cast<std::uint8_t>(group >> 2);
    stray = group & 0x3;
  }
  if (all < 0) return malformed(what, "character outside the alphabet");
  if (stray != 0) return malformed(what, "stray bits in the last character");
  return bytes;
}

/// Bytes of the character that `text` begins with; 0 where that is no UTF-8.
std::size_t character_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  const std::size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
  if (length == 0 || length > text.size()) return 0;
  std::uint32_t point = length == 1 ? lead : lead & (0x7FU >> length);
  for (std::size_t k = 1; k < length; ++k) {
    if (byte(k) >> 6 != 2) return 0;
    point = point << 6 | (byte(k) & 63U);
  }
  constexpr std::array<std::uint32_t, 5> smallest = {0, 0, 0x80, 0x800, 0x10000};
  const bool wrong = point < smallest[length] || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF);
  return wrong ? 0 : length;
}

}  // namespace

std::string hex(BytesView bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::uint8_t byte : bytes) {
    text += hex_digits[byte >> 4];
    text += hex_digits[byte & 15];
  }
  return text;
}

Result<Bytes> from_hex(std::string_view text) {
  if (text.size() % 2 != 0) return malformed("hex", "length must be even");
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  Bytes bytes(text.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const int high = digit(text[2 * i]);
    const int low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return malformed("hex", "character outside 0-9a-f");
    bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return bytes;
}

std::string base64(BytesView bytes) { return encode64(bytes, base64_standard, true); }
Result<Bytes> from_base64(std::string_view text) { return decode64(text, from_standard, true); }
std::string base64url(BytesView bytes) { return encode64(bytes, base64_url, false); }
Result<Bytes> from_base64url(std::string_view text) { return decode64(text, from_url, false); }

std::string base58(BytesView bytes) {
  const auto zeros =
      static_cast<std::size_t>(std::ranges::find_if(bytes, [](std::uint8_t b) { return b != 0; }) - bytes.begin());
  Bytes digits;  // least significant first
  for (const std::uint8_t byte : bytes.subspan(zeros)) {
    std::uint32_t carry = byte;
    for (std::uint8_t& digit : digits) {
      carry += static_cast<std::uint32_t>(digit) << 8;
      digit = static_cast<std::uint8_t>(carry % 58);
      carry /= 58;
    }
    for (; carry > 0; carry /= 58) digits.push_back(static_cast<std::uint8_t>(carry % 58));
  }
  std::string text(zeros, '1');
  for (auto it = digits.rbegin(); it != digits.rend(); ++it) text += base58_bitcoin[*it];
  return text;
}

Result<Bytes> from_base58(std::string_view text) {
  if (text.size() > base58_length_max) return malformed("base58", "longer than 256 characters");
  const std::size_t zeros = std::min(text.find_first_not_of('1'), text.size());
  Bytes bytes;  // least significant first
  for (const char c : text.substr(zeros)) {
    const int digit = from_bitcoin[static_cast<std::uint8_t>(c)];
    if (digit < 0) return malformed("base58", "character outside the alphabet");
    auto carry = static_cast<std::uint32_t>(digit);
    for (std::uint8_t& byte : bytes) {
      carry += static_cast<std::uint32_t>(byte) * 58;
      byte = static_cast<std::uint8_t>(carry);
      carry >>= 8;
    }
    for (; carry > 0; carry >>= 8) bytes.push_back(static_cast<std::uint8_t>(carry));
  }
  bytes.insert(bytes.end(), zeros, 0);
  std::ranges::reverse(bytes);
  return bytes;
}

bool equal_constant_time(BytesView a, BytesView b) {
  if (a.size() != b.size()) return false;
  std::uint8_t difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference = static_cast<std::uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    std::uint64_t next = 0;
    if (text.size() >= sizeof next) {
      std::memcpy(&next, text.data(), sizeof next);
      if ((next & 0x8080808080808080) == 0) {
        text.remove_prefix(sizeof next);
        continue;
      }
    }
    const std::size_t length = character_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string legible(std::string_view text, std::size_t bytes_max) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = text[0] == '\0' ? 0 : character_length(text);
    const std::string_view shown = length == 0 ? "\xEF\xBF\xBD" : text.substr(0, length);
    if (shown.size() > bytes_max - out.size()) break;
    out += shown;
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out;
}

void wipe(void* data, std::size_t size) {
  if (size > 0) explicit_bzero(data, size);
}

}  // namespace creto
