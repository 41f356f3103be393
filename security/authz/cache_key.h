#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/authz/authz.h"
#include "hash.h"

namespace creto::authz {

/// The full key of a decision, written out in words, so that no two requests share one. Up to 56 words stand as they
/// are; more are replaced by their BLAKE3.
///
/// A number is a word. A text of up to seven bytes is one, its size on top; a longer one is its size under a mark and
/// then its bytes, with zeros up to a word. A value is a text, or a word with its kind on top and the rest behind.
class CacheKey {
 public:
  static constexpr std::size_t words_max = 57;
  static constexpr std::uint64_t long_mark = std::uint64_t{8} << 56;  ///< of a text of eight bytes or more

  CacheKey(std::string_view org, std::int64_t state_version, std::span<const std::uint64_t> source_versions,
           const CheckRequest& request);

  /// A zero follows where their count is odd.
  std::span<const std::uint64_t> words() const { return {words_.data(), count_}; }
  /// Everything that was written out, however long: what `DecodedKey` reads.
  BytesView written() const;

 private:
  /// Where the next word goes. Each step takes it and gives it back, so that it stays in a register.
  using Cursor = std::uint64_t*;
  Cursor number(Cursor to, std::uint64_t value) {
    if (to == limit()) to = spill(to);
    *to = value;
    return to + 1;
  }
  Cursor text(Cursor to, std::string_view text) {
    const char* from = text.data();
    const char* const end = from + text.size();
    if (text.size() < 8) return number(to, last_word(end, text.size()) | text.size() << 56);
    if (static_cast<std::size_t>(limit() - to) < text.size() / 8 + 2) return long_text(to, text);
    *to++ = text.size() | long_mark;
    for (; end - from >= 8; from += 8) std::memcpy(to++, from, 8);
    *to = last_word(end, text.size());
    return to + (text.size() % 8 != 0);
  }
  /// Where there is not room for all of it.
  Cursor long_text(Cursor to, std::string_view text);
  Cursor value(Cursor to, const Value& value);
  Cursor scalar(Cursor to, std::uint64_t mark, std::int64_t value);
  Cursor spill(Cursor to);
  void seal(Cursor to);
  /// The last word tells a key from the hash of one.
  Cursor limit() { return words_.data() + words_max - 1; }

  std::array<std::uint64_t, words_max + 1> words_;
  std::size_t count_ = 0;
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

}  // namespace creto::authz
