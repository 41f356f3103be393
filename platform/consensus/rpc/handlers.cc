#include "creto/consensus/consensus_rpc.h"
#include "creto/io/rpc.h"
#include "rpc/convert.h"

namespace creto::consensus {
namespace {

constexpr int events_max = 10'000;

}  // namespace

void register_consensus(rpc::Dispatcher& dispatcher, TimestampSource& source) {
  auto service = dispatcher.service("creto.consensus.v1.ConsensusService");
  using enum rpc::Access;

  service.unary<v1::GetTimestampRequest, common::v1::ConsensusTimestamp>(
      "GetTimestamp", {.access = authenticated, .inline_call = true, .idempotent = true},
      [&source](const Context&, const v1::GetTimestampRequest&) -> Result<common::v1::ConsensusTimestamp> {
        common::v1::ConsensusTimestamp response;
        to_proto(source.now(), response);
        return response;
      });
  service.unary<v1::OrderEventsRequest, v1::OrderEventsResponse>(
      "OrderEvents", {.access = authenticated, .idempotent = true},
      [&source](const Context&, const v1::OrderEventsRequest& request) -> Result<v1::OrderEventsResponse> {
        if (request.events_size() > events_max) return proto::bad_field("events", "must have at most 10000 elements");
        std::vector<Timestamp> events;
        for (const auto& event : request.events()) {
          auto timestamp = CRETO_TRY(from_proto(event, "events"));
          events.push_back(std::move(timestamp));
        }
        auto order = CRETO_TRY(source.order(events));
        v1::OrderEventsResponse response;
        for (std::size_t index : order) response.add_order(static_cast<std::uint32_t>(index));
        return response;
      });
  service.unary<v1::GetClusterStatusRequest, v1::ClusterStatus>(
      "GetClusterStatus", {.access = authenticated, .idempotent = true},
      [&source](const Context&, const v1::GetClusterStatusRequest&) -> Result<v1::ClusterStatus> {
        const ClusterStatus status = source.status();
        v1::ClusterStatus response;
        response.set_node(status.node);
        response.set_mode(status.mode);
        response.set_healthy(status.healthy);
        response.set_reason(status.reason);
        response.set_ceiling_ns(status.ceiling_ns);
        return response;
      });
}

}  // namespace creto::consensus
