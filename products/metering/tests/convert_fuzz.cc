// What a converter takes from a message it writes as a message that says the same.
#include "creto/testing/message_fuzz.h"
#include "rpc/convert.h"

namespace {

using namespace creto;
namespace v1 = metering::v1;

struct Convert {
  static constexpr std::array words = {std::string_view("hour"),          std::string_view("day"),
                                       std::string_view("transaction"),   std::string_view("notify_only"),
                                       std::string_view("block"),         std::string_view("MT-429"),
                                       std::string_view("quota_exceeded")};

  template <class M>
  static auto from(const M& message) {
    return metering::from_proto(message);
  }
  static auto from(const common::v1::Money& message) { return metering::from_proto(message, "money"); }
  /// A document on the wire, and as text with us.
  static auto from(const google::protobuf::Struct& document) { return metering::json_of(document); }
  template <class T, class M>
  static void to(const T& value, M& out) {
    out = metering::to_proto(value);
  }
  static void to(const std::string& json, google::protobuf::Struct& out) {
    const auto document = metering::struct_of(json);
    CRETO_ASSERT(document.has_value());
    out = *document;
  }
};

}  // namespace

CRETO_FUZZ_MESSAGES(Convert, v1::Subscription, v1::QuotaState, v1::QuotaDecision, v1::Invoice, v1::BillableEvent,
                    v1::CostThreshold, v1::OversightTrigger, v1::CheckCostThresholdResponse, v1::GetUsageRequest,
                    v1::ListUsageEventsRequest, v1::GetUsageResponse, common::v1::Money, common::v1::EnablementError,
                    google::protobuf::Struct)
