#pragma once

#include <google/protobuf/struct.pb.h>

#include "creto/io/proto.h"
#include "creto/metering/metering.h"
#include "creto/metering/v1/metering.pb.h"

namespace creto::metering {

/// A document is canonical JSON on our side and a Struct on the wire.
Result<std::string> json_of(const google::protobuf::Struct& document);
Result<google::protobuf::Struct> struct_of(const std::string& json);

common::v1::Money to_proto(const Money& money);
Result<Money> from_proto(const common::v1::Money& money, std::string_view field);

template <class Repeated>
Result<DelegationChain> chain_from(const Repeated& texts) {
  if (texts.size() > static_cast<int>(delegation_chain_max_depth)) {
    return proto::bad_field("delegation_chain", "is too deep");
  }
  DelegationChain chain;
  for (const std::string& text : texts) {
    Identity identity = CRETO_TRY(proto::from_identity(text, "delegation_chain"));
    chain.push_back(std::move(identity));
  }
  return chain;
}
template <class Request>
void set_chain(Request& request, const DelegationChain& chain) {
  for (const Identity& identity : chain) request.add_delegation_chain(identity.text());
}

/// A decimal; empty is `otherwise`.
Result<Decimal> decimal_from(const std::string& text, std::string_view field, const Decimal& otherwise);
/// Overrides as JSON; empty where there are none.
Result<std::string> overrides_from(const google::protobuf::Struct& overrides);

v1::Subscription to_proto(const Subscription& subscription);
Result<Subscription> from_proto(const v1::Subscription& subscription);
v1::QuotaState to_proto(const QuotaState& state);
Result<QuotaState> from_proto(const v1::QuotaState& state);
v1::CostForecast to_proto(const CostForecast& forecast);
Result<CostForecast> from_proto(const v1::CostForecast& forecast);
v1::QuotaDecision to_proto(const contracts::QuotaDecision& decision);
Result<contracts::QuotaDecision> from_proto(const v1::QuotaDecision& decision);
v1::GetUsageRequest to_proto(const UsageQuery& query);
Result<UsageQuery> from_proto(const v1::GetUsageRequest& request);
v1::ListUsageEventsRequest to_proto(const UsageEventsQuery& query);
Result<UsageEventsQuery> from_proto(const v1::ListUsageEventsRequest& request);
v1::GetUsageResponse to_proto(const UsageReport& usage);
Result<UsageReport> from_proto(const v1::GetUsageResponse& response);
v1::Invoice to_proto(const Invoice& invoice);
Result<Invoice> from_proto(const v1::Invoice& invoice);
v1::CreditNote to_proto(const CreditNote& note);
Result<CreditNote> from_proto(const v1::CreditNote& note);
v1::CreditReset to_proto(const CreditReset& reset);
Result<CreditReset> from_proto(const v1::CreditReset& reset);
v1::Credit to_proto(const Credit& credit);
Result<Credit> from_proto(const v1::Credit& credit);
v1::TopUp to_proto(const TopUp& top_up);
Result<TopUp> from_proto(const v1::TopUp& top_up);
v1::BillableEvent to_proto(const contracts::BillableEvent& event);
Result<contracts::BillableEvent> from_proto(const v1::BillableEvent& event);
v1::CostThreshold to_proto(const contracts::CostThreshold& threshold);
Result<contracts::CostThreshold> from_proto(const v1::CostThreshold& threshold);
v1::OversightTrigger to_proto(const contracts::OversightTrigger& trigger);
Result<contracts::OversightTrigger> from_proto(const v1::OversightTrigger& trigger);
v1::CheckCostThresholdResponse to_proto(const std::optional<contracts::OversightTrigger>& trigger);
Result<std::optional<contracts::OversightTrigger>> from_proto(const v1::CheckCostThresholdResponse& response);

/// An error inside a successful answer.
common::v1::EnablementError to_proto(const Error& error);
Error from_proto(const common::v1::EnablementError& error);

}  // namespace creto::metering
