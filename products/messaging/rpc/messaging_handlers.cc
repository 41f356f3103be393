#include <condition_variable>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "convert.h"
#include "creto/common/clock.h"
#include "creto/io/rpc.h"
#include "creto/messaging/messaging_rpc.h"

namespace creto::messaging {
namespace {

/// These the service authorises by itself, in the words of its own policies ("message.send" to whom), so the dispatcher
/// asks only who is calling.
template <class Req>
rpc::Rule<Req> own_rule(bool idempotent) {
  return {.access = rpc::Access::authenticated, .idempotent = idempotent};
}

Result<ReceiveRequest> from_proto(const v1::ReceiveRequest& request) {
  ReceiveRequest wanted;
  if (request.messages_max() < 0) {
    return Error(Product::messaging, ErrorKind::invalid_input, "messages_max: must be 1 to 1000");
  }
  if (request.messages_max() > 0) wanted.messages_max = static_cast<std::size_t>(request.messages_max());
  wanted.wait = CRETO_TRY(duration_from_proto(request.wait(), "wait"));
  wanted.sandbox = CRETO_TRY(sandbox_from_proto(request.sandbox_id()));
  return wanted;
}

Result<v1::ReceiveResponse> receive(Messaging& messaging, const Context& ctx, const ReceiveRequest& wanted) {
  const auto messages = CRETO_TRY(messaging.receive(ctx, wanted));
  v1::ReceiveResponse response;
  for (const auto& message : messages) *response.add_messages() = to_proto(message);
  return response;
}

/// Calls that wait for their first message: one thread looks for all of them, so that none of the dispatcher's is held.
class WaitingCalls {
 public:
  struct Call {
    Context ctx;
    ReceiveRequest wanted;
    rpc::Reply<v1::ReceiveResponse> reply;
    Monotonic until;
  };

  explicit WaitingCalls(Messaging& messaging) : messaging_(messaging), thread_([this] { run(); }) {}
  ~WaitingCalls() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
    for (const Call& call : calls_) call.reply(v1::ReceiveResponse());
  }
  WaitingCalls(const WaitingCalls&) = delete;
  WaitingCalls& operator=(const WaitingCalls&) = delete;

  void add(Call call) {
    {
      const std::lock_guard lock(mutex_);
      if (calls_.size() < calls_max) {
        calls_.push_back(std::move(call));
        changed_.notify_one();
        return;
      }
    }
    // Too many wait: this one has waited enough.
    call.reply(v1::ReceiveResponse());
  }

 private:
  static constexpr std::size_t calls_max = 1000;
  static constexpr auto look_every = std::chrono::milliseconds(50);

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (calls_.empty()) {
        changed_.wait(lock, [this] { return stopping_ || !calls_.empty(); });
        continue;
      }
      std::vector<Call> looking = std::move(calls_);
      calls_.clear();
      lock.unlock();
      std::vector<Call> left;
      for (Call& call : looking) {
        auto answer = receive(messaging_, call.ctx, call.wanted);
        const Monotonic now = system_clock().monotonic();
        if (!answer || answer->messages_size() > 0 || now >= call.until) {
          call.reply(std::move(answer));
        } else {
          left.push_back(std::move(call));
        }
      }
      lock.lock();
      calls_.insert(calls_.begin(), std::make_move_iterator(left.begin()), std::make_move_iterator(left.end()));
      changed_.wait_for(lock, look_every, [this] { return stopping_; });
    }
  }

  Messaging& messaging_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Call> calls_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace

void register_messaging(rpc::Dispatcher& dispatcher, Messaging& messaging) {
  auto service = dispatcher.service("creto.messaging.v1.MessagingService");

  service.unary<v1::SendRequest, v1::SendResponse>(
      "Send", own_rule<v1::SendRequest>(true),
      [&messaging](const Context& ctx, const v1::SendRequest& request) -> Result<v1::SendResponse> {
        const auto message = CRETO_TRY(from_proto(request.message()));
        const MessageId id = CRETO_TRY(messaging.send(ctx, message, request.override_token()));
        v1::SendResponse response;
        response.set_message_id(id.to_string());
        return response;
      });

  service.deferred<v1::ReceiveRequest, v1::ReceiveResponse>(
      "Receive", own_rule<v1::ReceiveRequest>(true),
      [&messaging, queue = std::make_shared<WaitingCalls>(messaging)](
          const Context& ctx, const v1::ReceiveRequest& request, rpc::Reply<v1::ReceiveResponse> reply) {
        auto wanted = from_proto(request);
        if (!wanted) return reply(std::move(wanted).error());
        const Nanos wait = std::exchange(wanted->wait, Nanos::zero());
        // The service checks the range; waiting itself is done here, where it holds no thread.
        if (wait > std::chrono::seconds(30)) {
          return reply(Error(Product::messaging, ErrorKind::invalid_input, "wait: must be 0 to 30 seconds"));
        }
        auto answer = receive(messaging, ctx, *wanted);
        if (!answer || answer->messages_size() > 0 || wait == Nanos::zero()) return reply(std::move(answer));
        queue->add({ctx, *wanted, std::move(reply), system_clock().monotonic() + wait});
      });

  service.unary<v1::AcknowledgeRequest, v1::AcknowledgeResponse>(
      "Acknowledge", own_rule<v1::AcknowledgeRequest>(true),
      [&messaging](const Context& ctx, const v1::AcknowledgeRequest& request) -> Result<v1::AcknowledgeResponse> {
        const MessageId id = CRETO_TRY(MessageId::parse(request.message_id()));
        const DeliveryState receipt = CRETO_TRY(from_proto(request.receipt()));
        const auto sandbox = CRETO_TRY(sandbox_from_proto(request.sandbox_id()));
        CRETO_TRY(messaging.acknowledge(ctx, id, receipt, request.reason(), sandbox));
        return v1::AcknowledgeResponse();
      });

  service.unary<v1::GetStatusRequest, v1::MessageStatus>(
      "GetStatus", own_rule<v1::GetStatusRequest>(true),
      [&messaging](const Context& ctx, const v1::GetStatusRequest& request) -> Result<v1::MessageStatus> {
        const MessageId id = CRETO_TRY(MessageId::parse(request.message_id()));
        const MessageStatus status = CRETO_TRY(messaging.status(ctx, id));
        return to_proto(status);
      });

  service.unary<v1::CreateTopicRequest, v1::Topic>(
      "CreateTopic", own_rule<v1::CreateTopicRequest>(true),
      [&messaging](const Context& ctx, const v1::CreateTopicRequest& request) -> Result<v1::Topic> {
        const Topic topic = CRETO_TRY(messaging.create_topic(ctx, request.name()));
        return to_proto(topic);
      });

  service.unary<v1::ListTopicsRequest, v1::ListTopicsResponse>(
      "ListTopics", {.idempotent = true},
      [&messaging](const Context& ctx, const v1::ListTopicsRequest&) -> Result<v1::ListTopicsResponse> {
        const auto topics = CRETO_TRY(messaging.list_topics(ctx));
        v1::ListTopicsResponse response;
        for (const Topic& topic : topics) *response.add_topics() = to_proto(topic);
        return response;
      });

  service.unary<v1::SubscribeRequest, v1::Subscription>(
      "Subscribe", own_rule<v1::SubscribeRequest>(true),
      [&messaging](const Context& ctx, const v1::SubscribeRequest& request) -> Result<v1::Subscription> {
        const auto sandbox = CRETO_TRY(sandbox_from_proto(request.sandbox_id()));
        const Subscription subscription = CRETO_TRY(messaging.subscribe(ctx, request.topic(), sandbox));
        return to_proto(subscription);
      });

  service.unary<v1::UnsubscribeRequest, v1::UnsubscribeResponse>(
      "Unsubscribe", own_rule<v1::UnsubscribeRequest>(true),
      [&messaging](const Context& ctx, const v1::UnsubscribeRequest& request) -> Result<v1::UnsubscribeResponse> {
        const TopicSubscriptionId id = CRETO_TRY(TopicSubscriptionId::parse(request.subscription_id()));
        CRETO_TRY(messaging.unsubscribe(ctx, id));
        return v1::UnsubscribeResponse();
      });

  service.unary<v1::ListSubscribersRequest, v1::ListSubscribersResponse>(
      "ListSubscribers", own_rule<v1::ListSubscribersRequest>(true),
      [&messaging](const Context& ctx,
                   const v1::ListSubscribersRequest& request) -> Result<v1::ListSubscribersResponse> {
        const auto subscribers = CRETO_TRY(messaging.subscribers(ctx, request.topic()));
        v1::ListSubscribersResponse response;
        for (const Identity& subscriber : subscribers) response.add_subscribers(subscriber.text());
        return response;
      });

  service.unary<v1::EndSandboxRequest, v1::EndSandboxResponse>(
      "EndSandbox",
      {.idempotent = true,
       .resource = [](const v1::EndSandboxRequest& request) { return rpc::Resource{"Sandbox", request.sandbox_id()}; }},
      [&messaging](const Context& ctx, const v1::EndSandboxRequest& request) -> Result<v1::EndSandboxResponse> {
        const SandboxId sandbox = CRETO_TRY(SandboxId::parse(request.sandbox_id()));
        CRETO_TRY(messaging.sandbox_terminated(ctx, sandbox));
        return v1::EndSandboxResponse();
      });

  service.unary<v1::CleanUpRequest, v1::CleanUpResponse>(
      "CleanUp", {.idempotent = true},
      [&messaging](const Context& ctx, const v1::CleanUpRequest&) -> Result<v1::CleanUpResponse> {
        const std::int64_t changed = CRETO_TRY(messaging.clean_up(ctx));
        v1::CleanUpResponse response;
        response.set_changed(changed);
        return response;
      });
}

}  // namespace creto::messaging
