#include "creto/common/time_zone.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

namespace creto {
namespace {

using namespace std::chrono;

constexpr std::size_t file_bytes_max = 256 << 10;
constexpr std::int64_t offset_max = 26 * 3600;  // what RFC 9636 lets a zone differ from UTC

Error bad_zone(std::string_view name, std::string_view rule) {
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("time zone `{}`: {}", legible(name.substr(0, 64)), rule));
}

/// When a rule of a TZ string takes effect in a year.
struct RuleDay {
  enum class Kind { julian_without_leap, zero_based, month_week } kind = Kind::month_week;
  int day = 0;    ///< of the year; for month_week the weekday, 0 is Sunday
  int month = 1;  ///< month_week only
  int week = 1;   ///< month_week only; 5 is the last
  std::int64_t seconds = 2 * 3600;

  /// Local seconds since 1970.
  std::int64_t in(year y) const {
    const sys_days january = sys_days(y / January / 1);
    sys_days date = january + days(day);
    if (kind == Kind::julian_without_leap) {
      date = january + days(day - 1 + (y.is_leap() && day >= 60 ? 1 : 0));
    } else if (kind == Kind::month_week) {
      const std::chrono::month of(static_cast<unsigned>(month));
      const std::chrono::weekday on(static_cast<unsigned>(day));
      date = week == 5 ? sys_days(y / of / on[last]) : sys_days(y / of / on[static_cast<unsigned>(week)]);
    }
    return date.time_since_epoch().count() * 86'400LL + seconds;
  }
};

/// What holds after the last transition of a file: the TZ string of its footer (POSIX, with the extensions of RFC
/// 9636).
struct Footer {
  std::int64_t standard = 0;
  struct Summer {
    std::int64_t offset;
    RuleDay begin, end;
  };
  std::optional<Summer> summer{};

  std::int64_t offset_at(std::int64_t second) const {
    if (!summer) return standard;
    const sys_days day = floor<days>(sys_seconds(seconds(second + standard)));
    const year y = year_month_day(day).year();
    const std::int64_t begin = summer->begin.in(y)-standard;
    const std::int64_t end = summer->end.in(y)-summer->offset;
    const bool in_summer = begin < end ? begin <= second && second < end : !(end <= second && second < begin);
    return in_summer ? summer->offset : standard;
  }
};

class FooterReader {
 public:
  explicit FooterReader(std::string_view text) : text_(text) {}

  std::optional<Footer> read() {
    Footer footer;
    const auto standard = skip_name() ? time(24) : std::nullopt;
    if (!standard) return std::nullopt;
    footer.standard = -*standard;  // POSIX counts westward
    if (text_.empty()) return footer;
    if (!skip_name()) return std::nullopt;
    Footer::Summer summer{footer.standard + 3600, {}, {}};
    if (!text_.empty() && text_.front() != ',') {
      const auto offset = time(24);
      if (!offset) return std::nullopt;
      summer.offset = -*offset;
    }
    const auto begin = rule();
    const auto end = begin ? rule() : std::nullopt;
    if (!end || !text_.empty()) return std::nullopt;
    summer.begin = *begin;
    summer.end = *end;
    footer.summer = summer;
    return footer;
  }

 private:
  bool skip(char c) {
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  bool skip_name() {
    const bool quoted = skip('<');
    std::size_t length = 0;
    while (length < text_.size()) {
      const char c = text_[length];
      const bool letter = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
      const bool other = (c >= '0' && c <= '9') || c == '+' || c == '-';
      if (!letter && !(quoted && other)) break;
      ++length;
    }
    text_.remove_prefix(length);
    return length >= 3 && (!quoted || skip('>'));
  }
  std::optional<int> number(int at_most) {
    int value = 0;
    std::size_t digits = 0;
    while (digits < 3 && digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9') {
      value = value * 10 + (text_[digits++] - '0');
    }
    text_.remove_prefix(digits);
    if (digits == 0 || value > at_most) return std::nullopt;
    return value;
  }
  /// [+-]hh[:mm[:ss]]
  std::optional<std::int64_t> time(int hours_max) {
    const bool negative = skip('-');
    if (!negative) skip('+');
    const auto hour = number(hours_max);
    if (!hour) return std::nullopt;
    std::int64_t total = *hour * 3600;
    for (const int unit : {60, 1}) {
      if (!skip(':')) break;
      const auto part = number(59);
      if (!part) return std::nullopt;
      total += *part * unit;
    }
    return negative ? -total : total;
  }
  /// ",M3.5.0/2", ",J60", ",59/0"
  std::optional<RuleDay> rule() {
    if (!skip(',')) return std::nullopt;
    RuleDay result;
    if (skip('M')) {
      const auto month = number(12);
      const auto week = month && skip('.') ? number(5) : std::nullopt;
      const auto weekday = week && skip('.') ? number(6) : std::nullopt;
      if (!weekday || *month == 0 || *week == 0) return std::nullopt;
      result.month = *month;
      result.week = *week;
      result.day = *weekday;
    } else {
      const bool julian = skip('J');
      result.kind = julian ? RuleDay::Kind::julian_without_leap : RuleDay::Kind::zero_based;
      const auto day = number(365);
      if (!day || (julian && *day == 0)) return std::nullopt;
      result.day = *day;
    }
    if (skip('/')) {
      const auto at = time(167);
      if (!at) return std::nullopt;
      result.seconds = *at;
    }
    return result;
  }

  std::string_view text_;
};

std::int64_t big_endian(BytesView bytes) {
  std::uint64_t value = (bytes[0] & 0x80) != 0 ? ~std::uint64_t{0} : 0;
  for (const std::uint8_t byte : bytes) value = value << 8 | byte;
  return static_cast<std::int64_t>(value);
}

/// The counts of a TZif header, and how many bytes the data after it take.
struct Header {
  std::size_t utc_marks, standard_marks, leaps, times, types, letters;
  static constexpr std::size_t size = 44;

  static std::optional<Header> read(BytesView bytes) {
    if (bytes.size() < size || as_text(bytes.first(4)) != "TZif") return std::nullopt;
    std::array<std::size_t, 6> counts{};
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const std::int64_t count = big_endian(bytes.subspan(20 + 4 * i, 4));
      if (count < 0 || count > static_cast<std::int64_t>(file_bytes_max)) return std::nullopt;
      counts[i] = static_cast<std::size_t>(count);
    }
    return Header{counts[0], counts[1], counts[2], counts[3], counts[4], counts[5]};
  }
  std::size_t data_size(std::size_t time_size) const {
    return times * (time_size + 1) + types * 6 + letters + leaps * (time_size + 4) + standard_marks + utc_marks;
  }
};

constexpr std::string_view folder = "/usr/share/zoneinfo/";

bool is_zone_name(std::string_view name) {
  const bool known = std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '+' ||
           c == '-' || c == '/';
  });
  return known && !name.empty() && name.size() <= 64 && name.front() != '/' && name.back() != '/';
}

std::optional<Bytes> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), std::fclose);
  if (!file) return std::nullopt;
  Bytes bytes(file_bytes_max + 1);
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file.get()));
  if (std::ferror(file.get()) != 0) return std::nullopt;
  return bytes;
}

}  // namespace

struct TimeZone::Rules {
  std::string name = "UTC";
  std::vector<std::int64_t> times{};    ///< Unix seconds, ascending
  std::vector<std::int64_t> offsets{};  ///< from the time of the same index on
  std::int64_t before_first = 0;
  std::optional<Footer> after_last = Footer{};

  std::int64_t offset_at(std::int64_t second) const {
    const auto next = std::ranges::upper_bound(times, second);
    if (next == times.end() && after_last) return after_last->offset_at(second);
    if (next == times.begin()) return before_first;
    return offsets[static_cast<std::size_t>(next - times.begin()) - 1];
  }
};

TimeZone::TimeZone() {
  static const auto utc = std::make_shared<const Rules>();
  rules_ = utc;
}
TimeZone::TimeZone(std::shared_ptr<const Rules> rules) : rules_(std::move(rules)) {}

Result<TimeZone> TimeZone::load(std::string_view name) {
  if (name == "UTC") return TimeZone();
  if (!is_zone_name(name)) return bad_zone(name, "must be a name such as `Europe/Berlin`");
  static std::mutex mutex;
  static std::map<std::string, TimeZone, std::less<>> loaded;
  const std::scoped_lock lock(mutex);
  if (const auto found = loaded.find(name); found != loaded.end()) return found->second;
  const auto bytes = read_file(std::string(folder).append(name));
  if (!bytes) return bad_zone(name, "is not in the time zone database of this machine");
  TimeZone zone = CRETO_TRY(parse(std::string(name), *bytes));
  loaded.emplace(zone.name(), zone);
  return zone;
}

Result<TimeZone> TimeZone::parse(std::string name, BytesView tzif) {
  if (tzif.size() > file_bytes_max) return bad_zone(name, "file must be at most 256 KiB");
  auto header = Header::read(tzif);
  if (!header) return bad_zone(name, "is no TZif file");
  std::size_t time_size = 4;
  const bool has_second_block = tzif[4] >= '2';
  if (has_second_block) {
    const std::size_t skipped = Header::size + header->data_size(4);
    if (tzif.size() < skipped) return bad_zone(name, "file ends early");
    tzif = tzif.subspan(skipped);
    header = Header::read(tzif);
    if (!header) return bad_zone(name, "second header is missing");
    time_size = 8;
  }
  if (tzif.size() - Header::size < header->data_size(time_size)) return bad_zone(name, "file ends early");
  if (header->types == 0) return bad_zone(name, "file has no local time type");

  auto rules = std::make_shared<Rules>();
  const BytesView times = tzif.subspan(Header::size, header->times * time_size);
  const BytesView indices = tzif.subspan(Header::size + times.size(), header->times);
  const BytesView types = tzif.subspan(Header::size + times.size() + indices.size(), header->types * 6);
  std::vector<std::int64_t> offset_of;
  for (std::size_t i = 0; i < header->types; ++i) {
    offset_of.push_back(big_endian(types.subspan(6 * i, 4)));
    if (offset_of.back() < -offset_max || offset_of.back() > offset_max) {
      return bad_zone(name, "offset must be within 26 hours");
    }
  }
  rules->before_first = offset_of.front();
  for (std::size_t i = 0; i < header->times; ++i) {
    const std::int64_t time = big_endian(times.subspan(i * time_size, time_size));
    if (!rules->times.empty() && time <= rules->times.back()) return bad_zone(name, "transitions must grow");
    if (indices[i] >= header->types) return bad_zone(name, "transition names no local time type");
    rules->times.push_back(time);
    rules->offsets.push_back(offset_of[indices[i]]);
  }
  rules->after_last.reset();
  if (has_second_block) {
    std::string_view footer = as_text(tzif.subspan(Header::size + header->data_size(time_size)));
    if (footer.size() < 2 || footer.front() != '\n' || footer.back() != '\n') {
      return bad_zone(name, "footer must be a line");
    }
    footer = footer.substr(1, footer.size() - 2);
    if (!footer.empty()) {
      rules->after_last = FooterReader(footer).read();
      if (!rules->after_last) return bad_zone(name, "footer is no TZ string");
    }
  }
  rules->name = std::move(name);
  return TimeZone(std::move(rules));
}

const std::string& TimeZone::name() const { return rules_->name; }

seconds TimeZone::offset_at(Instant when) const {
  return seconds(rules_->offset_at(floor<seconds>(when).time_since_epoch().count()));
}

TimeZone::LocalTime TimeZone::local(Instant when) const { return LocalTime(when.time_since_epoch() + offset_at(when)); }

Instant TimeZone::instant(LocalTime time) const {
  // Whatever happens at `time`, it happens between the offsets of the day before and of the day after.
  const Instant as_utc(time.time_since_epoch());
  const seconds before = offset_at(as_utc - days(1));
  const seconds after = offset_at(as_utc + days(1));
  for (const seconds offset : {before, after}) {
    if (offset_at(as_utc - offset) == offset) return as_utc - offset;
  }
  // Skipped: the clocks go from `before` to `after` in (as_utc - after, as_utc - before].
  auto low = floor<seconds>(as_utc - after);
  auto high = floor<seconds>(as_utc - before);
  while (high - low > seconds(1)) {
    const auto middle = low + (high - low) / 2;
    (offset_at(middle) == before ? low : high) = middle;
  }
  return high;
}

local_days TimeZone::day_of(Instant when) const { return floor<days>(local(when)); }
Instant TimeZone::day_begin(local_days day) const { return instant(LocalTime(day)); }

}  // namespace creto
