#include "creto/common/time.h"

#include <fmt/format.h>

#include <charconv>
#include <ctime>

#include "creto/common/clock.h"
#include "creto/common/tick_time.h"

namespace creto {
namespace {

using namespace std::chrono;

Error bad_time(std::string_view text, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("time `{}`: {}", text.substr(0, 64), rule));
}

/// Reads exactly `digits` digits; -1 otherwise.
int fixed_number(std::string_view& text, std::size_t digits) {
  if (text.size() < digits) return -1;
  int value = 0;
  for (std::size_t i = 0; i < digits; ++i) {
    if (text[i] < '0' || text[i] > '9') return -1;
    value = value * 10 + (text[i] - '0');
  }
  text.remove_prefix(digits);
  return value;
}

bool skip(std::string_view& text, std::string_view any_of) {
  if (text.empty() || any_of.find(text.front()) == std::string_view::npos) return false;
  text.remove_prefix(1);
  return true;
}

Nanos read(clockid_t id) {
  timespec spec{};
  clock_gettime(id, &spec);
  return seconds(spec.tv_sec) + nanoseconds(spec.tv_nsec);
}

class SystemClock final : public Clock {
 public:
  Instant now() const override { return Instant(read(CLOCK_REALTIME)); }
  Monotonic monotonic() const override { return Monotonic(read(CLOCK_MONOTONIC)); }
};

}  // namespace

const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

Monotonic TickTime::last_tick() { return Monotonic(read(CLOCK_MONOTONIC_COARSE)); }

std::string to_rfc3339(Instant instant) {
  const auto day = floor<days>(instant);
  const year_month_day date(day);
  const hh_mm_ss<Nanos> time(instant - day);
  std::string text = fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", static_cast<int>(date.year()),
                                 static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                                 time.hours().count(), time.minutes().count(), time.seconds().count());
  if (const auto ns = time.subseconds().count(); ns != 0) {
    if (ns % 1'000'000 == 0)
      text += fmt::format(".{:03}", ns / 1'000'000);
    else if (ns % 1'000 == 0)
      text += fmt::format(".{:06}", ns / 1'000);
    else
      text += fmt::format(".{:09}", ns);
  }
  return text + "Z";
}

Result<Instant> from_rfc3339(std::string_view whole) {
  std::string_view text = whole;
  const auto malformed = [&] { return bad_time(whole, "must be RFC 3339, such as 2026-11-29T20:35:04Z"); };
  const int y = fixed_number(text, 4);
  if (y < 0 || !skip(text, "-")) return malformed();
  const int mo = fixed_number(text, 2);
  if (mo < 0 || !skip(text, "-")) return malformed();
  const int d = fixed_number(text, 2);
  if (d < 0 || !skip(text, "Tt ")) return malformed();
  const int h = fixed_number(text, 2);
  if (h < 0 || !skip(text, ":")) return malformed();
  const int mi = fixed_number(text, 2);
  if (mi < 0 || !skip(text, ":")) return malformed();
  const int s = fixed_number(text, 2);
  if (s < 0) return malformed();

  std::int64_t ns = 0;
  if (skip(text, ".")) {
    std::int64_t unit = 100'000'000;
    std::size_t digits = 0;
    for (; !text.empty() && text.front() >= '0' && text.front() <= '9'; ++digits, unit /= 10) {
      ns += (text.front() - '0') * unit;
      text.remove_prefix(1);
    }
    if (digits == 0 || digits > 9) return bad_time(whole, "fraction must have 1 to 9 digits");
  }

  minutes offset{0};
  if (!skip(text, "Zz")) {
    const bool west = text.starts_with('-');
    if (!skip(text, "+-")) return bad_time(whole, "must end in Z or an offset such as +02:00");
    const int oh = fixed_number(text, 2);
    if (oh < 0 || oh > 23 || !skip(text, ":")) return malformed();
    const int om = fixed_number(text, 2);
    if (om < 0 || om > 59) return malformed();
    offset = (hours(oh) + minutes(om)) * (west ? -1 : 1);
  }
  if (!text.empty()) return malformed();

  const year_month_day date(year(y), month(static_cast<unsigned>(mo)), day(static_cast<unsigned>(d)));
  if (!date.ok() || h > 23 || mi > 59 || s > 59) return bad_time(whole, "is not a date and time that exists");
  // The offset may lead into another year.
  const auto at = sys_days(date) + hours(h) + minutes(mi) + seconds(s) - offset;
  if (at < sys_days(year(1678) / 1 / 1) || at >= sys_days(year(2262) / 1 / 1))
    return bad_time(whole, "must be within the years 1678 to 2261");
  return Instant(at) + Nanos(ns);
}

Result<Nanos> parse_duration(std::string_view whole) {
  const auto malformed = [&](std::string_view rule) {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("duration `{}`: {}", whole.substr(0, 64), rule));
  };
  struct Unit {
    std::string_view name;
    std::int64_t ns;
  };
  static constexpr Unit units[] = {{"ns", 1},
                                   {"us", 1'000},
                                   {"ms", 1'000'000},
                                   {"s", 1'000'000'000},
                                   {"m", 60'000'000'000},
                                   {"h", 3'600'000'000'000},
                                   {"d", 86'400'000'000'000}};
  std::string_view text = whole;
  std::int64_t total = 0;
  if (text.empty()) return malformed("is empty");
  while (!text.empty()) {
    std::int64_t number = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (problem != std::errc() || number < 0) return malformed("must look like 250ms, 90s or 1h30m");
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    const std::size_t length = std::min(text.find_first_of("0123456789"), text.size());
    const std::string_view name = text.substr(0, length);
    std::int64_t unit = 0;
    for (const Unit& candidate : units)
      if (candidate.name == name) unit = candidate.ns;
    if (unit == 0) return malformed("the unit must be one of ns, us, ms, s, m, h, d");
    std::int64_t part = 0;
    if (__builtin_mul_overflow(number, unit, &part) || __builtin_add_overflow(total, part, &total))
      return malformed("is longer than 292 years");
    text.remove_prefix(length);
  }
  return Nanos(total);
}

std::string to_string(Nanos duration) {
  std::int64_t ns = duration.count();
  if (ns == 0) return "0s";
  std::string text = ns < 0 ? "-" : "";
  auto rest = ns < 0 ? 0 - static_cast<std::uint64_t>(ns) : static_cast<std::uint64_t>(ns);
  const auto take = [&](std::uint64_t unit, std::string_view name) {
    if (rest >= unit) text += fmt::format("{}{}", rest / unit, name);
    rest %= unit;
  };
  take(86'400'000'000'000, "d");
  take(3'600'000'000'000, "h");
  take(60'000'000'000, "m");
  take(1'000'000'000, "s");
  take(1'000'000, "ms");
  take(1'000, "us");
  take(1, "ns");
  return text;
}

std::strong_ordering compare(const Timestamp& a, const Timestamp& b) {
  if (const auto order = a.physical_ns <=> b.physical_ns; order != 0) return order;
  if (const auto order = a.logical <=> b.logical; order != 0) return order;
  return a.node <=> b.node;
}

}  // namespace creto
