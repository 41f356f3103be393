#pragma once

#include <string>

#include "creto/oversight/oversight.h"

/// Policies and requests as the JSON documents that the store keeps (docs/formats.md, "Oversight").
namespace creto::oversight {

Result<std::string> encode(const Policy& policy);
Result<Policy> decode_policy(std::string_view text);
Result<std::string> encode(const Request& request);
Result<Request> decode_request(std::string_view text);

/// Every rule that a policy must keep by itself.
Result<> validate(const Policy& policy);

}  // namespace creto::oversight
