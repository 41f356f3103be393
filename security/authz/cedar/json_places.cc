#include "cedar/json_places.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cedar/text.h"
#include "creto/common/json.h"

namespace creto::authz::cedar {
namespace {

/// Reads forward through a text that is JSON.
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

}  // namespace

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

Problem json_problem(const Error& error) {
  constexpr std::string_view prefix = "json: syntax error at ";
  const std::string_view what = error.message();
  if (!what.starts_with(prefix)) return problem_of(error);
  return problem_of(
      Error(Product::platform, error.kind(), std::string(what.substr(prefix.size())) + ": this is no JSON"));
}

}  // namespace creto::authz::cedar
