#pragma once

#include <string>

#include "creto/common/result.h"
#include "creto/metering/v1/usage.pb.h"

/// What people and programs report as JSON, as the records that the ledger keeps.
namespace creto::metering {

/// The encoded record. Errors: invalid_input naming the field.
Result<std::string> record_of(const v1::UsageReport& report);
/// Of a CloudEvent 1.0 in JSON (docs/formats.md, "CloudEvents"). Errors: invalid_input naming the attribute.
Result<std::string> record_of(const google::protobuf::Struct& cloud_event);

}  // namespace creto::metering
