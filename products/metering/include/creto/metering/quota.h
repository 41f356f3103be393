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

/// Calendar windows are in UTC. A rolling window forgets in steps of a sixtieth
/// of its length: it never holds less than what was used in its length, and at
/// most a sixtieth of the length more.
enum class WindowKind : std::uint8_t { rolling, hour, day, week, month, lifetime };
std::string_view to_string(WindowKind kind);
Result<WindowKind> window_kind_from_string(std::string_view text);

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

/// A limit on what an identity and all agents below it use, counted by arrival.
struct Quota {
  std::string id{};          ///< [a-z0-9_.-]{1,64}, unique in the organization
  std::string subject{};     ///< an identity (agent, human or service), or a
                             ///< subscription id
  std::string event_type{};  ///< what is counted: a usage type, or the name of
                             ///< an action such as "payments.pay"
  WindowKind window = WindowKind::month;
  Nanos rolling_length{};  ///< 1 min to 366 days; rolling windows only
  std::int64_t limit = 0;  ///< whole units: sandboxes, tokens, bytes, calls.
                           ///< Fractions of use count as one
  int soft_percent = 95;   ///< 1..100: a notice is published once per window when use reaches it
  Overflow overflow = Overflow::block;
  std::vector<std::string> approvers{};  ///< for oversight and for notices; at most 16
};
Result<> validate(const Quota& quota);
Result<std::string> to_json(const Quota& quota);
Result<Quota> quota_from_json(std::string_view text);

/// A cost threshold on an identity and all agents below it, whatever the type
/// of the event.
struct SubjectThreshold {
  std::string subject{};
  contracts::CostThreshold threshold;
};
Result<> validate(const SubjectThreshold& threshold);
Result<std::string> to_json(const SubjectThreshold& threshold);
Result<SubjectThreshold> threshold_from_json(std::string_view text);

/// Where a quota stands.
struct QuotaState {
  std::string quota_id{};
  std::string subject{};
  std::string event_type{};
  WindowKind window = WindowKind::month;
  Overflow overflow = Overflow::block;
  std::int64_t limit = 0;
  std::int64_t used = 0;              ///< may exceed `limit`: facts are always recorded
  std::int64_t held = 0;              ///< by reservations
  std::optional<Instant> reset_at{};  ///< none for a lifetime quota; of a
                                      ///< rolling one, when use begins to fall
};

}  // namespace creto::metering
