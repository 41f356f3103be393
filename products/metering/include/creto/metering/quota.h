#pragma once

#include <optional>
#include <string>
#include <vector>

#include "creto/common/id.h"
#include "creto/common/identity.h"
#include "creto/common/money.h"
#include "creto/common/result.h"
#include "creto/common/time.h"
#include "creto/contracts/cost_trigger.h"

namespace creto::metering {

/// Over what use is added up. A calendar window is one of the quota's time zone (hours are those of UTC). A rolling
/// window forgets in steps of a sixtieth of its length: it never holds less than what was used in its length, and at
/// most a sixtieth of the length more.
enum class WindowKind : std::uint8_t {
  rolling,
  hour,
  day,
  week,  ///< from Monday
  month,
  lifetime,
  transaction,  ///< a single use
  concurrent,   ///< nothing but what is held at this moment: calls under way, sandboxes ("sandbox_running")
};
std::string_view to_string(WindowKind kind);
Result<WindowKind> window_kind_from_string(std::string_view text);

/// What is added up.
enum class Measure : std::uint8_t {
  units,   ///< sandboxes, tokens, bytes, calls: whatever the type counts; fractions count as one
  events,  ///< one for each use: requests per minute
  cost,    ///< money in the accounting currency
};
std::string_view to_string(Measure measure);
Result<Measure> measure_from_string(std::string_view text);

/// Largest limit, so that sums of counters stay inside 64 bits.
inline constexpr std::int64_t limit_max = 1'000'000'000'000'000'000;

/// What a request to spend beyond the hard limit meets. Facts are recorded
/// whatever it says.
enum class Overflow : std::uint8_t {
  block,                    ///< refused with quota_exceeded
  allow_with_notification,  ///< allowed; a quota notice is published
  oversight,                ///< refused with oversight_required; a quota notice asks for
                            ///< approval
};
std::string_view to_string(Overflow overflow);
Result<Overflow> overflow_from_string(std::string_view text);

/// A property of the use, such as `model_id`, and the values that count.
struct PropertyMatch {
  std::string property{};             ///< [a-z0-9_.-]{1,64}
  std::vector<std::string> values{};  ///< 1 to 32, each 1 to 128 bytes
  friend bool operator==(const PropertyMatch&, const PropertyMatch&) = default;
};

/// A limit on what a subject and all agents below it use, counted by arrival.
struct Quota {
  std::string id{};  ///< [a-z0-9_.-]{1,64}, unique in the organization
  /// An identity (agent, human or service), a subscription id, or "session:<name>": uses whose property `session`
  /// says so, or else `sandbox_id`. "agent:*", "human:*", "service:*", "subscription:*" and "session:*" are a default
  /// for each of that kind by itself, until it has a quota of its own that counts the same.
  std::string subject{};
  /// What is counted: a usage type, or the name of an action such as "payments.pay". Empty: every use, where requests
  /// or money are counted.
  std::string event_type{};
  std::vector<PropertyMatch> match{};  ///< all of them must hold; at most 4
  Measure measure = Measure::units;
  /// Of the money that is counted: costs in it alone. Empty: the accounting currency.
  std::string currency{};
  WindowKind window = WindowKind::month;
  Nanos rolling_length{};   ///< 1 s to 366 days; rolling windows only
  std::string time_zone{};  ///< "Europe/Berlin"; empty: UTC. Days, weeks and months only
  std::int64_t limit = 0;   ///< whole units or requests; of money, billionths of the currency's unit
  int soft_percent = 95;    ///< 1..100: a notice is published once per window when use reaches it
  Overflow overflow = Overflow::block;
  std::vector<std::string> approvers{};  ///< for oversight and for notices; at most 16
};
Result<> validate(const Quota& quota);
Result<std::string> to_json(const Quota& quota);
Result<Quota> quota_from_json(std::string_view text);

/// A cost threshold on an identity and all agents below it, whatever the type of the event. It counts costs in the
/// currency of its limit. What it cannot see, it asks about or blocks: a cost that is neither in the accounting
/// currency nor in one of which the subject has a threshold of the same period that asks or blocks.
struct SubjectThreshold {
  std::string subject{};  ///< as of a quota, defaults for each included
  contracts::CostThreshold threshold;
  std::string time_zone{};  ///< of days and months; empty: UTC
};
Result<> validate(const SubjectThreshold& threshold);
Result<std::string> to_json(const SubjectThreshold& threshold);
Result<SubjectThreshold> threshold_from_json(std::string_view text);

/// Where a quota stands.
struct QuotaState {
  std::string quota_id{};
  std::string subject{};
  std::string event_type{};
  Measure measure = Measure::units;
  WindowKind window = WindowKind::month;
  Overflow overflow = Overflow::block;
  std::string currency{};             ///< of money; empty: the accounting currency
  std::int64_t limit = 0;             ///< in the quota's measure, as the next two
  std::int64_t used = 0;              ///< may exceed `limit`: facts are always recorded
  std::int64_t held = 0;              ///< by reservations
  std::optional<Instant> reset_at{};  ///< none for a lifetime quota; of a
                                      ///< rolling one, when use begins to fall
};

}  // namespace creto::metering
