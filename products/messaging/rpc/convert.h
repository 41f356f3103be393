#pragma once

#include <optional>
#include <string>

#include "creto/messaging/messaging.h"
#include "creto/messaging/v1/messaging.pb.h"

/// Between the domain's types and the proto's. `to_proto` is total; `from_proto` refuses with invalid_input.
namespace creto::messaging {

v1::SealedMessage to_proto(const contracts::SealedMessage& message);
v1::ReceivedMessage to_proto(const contracts::ReceivedMessage& message);
v1::MessageStatus to_proto(const MessageStatus& status);
v1::Topic to_proto(const Topic& topic);
v1::Subscription to_proto(const Subscription& subscription);
v1::Receipt to_proto(DeliveryState state);
std::string to_proto(const std::optional<SandboxId>& sandbox);

Result<contracts::SealedMessage> from_proto(const v1::SealedMessage& message);
Result<contracts::ReceivedMessage> from_proto(const v1::ReceivedMessage& message);
Result<MessageStatus> from_proto(const v1::MessageStatus& status);
Result<Topic> from_proto(const v1::Topic& topic);
Result<Subscription> from_proto(const v1::Subscription& subscription);
Result<DeliveryState> from_proto(v1::Receipt receipt);
Result<std::optional<SandboxId>> sandbox_from_proto(const std::string& text);

google::protobuf::Timestamp to_proto_time(Instant instant);
google::protobuf::Duration to_proto_duration(Nanos duration);
Result<Instant> time_from_proto(const google::protobuf::Timestamp& time, std::string_view field);
Result<Nanos> duration_from_proto(const google::protobuf::Duration& duration, std::string_view field);

}  // namespace creto::messaging
