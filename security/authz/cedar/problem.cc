#include "cedar/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "creto/common/assert.h"

namespace creto::authz::cedar {
namespace {

/// Insertions, deletions, substitutions and swaps of neighbours, case aside; `limit` + 1 where there are more.
std::size_t distance(std::string_view a, std::string_view b, std::size_t limit) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  if (std::max(a.size(), b.size()) - std::min(a.size(), b.size()) > limit) return limit + 1;
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> above(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1])) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

}  // namespace

std::string to_string(const Problem& problem) {
  std::string text;
  if (problem.where.line > 0) text = fmt::format("line {}, column {}: ", problem.where.line, problem.where.column);
  text += problem.what;
  if (!problem.hint.empty()) text += "; " + problem.hint;
  return text;
}

Problem problem_of(const Error& error) {
  const std::string_view text = error.message();
  std::string_view rest = text;
  Position where;
  const auto number = [&rest](std::string_view before, std::uint32_t& into) {
    if (!rest.starts_with(before)) return false;
    rest.remove_prefix(before.size());
    const auto [end, failed] = std::from_chars(rest.data(), rest.data() + rest.size(), into);
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
    return failed == std::errc{};
  };
  if (!number("line ", where.line) || !number(", column ", where.column) || !rest.starts_with(": ")) {
    return {{0, 0}, std::string(text)};
  }
  return {where, std::string(rest.substr(2))};
}

Error to_error(const std::vector<Problem>& problems) {
  CRETO_ASSERT(!problems.empty());
  std::string text;
  for (const Problem& problem : problems) {
    if (!text.empty()) text += '\n';
    text += to_string(problem);
  }
  return Error(Product::platform, ErrorKind::invalid_input, std::move(text));
}

const std::string* closest(std::string_view word, const std::vector<std::string>& candidates) {
  constexpr std::size_t word_max = 100;
  if (word.size() > word_max) return nullptr;
  const std::string* best = nullptr;
  std::size_t limit = std::max<std::size_t>(1, word.size() / 3);
  for (const std::string& candidate : candidates) {
    if (candidate.size() > word_max) continue;
    const std::size_t d = distance(word, candidate, limit);
    if (d > limit || (best && d == limit)) continue;
    best = &candidate;
    limit = d;
  }
  return best;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string* best = closest(word, candidates);
  return best ? fmt::format("did you mean `{}`?", *best) : std::string();
}

}  // namespace creto::authz::cedar
