#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"
#include "creto/common/time_zone.h"
#include "creto/metering/quota.h"

namespace creto::metering {

/// What usage is grouped by. In text: the name of the enumerator, "property:<name>" for a property.
struct UsageGrouping {
  enum class By : std::uint8_t {
    type,
    agent,         ///< whose use it is
    owner,         ///< the first of its delegation chain; itself where it has none
    ancestor,      ///< each of its delegation chain: an event counts in several rows
    subscription,  ///< that it is billed to; empty: none
    property,      ///< value of a property; an event without it counts under the empty one
    hour,          ///< "2026-11-10T14:00:00+01:00", in the query's time zone
    day,           ///< "2026-11-10"
    week,          ///< its Monday
    month,         ///< "2026-11"
  };
  By by = By::type;
  std::string property{};
  friend bool operator==(const UsageGrouping&, const UsageGrouping&) = default;
};
std::string to_string(const UsageGrouping& grouping);
Result<UsageGrouping> usage_grouping_from_string(std::string_view text);

enum class UsageOrder : std::uint8_t {
  keys,    ///< ascending
  events,  ///< this and the following: the largest first; equal ones by their keys
  units,
  cost,
};
std::string_view to_string(UsageOrder order);
Result<UsageOrder> usage_order_from_string(std::string_view text);

/// Which events to add up, and how.
struct UsageQuery {
  static constexpr std::size_t group_by_max = 4;
  static constexpr std::size_t filters_max = 16;
  static constexpr std::size_t values_max = 32;  ///< of a filter
  static constexpr std::size_t rows_max = 100'000;
  static constexpr std::size_t after_bytes_max = 32 << 10;

  std::string subject{};     ///< an identity: its own use and that of all below it; or a subscription; empty: all
  std::string event_type{};  ///< empty: all
  /// All of them must hold. An event without a property has the empty value of it.
  std::vector<PropertyMatch> filters{};
  Instant from{};  ///< by the time of the event; half open
  Instant until = Instant::max();
  std::vector<UsageGrouping> group_by = {{}};  ///< none: one row. At most one of them is a period
  TimeZone zone{};                             ///< in which hours, days, weeks and months are meant
  UsageOrder order = UsageOrder::keys;
  std::size_t limit = 1'000;  ///< of rows, 1 to `rows_max`
  std::string after{};  ///< `next` of an earlier answer to the same query in the order of keys: the rows behind it
};

/// Errors: invalid_input naming the field.
Result<> check_usage_query(const UsageQuery& query);

struct UsageRow {
  std::vector<std::string> keys;  ///< one of each grouping
  std::int64_t events = 0;
  Decimal units;
  Money cost;  ///< as the events stated it, in the accounting currency; what is in others is not in it
};

struct UsageReport {
  std::vector<UsageRow> rows;
  std::size_t groups = 0;  ///< all there are, also those beyond the limit
  std::string next{};      ///< in the order of keys, where there are more rows
  /// What arrived until then is no longer held, and counts no more here. None: all that ever came is.
  std::optional<Instant> held_since{};
};

/// Which events of the usage log to read, a page at a time.
struct UsageEventsQuery {
  static constexpr std::size_t limit_max = 10'000;
  static constexpr std::size_t after_bytes_max = 64;

  std::string subject{};  ///< an identity: its own and those of all below it; or a subscription; empty: all
  Instant from{};         ///< by arrival; half open
  Instant until = Instant::max();
  std::string after{};        ///< `next` of the page before; empty: from the first one
  std::size_t limit = 1'000;  ///< of events, 1 to `limit_max`
};

/// Errors: invalid_input naming the field.
Result<> check_usage_events_query(const UsageEventsQuery& query);

struct UsageEventsPage {
  std::vector<std::string> events;  ///< each as a line of `creto metering dump`, in the order of arrival
  /// Where the next page begins; empty: there is no more. A page may have few events or none and yet a next one.
  std::string next;
  std::optional<Instant> held_since{};  ///< as of UsageReport
};

}  // namespace creto::metering
