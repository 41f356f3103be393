#include "cedar/json_places.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <string>

#include "cedar/text.h"
#include "creto/common/json.h"

namespace creto::authz::cedar {
namespace {

/// Reads forward through a text that is JSON; of another it makes no sense, but comes to its end.
class Cursor {
 public:
  explicit Cursor(std::string_view text, std::size_t at = 0) : text_(text), at_(at) { skip_space(); }

  std::size_t offset() const { return at_; }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  /// Past one character and what is blank behind it.
  void step() {
    if (at_ < text_.size()) ++at_;
    skip_space();
  }

  std::string_view string() {
    const std::size_t begin = at_++;
    while (at_ < text_.size() && text_[at_] != '"') at_ += text_[at_] == '\\' ? 2 : 1;
    at_ = std::min(at_ + 1, text_.size());
    const std::string_view raw = text_.substr(begin, at_ - begin);
    skip_space();
    return raw;
  }

  void skip_value() {
    std::size_t depth = 0;
    do {
      const char c = peek();
      if (c == '\0') return;
      if (c == '"') {
        string();
        continue;
      }
      if (c == '{' || c == '[') ++depth;
      if (c == '}' || c == ']') --depth;
      step();
    } while (depth > 0);
    // What is left of a number, true, false or null.
    while (peek() != '\0' && peek() != ',' && peek() != '}' && peek() != ']') step();
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").contains(text_[at_])) ++at_;
  }

  std::string_view text_;
  std::size_t at_;
};

/// Calls `use` with the name of each member and where its value begins. Nothing where this is no object.
template <class F>
void each_member(Cursor cursor, F&& use) {
  if (cursor.peek() != '{') return;
  cursor.step();
  while (cursor.peek() == '"') {
    const auto key = parse_json(cursor.string());
    cursor.step();  // the colon
    if (key && key->is_string()) use(key->get<std::string>(), cursor);
    cursor.skip_value();
    if (cursor.peek() == ',') cursor.step();
  }
}

/// From `place` on by what stands there.
void advance(Position& place, std::string_view text) {
  for (const char c : text) {
    if (c == '\n') {
      ++place.line;
      place.column = 1;
    } else if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) {
      ++place.column;
    }
  }
}

/// How much of `path` names the member `key`: `.key`, `key`, `["key"]`; 0: it does not.
std::size_t names(std::string_view path, const std::string& key) {
  for (const std::string& form : {key, "." + key, ": " + key, "[" + quote(key) + "]", quote(key), "." + quote(key)}) {
    if (form.empty() || !path.starts_with(form)) continue;
    const bool ends = path.size() == form.size() || std::string_view(".[:").contains(path[form.size()]);
    if (ends) return form.size();
  }
  return 0;
}

/// The element that `path` names, and how much of it: `[2]`.
std::optional<std::pair<std::size_t, std::size_t>> element(std::string_view path) {
  if (!path.starts_with("[")) return std::nullopt;
  std::size_t index = 0;
  const auto [end, failed] = std::from_chars(path.data() + 1, path.data() + path.size(), index);
  if (failed != std::errc() || end == path.data() + path.size() || *end != ']') return std::nullopt;
  return std::pair(index, static_cast<std::size_t>(end + 1 - path.data()));
}

std::size_t find(std::string_view text, std::string_view path) {
  std::size_t found = Cursor(text).offset();
  while (true) {
    Cursor cursor(text, found);
    std::size_t next = found, used = 0;
    each_member(cursor, [&](const std::string& key, const Cursor& value) {
      const std::size_t match = names(path, key);
      if (match <= used) return;
      used = match;
      next = value.offset();
    });
    if (const auto wanted = element(path); wanted && cursor.peek() == '[') {
      cursor.step();
      for (std::size_t i = 0; i < wanted->first && cursor.peek() != ']' && cursor.peek() != '\0'; ++i) {
        cursor.skip_value();
        if (cursor.peek() == ',') cursor.step();
      }
      if (cursor.peek() != ']' && cursor.peek() != '\0') {
        next = cursor.offset();
        used = wanted->second;
      }
    }
    if (used == 0) return found;
    found = next;
    path.remove_prefix(std::min(used, path.size()));
  }
}

/// Walks a text and what a parser made of it side by side.
class PositionReader {
 public:
  explicit PositionReader(std::string_view text) : text_(text), cursor_(text) {}

  JsonPositions read(const Json& json) && {
    value(json);
    return std::move(positions_);
  }

 private:
  void value(const Json& json) {
    advance(place_, text_.substr(read_, cursor_.offset() - read_));
    read_ = cursor_.offset();
    positions_[&json] = place_;
    if (json.is_object()) {
      cursor_.step();
      while (cursor_.peek() == '"') {
        const auto key = parse_json(cursor_.string());
        cursor_.step();  // the colon
        const auto member = key && key->is_string() ? json.find(key->get<std::string>()) : json.end();
        if (member == json.end()) return;
        value(*member);
        if (cursor_.peek() == ',') cursor_.step();
      }
      cursor_.step();
    } else if (json.is_array()) {
      cursor_.step();
      for (const Json& element : json) {
        value(element);
        if (cursor_.peek() == ',') cursor_.step();
      }
      cursor_.step();
    } else {
      cursor_.skip_value();
    }
  }

  const std::string_view text_;
  Cursor cursor_;
  Position place_;
  std::size_t read_ = 0;
  JsonPositions positions_;
};

/// `text` without any member but the first of its name in an object, each told to `repeated` with its name and place.
/// All else stays in its line and column.
template <class F>
std::string without_repeated(std::string_view text, F&& repeated) {
  struct Level {
    bool object;
    bool at_key = true;
    std::set<std::string> keys = {};
  };
  std::vector<Level> open;
  std::string out;
  std::size_t taken = 0, comma = 0;
  Position place{1, 1};
  std::size_t placed = 0;
  Cursor cursor(text);
  for (char c = cursor.peek(); c != '\0'; c = cursor.peek()) {
    const bool at_key = !open.empty() && open.back().object && open.back().at_key;
    if (c == '"' && at_key) {
      open.back().at_key = false;
      const std::size_t begin = cursor.offset();
      const auto key = parse_json(cursor.string());
      if (!key || !key->is_string() || cursor.peek() != ':') break;
      cursor.step();
      if (open.back().keys.insert(key->get<std::string>()).second) continue;
      cursor.skip_value();
      advance(place, text.substr(placed, begin - placed));
      placed = begin;
      repeated(key->get<std::string>(), place);
      out += text.substr(taken, comma - taken);
      taken = cursor.offset();
      for (const char left_out : text.substr(comma, taken - comma)) {
        if (left_out == '\n') out += '\n';
        if (left_out != '\n' && (static_cast<unsigned char>(left_out) & 0xc0) != 0x80) out += ' ';
      }
    } else if (c == '"') {
      cursor.string();
    } else {
      if (c == ',') comma = cursor.offset();
      if (c == ',' && !open.empty()) open.back().at_key = true;
      if ((c == '}' || c == ']') && !open.empty()) open.pop_back();
      if (c == '{' || c == '[') open.push_back({.object = c == '{'});
      cursor.step();
    }
  }
  out += text.substr(taken);
  return out;
}

/// What is wrong with `text`, which no parser accepts: "json: syntax error at line 3, column 5", where bytes are
/// counted.
Problem json_problem(std::string_view text, const Error& error, JsonLimits limits) {
  constexpr std::string_view prefix = "json: syntax error at ";
  const std::string_view what = error.message();
  if (!what.starts_with(prefix)) return problem_of(error);
  const Position at =
      problem_of(Error(Product::platform, error.kind(), fmt::format("{}: ", what.substr(prefix.size())))).where;
  std::size_t offset = 0;
  for (std::uint32_t line = 1; line < at.line; ++line) offset = text.find('\n', offset) + 1;
  offset = std::min(offset + at.column - 1, text.size());
  if (offset + 1 == text.size()) {
    // The last character, or what should have come after it: that has moved where a blank follows.
    ++limits.bytes_max;
    const auto again = parse_json(std::string(text) + " ", limits);
    if (!again && again.error().message() != what) offset = text.size();
  }
  const auto within = [text](std::size_t i) {
    return i < text.size() && (static_cast<unsigned char>(text[i]) & 0xc0) == 0x80;
  };
  while (within(offset)) --offset;
  std::size_t end = offset + 1;
  while (within(end)) ++end;
  Position place{1, 1};
  advance(place, text.substr(0, offset));
  const std::string found = offset == text.size()  ? "the end of the text"
                            : text[offset] == '\n' ? "the end of the line"
                                                   : fmt::format("`{}`", text.substr(offset, end - offset));
  return {place, fmt::format("found {}: this is no JSON", found)};
}

}  // namespace

Parsed<JsonText> read_json(std::string_view text, JsonLimits limits) {
  Parsed<JsonText> read;
  read.value.text = text;
  auto json = parse_json(text, limits);
  if (!json && text.size() <= limits.bytes_max && is_valid_utf8(text)) {
    read.value.text = without_repeated(text, [&](const std::string& key, Position place) {
      read.problems.push_back({place, fmt::format("the member {} stands twice", quote(key.substr(0, 64)))});
    });
    if (!read.ok()) json = parse_json(read.value.text, limits);
  }
  if (!json) {
    read.problems.push_back(json_problem(read.value.text, json.error(), limits));
    return read;
  }
  read.value.json = *std::move(json);
  read.value.whole = true;
  return read;
}

Position json_place(std::string_view text, std::string_view path) {
  Position place{1, 1};
  advance(place, text.substr(0, find(text, path)));
  return place;
}

std::map<std::pair<std::string, std::string>, Position> json_members(std::string_view text) {
  std::map<std::pair<std::string, std::string>, Position> all;
  Position place{1, 1};
  std::size_t read = 0;
  each_member(Cursor(text), [&](const std::string& outer, const Cursor& group) {
    each_member(group, [&](const std::string& inner, const Cursor& value) {
      advance(place, text.substr(read, value.offset() - read));
      read = value.offset();
      all.emplace(std::pair(outer, inner), place);
    });
  });
  return all;
}

JsonPositions json_positions(std::string_view text, const Json& json) { return PositionReader(text).read(json); }

}  // namespace creto::authz::cedar
