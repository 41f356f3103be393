#include <algorithm>
#include <utility>

#include "convert.h"
#include "creto/common/clock.h"
#include "creto/io/rpc_channel.h"
#include "creto/messaging/messaging_rpc.h"

namespace creto::messaging {
namespace {

constexpr std::string_view service = "/creto.messaging.v1.MessagingService/";

class MessagingClient final : public Messaging {
 public:
  explicit MessagingClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<MessageId> send(const Context& ctx, const contracts::SealedMessage& message,
                         const std::string& override_token) override {
    CRETO_TRY(check_text("override_token", override_token));
    v1::SendRequest request;
    *request.mutable_message() = to_proto(message);
    request.set_override_token(override_token);
    const auto response = CRETO_TRY(call<v1::SendResponse>(ctx, "Send", request));
    return MessageId::parse(response.message_id());
  }

  Result<std::vector<contracts::ReceivedMessage>> receive(const Context& ctx, const ReceiveRequest& wanted) override {
    if (wanted.messages_max < 1 || wanted.messages_max > 1000) {
      return Error(Product::messaging, ErrorKind::invalid_input, "messages_max: must be 1 to 1000");
    }
    if (wanted.wait < Nanos::zero()) {
      return Error(Product::messaging, ErrorKind::invalid_input, "wait: must be 0 to 30 seconds");
    }
    if (wanted.wait > std::chrono::seconds(30)) {
      return Error(Product::messaging, ErrorKind::invalid_input, "wait: must be 0 to 30 seconds");
    }
    const Monotonic until = system_clock().monotonic() + wanted.wait;
    while (true) {
      // A channel gives up an attempt after a while, so one call waits for less than that.
      const Nanos left = std::max(Nanos::zero(), until - system_clock().monotonic());
      const Nanos wait = std::min<Nanos>(left, std::chrono::seconds(5));
      v1::ReceiveRequest request;
      request.set_messages_max(static_cast<std::int32_t>(wanted.messages_max));
      *request.mutable_wait() = to_proto_duration(wait);
      request.set_sandbox_id(to_proto(wanted.sandbox));
      const auto response = CRETO_TRY(call<v1::ReceiveResponse>(ctx, "Receive", request));
      if (response.messages().empty() && left > wait) continue;
      std::vector<contracts::ReceivedMessage> messages;
      for (const auto& one : response.messages()) {
        auto message = CRETO_TRY(from_proto(one));
        messages.push_back(std::move(message));
      }
      return messages;
    }
  }

  Result<> acknowledge(const Context& ctx, const MessageId& message, DeliveryState receipt, const std::string& reason,
                       const std::optional<SandboxId>& sandbox) override {
    if (!is_valid_utf8(reason)) {
      return Error(Product::messaging, ErrorKind::invalid_input, "reason: must be text of at most 1024 bytes");
    }
    v1::AcknowledgeRequest request;
    request.set_message_id(message.to_string());
    request.set_receipt(to_proto(receipt));
    request.set_reason(reason);
    request.set_sandbox_id(to_proto(sandbox));
    CRETO_TRY(call<v1::AcknowledgeResponse>(ctx, "Acknowledge", request));
    return {};
  }

  Result<MessageStatus> status(const Context& ctx, const MessageId& message) override {
    v1::GetStatusRequest request;
    request.set_message_id(message.to_string());
    const auto response = CRETO_TRY(call<v1::MessageStatus>(ctx, "GetStatus", request));
    return from_proto(response);
  }

  Result<Topic> create_topic(const Context& ctx, const std::string& name) override {
    CRETO_TRY(check_text("topic", name));
    v1::CreateTopicRequest request;
    request.set_name(name);
    const auto response = CRETO_TRY(call<v1::Topic>(ctx, "CreateTopic", request));
    return from_proto(response);
  }

  Result<std::vector<Topic>> list_topics(const Context& ctx) override {
    const auto response = CRETO_TRY(call<v1::ListTopicsResponse>(ctx, "ListTopics", v1::ListTopicsRequest()));
    std::vector<Topic> topics;
    for (const auto& one : response.topics()) {
      Topic topic = CRETO_TRY(from_proto(one));
      topics.push_back(std::move(topic));
    }
    return topics;
  }

  Result<Subscription> subscribe(const Context& ctx, const std::string& topic,
                                 const std::optional<SandboxId>& sandbox) override {
    CRETO_TRY(check_text("topic", topic));
    v1::SubscribeRequest request;
    request.set_topic(topic);
    request.set_sandbox_id(to_proto(sandbox));
    const auto response = CRETO_TRY(call<v1::Subscription>(ctx, "Subscribe", request));
    return from_proto(response);
  }

  Result<> unsubscribe(const Context& ctx, const TopicSubscriptionId& subscription) override {
    v1::UnsubscribeRequest request;
    request.set_subscription_id(subscription.to_string());
    CRETO_TRY(call<v1::UnsubscribeResponse>(ctx, "Unsubscribe", request));
    return {};
  }

  Result<std::vector<Identity>> subscribers(const Context& ctx, const std::string& topic) override {
    CRETO_TRY(check_text("topic", topic));
    v1::ListSubscribersRequest request;
    request.set_topic(topic);
    const auto response = CRETO_TRY(call<v1::ListSubscribersResponse>(ctx, "ListSubscribers", request));
    std::vector<Identity> identities;
    for (const auto& text : response.subscribers()) {
      Identity identity = CRETO_TRY(Identity::parse(text));
      identities.push_back(std::move(identity));
    }
    return identities;
  }

  Result<> sandbox_terminated(const Context& ctx, const SandboxId& sandbox) override {
    v1::EndSandboxRequest request;
    request.set_sandbox_id(sandbox.to_string());
    CRETO_TRY(call<v1::EndSandboxResponse>(ctx, "EndSandbox", request));
    return {};
  }

  Result<std::int64_t> clean_up(const Context& ctx) override {
    const auto response = CRETO_TRY(call<v1::CleanUpResponse>(ctx, "CleanUp", v1::CleanUpRequest()));
    return response.changed();
  }

  HealthStatus health() override { return {}; }

  Result<MessageId> send_from_sandbox(const Context& ctx, const SandboxId&, const contracts::SealedMessage& message,
                                      const std::string& override_token) override {
    return send(ctx, message, override_token);
  }
  Result<TopicSubscriptionId> subscribe_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                std::string_view topic) override {
    const Subscription subscription = CRETO_TRY(subscribe(ctx, std::string(topic), sandbox));
    return subscription.id;
  }
  Result<> unsubscribe_sandbox(const Context& ctx, const TopicSubscriptionId& subscription) override {
    return unsubscribe(ctx, subscription);
  }
  Result<std::vector<contracts::ReceivedMessage>> receive_for_sandbox(const Context& ctx, const SandboxId& sandbox,
                                                                      std::size_t messages_max) override {
    return receive(ctx, {.messages_max = messages_max, .sandbox = sandbox});
  }
  Result<> acknowledge_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message) override {
    return acknowledge(ctx, message, DeliveryState::delivered, {}, sandbox);
  }
  Result<> refuse_for_sandbox(const Context& ctx, const SandboxId& sandbox, const MessageId& message,
                              std::string_view reason) override {
    return acknowledge(ctx, message, DeliveryState::failed, std::string(reason), sandbox);
  }

 private:
  /// Everything here is safe to repeat: sending by its message id, the rest by its nature.
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request) {
    return channel_->call<Req, Res>(ctx, std::string(service).append(method), request, {.idempotent = true});
  }

  static Result<> check_text(std::string_view field, const std::string& text) {
    if (is_valid_utf8(text)) return {};
    return Error(Product::messaging, ErrorKind::invalid_input, std::string(field) + ": must be UTF-8");
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Messaging> create_messaging_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<MessagingClient>(std::move(channel));
}

}  // namespace creto::messaging
