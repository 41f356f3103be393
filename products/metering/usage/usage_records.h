#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/result.h"
#include "creto/metering/v1/usage.pb.h"

/// What people and programs report as JSON, as the records that the ledger keeps.
namespace creto::metering {

/// The encoded record. Errors: invalid_input naming the field.
Result<std::string> record_of(const v1::UsageReport& report);
/// Of a CloudEvent 1.0 (docs/formats.md, "CloudEvents"). Errors: invalid_input naming the attribute.
Result<std::string> record_of(const google::protobuf::Struct& cloud_event);
/// Likewise of each of a JSON list of them, or of one alone. Errors: invalid_input where it is no JSON; too_large over
/// `events_max`.
Result<std::vector<Result<std::string>>> records_of_json(std::string_view cloud_events, std::size_t events_max);

/// The JSON of a CloudEvent whose attributes came in headers `ce-*` (names in lower case) and whose data is the body:
/// HTTP's binary mode. Errors: invalid_input naming the header.
Result<std::string> event_of_headers(const std::vector<std::pair<std::string, std::string>>& headers,
                                     std::string_view data);

}  // namespace creto::metering
