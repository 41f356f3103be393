#include <atomic>

#include "creto/consensus/consensus_rpc.h"
#include "creto/io/rpc_channel.h"
#include "rpc/convert.h"

namespace creto::consensus {
namespace {

class TimestampClient final : public TimestampSource {
 public:
  TimestampClient(std::shared_ptr<rpc::Channel> channel, const Clock& clock, Context caller, Nanos patience)
      : channel_(std::move(channel)), clock_(clock), caller_(std::move(caller)), patience_(patience) {}

  Timestamp now() override {
    for (int attempt = 1; attempt <= 2; ++attempt) {
      auto response = call<common::v1::ConsensusTimestamp>(soon(), "GetTimestamp", v1::GetTimestampRequest());
      if (!response) continue;
      auto timestamp = from_proto(*response, "timestamp");
      if (timestamp) return std::move(*timestamp);
    }
    // Local time still grows within this process.
    std::int64_t last = last_local_.load();
    std::int64_t next = 0;
    do {
      next = std::max(last + 1, unix_ns(clock_.now()));
    } while (!last_local_.compare_exchange_weak(last, next));
    return Timestamp{0, next, "local", true};
  }

  Result<std::vector<std::size_t>> order(std::span<const Timestamp> events) override {
    v1::OrderEventsRequest request;
    for (const Timestamp& event : events) to_proto(event, *request.add_events());
    auto response = CRETO_TRY(call<v1::OrderEventsResponse>(caller_, "OrderEvents", request));
    std::vector<std::size_t> order(response.order().begin(), response.order().end());
    std::vector<bool> seen(events.size());
    for (std::size_t index : order) {
      if (index >= seen.size() || seen[index]) return proto::bad_field("order", "is not an order of the events");
      seen[index] = true;
    }
    if (order.size() != events.size()) return proto::bad_field("order", "is not an order of the events");
    return order;
  }

  ClusterStatus status() override {
    auto response = call<v1::ClusterStatus>(soon(), "GetClusterStatus", v1::GetClusterStatusRequest());
    if (!response) return {.healthy = false, .reason = response.error().to_string()};
    return {response->node(), response->mode(), response->healthy(), response->reason(), response->ceiling_ns()};
  }

 private:
  Context soon() const {
    Context ctx = caller_;
    ctx.deadline = clock_.monotonic() + patience_;
    return ctx;
  }
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request) {
    return channel_->call<Req, Res>(ctx, "/creto.consensus.v1.ConsensusService/" + std::string(method), request,
                                    {.idempotent = method != "GetTimestamp"});
  }

  std::shared_ptr<rpc::Channel> channel_;
  const Clock& clock_;
  const Context caller_;
  const Nanos patience_;
  std::atomic<std::int64_t> last_local_ = 0;
};

}  // namespace

std::unique_ptr<TimestampSource> create_timestamp_client(std::shared_ptr<rpc::Channel> channel, const Clock& clock,
                                                         Context caller, Nanos patience) {
  return std::make_unique<TimestampClient>(std::move(channel), clock, std::move(caller), patience);
}

}  // namespace creto::consensus
