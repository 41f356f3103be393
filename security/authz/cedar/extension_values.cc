#include "cedar/extension_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <limits>

#include "cedar/text.h"

namespace creto::authz::cedar {
namespace {

constexpr std::int64_t ms_per_day = 86'400'000;

Error bad(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }
Error malformed(std::string_view what, std::string_view text) {
  return bad(fmt::format("{} is no {}", quote(text.substr(0, 100)), what));
}

bool digit(char c) { return c >= '0' && c <= '9'; }
bool all_digits(std::string_view text) { return !text.empty() && std::all_of(text.begin(), text.end(), digit); }

/// The number as it stands, negated where asked; none where it does not fit.
std::optional<std::int64_t> to_int64(std::string_view digits, bool negative) {
  std::int64_t value = 0;
  for (const char c : digits) {
    if (__builtin_mul_overflow(value, std::int64_t{10}, &value)) return std::nullopt;
    const std::int64_t d = c - '0';
    if (negative ? __builtin_sub_overflow(value, d, &value) : __builtin_add_overflow(value, d, &value)) {
      return std::nullopt;
    }
  }
  return value;
}

struct Cursor {
  std::string_view rest;
  bool take(char c) {
    if (rest.empty() || rest[0] != c) return false;
    rest.remove_prefix(1);
    return true;
  }
  /// Exactly `count` digits; -1 where they are not there.
  int number(std::size_t count) {
    if (rest.size() < count || !all_digits(rest.substr(0, count))) return -1;
    int value = 0;
    for (std::size_t i = 0; i < count; ++i) value = value * 10 + (rest[i] - '0');
    rest.remove_prefix(count);
    return value;
  }
};

std::optional<std::array<std::uint8_t, 4>> parse_ipv4(std::string_view text) {
  std::array<std::uint8_t, 4> bytes{};
  for (std::size_t i = 0; i < 4; ++i) {
    const auto dot = i < 3 ? text.find('.') : text.size();
    if (dot == std::string_view::npos) return std::nullopt;
    const auto part = text.substr(0, dot);
    if (!all_digits(part) || part.size() > 3 || (part.size() > 1 && part[0] == '0')) return std::nullopt;
    const auto value = *to_int64(part, false);
    if (value > 255) return std::nullopt;
    bytes[i] = static_cast<std::uint8_t>(value);
    text.remove_prefix(i < 3 ? dot + 1 : dot);
  }
  return bytes;
}

std::optional<std::array<std::uint8_t, 16>> parse_ipv6(std::string_view text) {
  std::array<std::uint8_t, 16> bytes{};
  std::array<std::uint16_t, 8> head{};
  std::array<std::uint16_t, 8> tail{};
  std::size_t heads = 0;
  std::size_t tails = 0;
  const auto groups = [](std::string_view part, std::array<std::uint16_t, 8>& out, std::size_t& count) {
    if (part.empty()) return true;
    while (true) {
      const auto colon = part.find(':');
      const auto group = part.substr(0, colon);
      if (group.empty() || group.size() > 4 || count == 8) return false;
      unsigned value = 0;
      for (const char c : group) {
        unsigned nibble;
        if (digit(c)) {
          nibble = static_cast<unsigned>(c - '0');
        } else if (c >= 'a' && c <= 'f') {
          nibble = static_cast<unsigned>(c - 'a') + 10;
        } else if (c >= 'A' && c <= 'F') {
          nibble = static_cast<unsigned>(c - 'A') + 10;
        } else {
          return false;
        }
        value = value << 4 | nibble;
      }
      out[count++] = static_cast<std::uint16_t>(value);
      if (colon == std::string_view::npos) return true;
      part.remove_prefix(colon + 1);
    }
  };
  const auto gap = text.find("::");
  if (gap == std::string_view::npos) {
    if (!groups(text, head, heads) || heads != 8) return std::nullopt;
  } else {
    if (!groups(text.substr(0, gap), head, heads) || !groups(text.substr(gap + 2), tail, tails)) return std::nullopt;
    if (heads + tails > 7) return std::nullopt;  // the gap stands for at least one group
  }
  for (std::size_t i = 0; i < heads; ++i) {
    bytes[2 * i] = static_cast<std::uint8_t>(head[i] >> 8);
    bytes[2 * i + 1] = static_cast<std::uint8_t>(head[i]);
  }
  for (std::size_t i = 0; i < tails; ++i) {
    const auto at = 8 - tails + i;
    bytes[2 * at] = static_cast<std::uint8_t>(tail[i] >> 8);
    bytes[2 * at + 1] = static_cast<std::uint8_t>(tail[i]);
  }
  return bytes;
}

/// First and last address of the range that the prefix makes.
std::array<std::uint8_t, 16> edge(const IpValue& ip, bool last) {
  auto address = ip.address;
  const std::size_t bits = ip.v6 ? 128 : 32;
  for (std::size_t bit = ip.prefix; bit < bits; ++bit) {
    const auto mask = static_cast<std::uint8_t>(0x80 >> bit % 8);
    if (last) {
      address[bit / 8] = static_cast<std::uint8_t>(address[bit / 8] | mask);
    } else {
      address[bit / 8] = static_cast<std::uint8_t>(address[bit / 8] & ~mask);
    }
  }
  return address;
}

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

template <class T>
Result<const T*> argument(std::span<const Value> arguments, std::size_t index, std::string_view wanted) {
  const T* value = arguments[index].as<T>();
  if (!value) return bad(fmt::format("expected a {}, got a {}", wanted, arguments[index].type_name()));
  return value;
}

template <auto parse>
Result<Value> construct(std::span<const Value> arguments) {
  const auto* text = CRETO_TRY(argument<std::string>(arguments, 0, "string"));
  auto value = CRETO_TRY(parse(*text));
  return Value(value);
}

template <auto compare>
Result<Value> compare_decimals(std::span<const Value> arguments) {
  const auto* a = CRETO_TRY(argument<DecimalValue>(arguments, 0, "decimal"));
  const auto* b = CRETO_TRY(argument<DecimalValue>(arguments, 1, "decimal"));
  return Value(compare(a->ten_thousandths, b->ten_thousandths));
}

template <auto test>
Result<Value> test_ip(std::span<const Value> arguments) {
  const auto* ip = CRETO_TRY(argument<IpValue>(arguments, 0, "ipaddr"));
  return Value(test(*ip));
}

Result<Value> is_in_range(std::span<const Value> arguments) {
  const auto* a = CRETO_TRY(argument<IpValue>(arguments, 0, "ipaddr"));
  const auto* b = CRETO_TRY(argument<IpValue>(arguments, 1, "ipaddr"));
  return Value(a->v6 == b->v6 && edge(*a, false) >= edge(*b, false) && edge(*a, true) <= edge(*b, true));
}

Result<Value> offset(std::span<const Value> arguments) {
  const auto* at = CRETO_TRY(argument<DatetimeValue>(arguments, 0, "datetime"));
  const auto* by = CRETO_TRY(argument<DurationValue>(arguments, 1, "duration"));
  DatetimeValue sum;
  if (__builtin_add_overflow(at->unix_ms, by->ms, &sum.unix_ms)) return bad("overflow in offset");
  return Value(sum);
}

Result<Value> duration_since(std::span<const Value> arguments) {
  const auto* a = CRETO_TRY(argument<DatetimeValue>(arguments, 0, "datetime"));
  const auto* b = CRETO_TRY(argument<DatetimeValue>(arguments, 1, "datetime"));
  DurationValue difference;
  if (__builtin_sub_overflow(a->unix_ms, b->unix_ms, &difference.ms)) return bad("overflow in durationSince");
  return Value(difference);
}

Result<Value> to_date(std::span<const Value> arguments) {
  const auto* at = CRETO_TRY(argument<DatetimeValue>(arguments, 0, "datetime"));
  DatetimeValue day;
  if (__builtin_mul_overflow(floor_div(at->unix_ms, ms_per_day), ms_per_day, &day.unix_ms)) {
    return bad("overflow in toDate");
  }
  return Value(day);
}

Result<Value> to_time(std::span<const Value> arguments) {
  const auto* at = CRETO_TRY(argument<DatetimeValue>(arguments, 0, "datetime"));
  const auto rest = at->unix_ms % ms_per_day;
  return Value(DurationValue{rest < 0 ? rest + ms_per_day : rest});
}

template <std::int64_t unit>
Result<Value> duration_in(std::span<const Value> arguments) {
  const auto* duration = CRETO_TRY(argument<DurationValue>(arguments, 0, "duration"));
  return Value(duration->ms / unit);
}

constexpr ExtensionFunction functions[] = {
    {"decimal", false, 1, construct<parse_decimal>},
    {"lessThan", true, 2, compare_decimals<std::less<std::int64_t>{}>},
    {"lessThanOrEqual", true, 2, compare_decimals<std::less_equal<std::int64_t>{}>},
    {"greaterThan", true, 2, compare_decimals<std::greater<std::int64_t>{}>},
    {"greaterThanOrEqual", true, 2, compare_decimals<std::greater_equal<std::int64_t>{}>},
    {"ip", false, 1, construct<parse_ip>},
    {"isIpv4", true, 1, test_ip<[](const IpValue& ip) { return !ip.v6; }>},
    {"isIpv6", true, 1, test_ip<[](const IpValue& ip) { return ip.v6; }>},
    {"isLoopback", true, 1, test_ip<[](const IpValue& ip) {
       if (!ip.v6) return ip.prefix >= 8 && ip.address[0] == 127;
       return ip.prefix == 128 && ip.address[15] == 1 &&
              std::all_of(ip.address.begin(), ip.address.end() - 1, [](std::uint8_t b) { return b == 0; });
     }>},
    {"isMulticast", true, 1, test_ip<[](const IpValue& ip) {
       return ip.v6 ? ip.prefix >= 8 && ip.address[0] == 0xff : ip.prefix >= 4 && (ip.address[0] & 0xf0) == 0xe0;
     }>},
    {"isInRange", true, 2, is_in_range},
    {"datetime", false, 1, construct<parse_datetime>},
    {"offset", true, 2, offset},
    {"durationSince", true, 2, duration_since},
    {"toDate", true, 1, to_date},
    {"toTime", true, 1, to_time},
    {"duration", false, 1, construct<parse_duration_value>},
    {"toMilliseconds", true, 1, duration_in<1>},
    {"toSeconds", true, 1, duration_in<1'000>},
    {"toMinutes", true, 1, duration_in<60'000>},
    {"toHours", true, 1, duration_in<3'600'000>},
    {"toDays", true, 1, duration_in<ms_per_day>},
};

}  // namespace

Result<DecimalValue> parse_decimal(std::string_view text) {
  const bool negative = text.starts_with('-');
  const auto digits = text.substr(negative ? 1 : 0);
  const auto point = digits.find('.');
  if (point == std::string_view::npos) return malformed("decimal", text);
  const auto whole = digits.substr(0, point);
  const auto fraction = digits.substr(point + 1);
  if (!all_digits(whole) || !all_digits(fraction)) return malformed("decimal", text);
  if (fraction.size() > 4)
    return bad(fmt::format("{}: a decimal has at most 4 digits after the point", quote(text.substr(0, 100))));
  std::string scaled(whole);
  scaled += fraction;
  scaled.append(4 - fraction.size(), '0');
  const auto value = to_int64(scaled, negative);
  if (!value) return bad(fmt::format("{}: out of the range of a decimal", quote(text.substr(0, 100))));
  return DecimalValue{*value};
}

Result<IpValue> parse_ip(std::string_view text) {
  // The longest legal text: eight groups of four, seven colons, "/128".
  if (text.size() > 43) return malformed("ipaddr", text);
  IpValue ip;
  const auto slash = text.find('/');
  const auto address = text.substr(0, slash);
  if (const auto v4 = parse_ipv4(address)) {
    std::copy(v4->begin(), v4->end(), ip.address.begin());
  } else if (const auto v6 = parse_ipv6(address)) {
    ip.v6 = true;
    ip.prefix = 128;
    ip.address = *v6;
  } else {
    return malformed("ipaddr", text);
  }
  if (slash != std::string_view::npos) {
    const auto prefix = text.substr(slash + 1);
    if (!all_digits(prefix) || prefix.size() > 3 || (prefix.size() > 1 && prefix[0] == '0')) {
      return malformed("ipaddr", text);
    }
    const auto value = *to_int64(prefix, false);
    if (value > (ip.v6 ? 128 : 32)) return malformed("ipaddr", text);
    ip.prefix = static_cast<std::uint8_t>(value);
  }
  return ip;
}

Result<DatetimeValue> parse_datetime(std::string_view text) {
  Cursor in{text};
  const int year = in.number(4);
  if (year < 0 || !in.take('-')) return malformed("datetime", text);
  const int month = in.number(2);
  if (month < 0 || !in.take('-')) return malformed("datetime", text);
  const int day = in.number(2);
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (day < 0 || !date.ok()) return malformed("datetime", text);
  std::int64_t ms = std::chrono::sys_days(date).time_since_epoch().count() * ms_per_day;
  if (in.rest.empty()) return DatetimeValue{ms};

  if (!in.take('T')) return malformed("datetime", text);
  const int hour = in.number(2);
  if (hour < 0 || hour > 23 || !in.take(':')) return malformed("datetime", text);
  const int minute = in.number(2);
  if (minute < 0 || minute > 59 || !in.take(':')) return malformed("datetime", text);
  const int second = in.number(2);
  if (second < 0 || second > 59) return malformed("datetime", text);
  ms += ((hour * 60 + minute) * 60 + second) * std::int64_t{1000};
  if (in.take('.')) {
    const int fraction = in.number(3);
    if (fraction < 0) return malformed("datetime", text);
    ms += fraction;
  }
  if (in.take('Z')) {
    if (!in.rest.empty()) return malformed("datetime", text);
    return DatetimeValue{ms};
  }
  const bool east = in.take('+');
  if (!east && !in.take('-')) return malformed("datetime", text);
  const int offset_hour = in.number(2);
  const int offset_minute = in.number(2);
  if (offset_hour < 0 || offset_hour > 23 || offset_minute < 0 || offset_minute > 59 || !in.rest.empty()) {
    return malformed("datetime", text);
  }
  const std::int64_t shift = (offset_hour * 60 + offset_minute) * std::int64_t{60'000};
  return DatetimeValue{east ? ms - shift : ms + shift};
}

Result<DurationValue> parse_duration_value(std::string_view text) {
  std::string_view rest = text;
  const bool negative = rest.starts_with('-');
  if (negative) rest.remove_prefix(1);
  if (rest.empty()) return malformed("duration", text);
  struct Unit {
    std::string_view name;
    std::int64_t ms;
  };
  constexpr Unit units[] = {{"d", ms_per_day}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1'000}, {"ms", 1}};
  std::size_t next = 0;
  std::int64_t sum = 0;
  while (!rest.empty()) {
    const auto digits = static_cast<std::size_t>(std::find_if_not(rest.begin(), rest.end(), digit) - rest.begin());
    if (digits == 0) return malformed("duration", text);
    const auto unit_end = std::find_if(rest.begin() + static_cast<std::ptrdiff_t>(digits), rest.end(), digit);
    const auto name = std::string_view(rest.begin() + digits, unit_end);
    while (next < std::size(units) && units[next].name != name) ++next;
    if (next == std::size(units)) return malformed("duration", text);
    const auto count = to_int64(rest.substr(0, digits), negative);
    std::int64_t part = 0;
    if (!count || __builtin_mul_overflow(*count, units[next].ms, &part) || __builtin_add_overflow(sum, part, &sum)) {
      return bad(fmt::format("{}: out of the range of a duration", quote(text.substr(0, 100))));
    }
    ++next;
    rest.remove_prefix(digits + name.size());
  }
  return DurationValue{sum};
}

std::string format(const DecimalValue& value) {
  const bool negative = value.ten_thousandths < 0;
  auto magnitude = static_cast<std::uint64_t>(value.ten_thousandths);
  if (negative) magnitude = 0 - magnitude;
  std::string fraction = fmt::format("{:04}", magnitude % 10'000);
  while (fraction.size() > 1 && fraction.back() == '0') fraction.pop_back();
  return fmt::format("{}{}.{}", negative ? "-" : "", magnitude / 10'000, fraction);
}

std::string format(const IpValue& value) {
  std::string text;
  if (!value.v6) {
    text = fmt::format("{}.{}.{}.{}", value.address[0], value.address[1], value.address[2], value.address[3]);
  } else {
    for (std::size_t i = 0; i < 16; i += 2) {
      text += fmt::format("{}{:x}", i ? ":" : "", value.address[i] << 8 | value.address[i + 1]);
    }
  }
  if (value.prefix != (value.v6 ? 128 : 32)) text += fmt::format("/{}", value.prefix);
  return text;
}

std::string format(const DatetimeValue& value) {
  const auto days = floor_div(value.unix_ms, ms_per_day);
  const auto of_day = value.unix_ms - days * ms_per_day;
  if (days < -719'528 || days > 2'932'896) {
    return fmt::format("{} ms after 1970", value.unix_ms);
  }
  const std::chrono::year_month_day date{std::chrono::sys_days(std::chrono::days(days))};
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", static_cast<int>(date.year()),
                     static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()), of_day / 3'600'000,
                     of_day / 60'000 % 60, of_day / 1'000 % 60, of_day % 1'000);
}

std::string format(const DurationValue& value) { return fmt::format("{}ms", value.ms); }

const ExtensionFunction* find_extension_function(std::string_view name) {
  const auto* at = std::find_if(std::begin(functions), std::end(functions),
                                [&](const ExtensionFunction& function) { return function.name == name; });
  return at == std::end(functions) ? nullptr : at;
}

}  // namespace creto::authz::cedar
