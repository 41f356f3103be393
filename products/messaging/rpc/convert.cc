#include "convert.h"

#include <fmt/format.h>

#include "creto/common/assert.h"

namespace creto::messaging {
namespace {

using contracts::MessagePriority;

Error refused(std::string_view field, std::string_view rule) {
  return Error(Product::messaging, ErrorKind::invalid_input, fmt::format("{}: {}", field, rule));
}

v1::Priority to_proto(MessagePriority priority) { return static_cast<v1::Priority>(static_cast<int>(priority) + 1); }

Result<MessagePriority> from_proto(v1::Priority priority) {
  if (priority == v1::PRIORITY_UNSPECIFIED) return MessagePriority::normal;
  if (priority < v1::PRIORITY_LOW || priority > v1::PRIORITY_URGENT) return refused("priority", "is not known");
  return static_cast<MessagePriority>(static_cast<int>(priority) - 1);
}

Bytes bytes_of(const std::string& text) { return to_bytes(std::string_view(text)); }

}  // namespace

google::protobuf::Timestamp to_proto_time(Instant instant) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(instant);
  google::protobuf::Timestamp out;
  out.set_seconds(seconds.time_since_epoch().count());
  out.set_nanos(static_cast<std::int32_t>((instant - seconds).count()));
  return out;
}

google::protobuf::Duration to_proto_duration(Nanos duration) {
  google::protobuf::Duration out;
  out.set_seconds(duration / std::chrono::seconds(1));
  out.set_nanos(static_cast<std::int32_t>((duration % std::chrono::seconds(1)).count()));
  return out;
}

Result<Instant> time_from_proto(const google::protobuf::Timestamp& time, std::string_view field) {
  // What 64 bits of nanoseconds hold.
  if (time.seconds() < -9'223'372'036 || time.seconds() > 9'223'372'035 || time.nanos() < 0 ||
      time.nanos() > 999'999'999) {
    return refused(field, "must be a time from 1678 to 2261");
  }
  return Instant(std::chrono::seconds(time.seconds()) + Nanos(time.nanos()));
}

Result<Nanos> duration_from_proto(const google::protobuf::Duration& duration, std::string_view field) {
  if (duration.seconds() < 0 || duration.seconds() > 9'223'372'035 || duration.nanos() < 0 ||
      duration.nanos() > 999'999'999) {
    return refused(field, "must be a duration of 0 to 292 years");
  }
  return Nanos(std::chrono::seconds(duration.seconds())) + Nanos(duration.nanos());
}

std::string to_proto(const std::optional<SandboxId>& sandbox) { return sandbox ? sandbox->to_string() : std::string(); }

Result<std::optional<SandboxId>> sandbox_from_proto(const std::string& text) {
  if (text.empty()) return std::optional<SandboxId>();
  const SandboxId id = CRETO_TRY(SandboxId::parse(text));
  return std::optional<SandboxId>(id);
}

v1::Receipt to_proto(DeliveryState state) { return static_cast<v1::Receipt>(static_cast<int>(state) + 1); }

Result<DeliveryState> from_proto(v1::Receipt receipt) {
  if (receipt < v1::RECEIPT_QUEUED || receipt > v1::RECEIPT_FAILED) {
    return refused("receipt", "must be delivered, read or failed");
  }
  return static_cast<DeliveryState>(static_cast<int>(receipt) - 1);
}

v1::SealedMessage to_proto(const contracts::SealedMessage& message) {
  v1::SealedMessage out;
  out.set_message_id(message.message_id.to_string());
  out.set_sender(message.sender.text());
  out.set_recipient(message.recipient.text());
  out.set_topic(message.topic);
  out.set_priority(to_proto(message.priority));
  *out.mutable_sent_at() = to_proto_time(message.sent_at);
  *out.mutable_ttl() = to_proto_duration(message.ttl);
  out.set_envelope(std::string(as_text(message.envelope)));
  return out;
}

Result<contracts::SealedMessage> from_proto(const v1::SealedMessage& message) {
  const MessageId id = CRETO_TRY(MessageId::parse(message.message_id()));
  Identity sender = CRETO_TRY(Identity::parse(message.sender()));
  Identity recipient = CRETO_TRY(Identity::parse(message.recipient()));
  const MessagePriority priority = CRETO_TRY(from_proto(message.priority()));
  const Instant sent_at = CRETO_TRY(time_from_proto(message.sent_at(), "sent_at"));
  const Nanos ttl = CRETO_TRY(duration_from_proto(message.ttl(), "ttl"));
  return contracts::SealedMessage{.message_id = id,
                                  .sender = std::move(sender),
                                  .recipient = std::move(recipient),
                                  .topic = message.topic(),
                                  .priority = priority,
                                  .sent_at = sent_at,
                                  .ttl = ttl,
                                  .envelope = bytes_of(message.envelope())};
}

v1::ReceivedMessage to_proto(const contracts::ReceivedMessage& message) {
  v1::ReceivedMessage out;
  *out.mutable_message() = to_proto(message.message);
  *out.mutable_accepted_at() = to_proto_time(message.accepted_at);
  return out;
}

Result<contracts::ReceivedMessage> from_proto(const v1::ReceivedMessage& message) {
  contracts::SealedMessage sealed = CRETO_TRY(from_proto(message.message()));
  const Instant accepted_at = CRETO_TRY(time_from_proto(message.accepted_at(), "accepted_at"));
  return contracts::ReceivedMessage{std::move(sealed), accepted_at};
}

v1::MessageStatus to_proto(const MessageStatus& status) {
  v1::MessageStatus out;
  out.set_message_id(status.id.to_string());
  out.set_sender(status.sender.text());
  out.set_topic(status.topic);
  *out.mutable_accepted_at() = to_proto_time(status.accepted_at);
  *out.mutable_expires_at() = to_proto_time(status.expires_at);
  for (const Delivery& delivery : status.deliveries) {
    auto& one = *out.add_deliveries();
    one.set_recipient(delivery.recipient.text());
    one.set_sandbox_id(to_proto(delivery.sandbox));
    one.set_state(to_proto(delivery.state));
    one.set_reason(delivery.reason);
    *one.mutable_updated_at() = to_proto_time(delivery.updated_at);
  }
  return out;
}

Result<MessageStatus> from_proto(const v1::MessageStatus& status) {
  const MessageId id = CRETO_TRY(MessageId::parse(status.message_id()));
  Identity sender = CRETO_TRY(Identity::parse(status.sender()));
  const Instant accepted_at = CRETO_TRY(time_from_proto(status.accepted_at(), "accepted_at"));
  const Instant expires_at = CRETO_TRY(time_from_proto(status.expires_at(), "expires_at"));
  MessageStatus out{.id = id,
                    .sender = std::move(sender),
                    .topic = status.topic(),
                    .accepted_at = accepted_at,
                    .expires_at = expires_at};
  for (const auto& one : status.deliveries()) {
    Identity recipient = CRETO_TRY(Identity::parse(one.recipient()));
    const auto sandbox = CRETO_TRY(sandbox_from_proto(one.sandbox_id()));
    const DeliveryState state = CRETO_TRY(from_proto(one.state()));
    const Instant updated_at = CRETO_TRY(time_from_proto(one.updated_at(), "updated_at"));
    out.deliveries.push_back({std::move(recipient), sandbox, state, one.reason(), updated_at});
  }
  return out;
}

v1::Topic to_proto(const Topic& topic) {
  v1::Topic out;
  out.set_name(topic.name);
  out.set_owner(topic.owner.text());
  *out.mutable_created_at() = to_proto_time(topic.created_at);
  return out;
}

Result<Topic> from_proto(const v1::Topic& topic) {
  Identity owner = CRETO_TRY(Identity::parse(topic.owner()));
  const Instant created_at = CRETO_TRY(time_from_proto(topic.created_at(), "created_at"));
  return Topic{topic.name(), std::move(owner), created_at};
}

v1::Subscription to_proto(const Subscription& subscription) {
  v1::Subscription out;
  out.set_subscription_id(subscription.id.to_string());
  out.set_topic(subscription.topic);
  out.set_subscriber(subscription.subscriber.text());
  out.set_sandbox_id(to_proto(subscription.sandbox));
  *out.mutable_created_at() = to_proto_time(subscription.created_at);
  return out;
}

Result<Subscription> from_proto(const v1::Subscription& subscription) {
  const TopicSubscriptionId id = CRETO_TRY(TopicSubscriptionId::parse(subscription.subscription_id()));
  Identity subscriber = CRETO_TRY(Identity::parse(subscription.subscriber()));
  const auto sandbox = CRETO_TRY(sandbox_from_proto(subscription.sandbox_id()));
  const Instant created_at = CRETO_TRY(time_from_proto(subscription.created_at(), "created_at"));
  return Subscription{id, subscription.topic(), std::move(subscriber), sandbox, created_at};
}

}  // namespace creto::messaging
