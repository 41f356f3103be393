#include "bus/subject.h"

#include <algorithm>

namespace creto::bus {
namespace {

constexpr std::size_t length_max = 255;
constexpr int tokens_max = 8;

std::string_view take_token(std::string_view& rest) {
  const auto dot = rest.find('.');
  const auto token = rest.substr(0, dot);
  rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
  return token;
}

bool is_token(std::string_view token) {
  return !token.empty() && std::all_of(token.begin(), token.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

bool is_valid(std::string_view text, bool pattern) {
  if (text.empty() || text.size() > length_max || text.back() == '.') return false;
  int tokens = 0;
  while (!text.empty()) {
    const auto token = take_token(text);
    if (++tokens > tokens_max) return false;
    if (is_token(token)) continue;
    if (!pattern || !(token == "*" || (token == ">" && text.empty()))) return false;
  }
  return true;
}

}  // namespace

bool is_valid_subject(std::string_view subject) { return is_valid(subject, false); }
bool is_valid_pattern(std::string_view pattern) { return is_valid(pattern, true); }

bool matches(std::string_view pattern, std::string_view subject) {
  while (!pattern.empty() && !subject.empty()) {
    const auto wanted = take_token(pattern);
    if (wanted == ">") return true;
    const auto token = take_token(subject);
    if (wanted != "*" && wanted != token) return false;
  }
  return pattern.empty() && subject.empty();
}

}  // namespace creto::bus
