#pragma once

#include "billing/aggregation.h"
#include "creto/common/event.h"
#include "creto/common/money.h"
#include "ledger/usage_record.h"

namespace creto::metering {

inline constexpr std::size_t event_bytes_max = 64 << 10;

/// An event as metering understands it.
struct UsageEvent {
  EventEnvelope envelope;
  std::string document;      ///< the envelope's canonical JSON, as received
  std::string signed_bytes;  ///< what the signature is over, derived from the received bytes
  std::string usage_type;    ///< "sandbox_allocated", "message_sent", ...
  std::string idempotency_key;
  std::string action;  ///< of usage type "action": its name
  Properties properties;
  Decimal units = Decimal(1);
  std::optional<Money> cost;
  std::optional<ReservationId> settles;  ///< property `reservation_id`
  std::string replaces;                  ///< as of a RecordView
  std::string voids;
};

/// Reads an envelope with a "runtime_usage" or "message_usage" payload and checks the properties against the schema of
/// its usage type (contracts/schemas/usage/). Only the canonical form is accepted, so that the bytes received are the
/// bytes that were signed. Errors: invalid_input naming the member; too_large over `event_bytes_max`.
Result<UsageEvent> parse_usage_event(std::string_view text);

/// The properties that a usage type of ours requires, and their kinds; other types may have any. Errors: invalid_input.
Result<> check_usage_properties(std::string_view usage_type, std::span<const PropertyView> properties);

/// The event as the log keeps it: an encoded record, appended to `out`.
void encode_event(const UsageEvent& event, Bytes& out);

/// The envelope of an event about a message, unsigned: for who trusts the caller instead.
Result<UsageEvent> usage_event_of(EventEnvelope envelope);

/// The payload of a "message_usage" event.
Result<std::string> message_usage_payload(std::string_view usage_type, std::string_view idempotency_key,
                                          std::uint64_t message_size_bytes, std::uint64_t recipient_count,
                                          std::string_view priority);

/// What an approved decision of oversight says about a quota (001 §7.3).
struct QuotaRaise {
  std::string quota_id;
  std::int64_t new_limit;
};
/// None where the decision is about something else or names no higher limit. `arguments` has `quota_id` (or
/// `threshold_id`); the approver's `response` decides the limit, else `arguments` proposed one: `new_limit`, a number
/// or its decimal string.
std::optional<QuotaRaise> quota_raise_of(std::string_view action, std::string_view arguments,
                                         std::string_view response);

/// Likewise of a cost threshold, by an approved `cost.continue`. Only the approver's response names the new limit: the
/// notice that asked does not propose one, and without it the approval is no more than that he knows.
struct ThresholdRaise {
  std::string threshold_id;
  Decimal new_limit;
};
std::optional<ThresholdRaise> threshold_raise_of(std::string_view action, std::string_view arguments,
                                                 std::string_view response);

}  // namespace creto::metering
