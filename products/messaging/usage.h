#pragma once

#include <string>
#include <string_view>

#include "creto/contracts/message_cost_tracker.h"

namespace creto::messaging {

/// A billable event on its way from the transaction that caused it to metering.
std::string encode_usage(const contracts::MessageBillableEvent& event);
Result<contracts::MessageBillableEvent> decode_usage(std::string_view text);

}  // namespace creto::messaging
