#include "sql/crash_point.h"

#ifndef NDEBUG

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>

#include "creto/common/assert.h"

namespace creto::sql::detail {
namespace {

struct Armed {
  std::string side, file;
};

const std::optional<Armed>& armed() {
  static const std::optional<Armed> plan = []() -> std::optional<Armed> {
    const char* text = std::getenv("CRETO_CRASH_AT");
    if (text == nullptr) return std::nullopt;
    const std::string_view given = text;
    const auto colon = given.find(':');
    CRETO_ASSERT(colon != given.npos);
    return Armed{std::string(given.substr(0, colon)), std::string(given.substr(colon + 1))};
  }();
  return plan;
}

std::string_view next_word(std::string_view& text) {
  constexpr std::string_view space = " \n\t(";
  const auto begin = text.find_first_not_of(space);
  if (begin == text.npos) return {};
  text.remove_prefix(begin);
  const auto word = text.substr(0, text.find_first_of(space));
  text.remove_prefix(word.size());
  return word;
}

/// "INSERT metering_events" for a statement that writes, empty for any other.
std::string written_by(std::string_view sql) {
  const auto verb = next_word(sql);
  if (verb != "INSERT" && verb != "UPDATE" && verb != "DELETE") return {};
  auto table = next_word(sql);
  while (table == "INTO" || table == "FROM" || table == "OR" || table == "REPLACE") table = next_word(sql);
  return fmt::format("{} {}", verb, table);
}

/// The driver of the test takes lines away while we run, so the file is read each time.
bool is_new(const std::string& file, const std::string& kind) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line == kind) return false;
  return true;
}

void die_at(std::string_view side, const std::string& kind) {
  const auto& plan = armed();
  if (!plan || plan->side != side || kind.empty() || !is_new(plan->file, kind)) return;
  const int file = ::open(plan->file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  const std::string line = kind + "\n";
  CRETO_ASSERT(file >= 0 && ::write(file, line.data(), line.size()) == static_cast<ssize_t>(line.size()));
  ::kill(::getpid(), SIGKILL);
}

}  // namespace

void CrashPoint::wrote(std::string_view sql) {
  if (!armed()) return;
  std::string what = written_by(sql);
  if (!what.empty() && std::ranges::find(written_, what) == written_.end()) written_.push_back(std::move(what));
}

void CrashPoint::before_commit() const { die_at("before", fmt::format("{}", fmt::join(written_, ", "))); }
void CrashPoint::after_commit() const { die_at("after", fmt::format("{}", fmt::join(written_, ", "))); }

}  // namespace creto::sql::detail

#endif
