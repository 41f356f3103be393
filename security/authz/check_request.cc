#include "check_request.h"

#include <algorithm>

#include "cedar/text.h"

namespace creto::authz {
namespace {

constexpr std::size_t value_bytes = 16;

/// Takes what a value needs from what is left; false where that is not enough.
class Allowance {
 public:
  explicit Allowance(std::size_t bytes) : left_(bytes) {}

  bool take(const Attributes& attributes) {
    return std::all_of(attributes.begin(), attributes.end(), [this](const auto& attribute) {
      return take(attribute.first.size()) && take(attribute.second);
    });
  }

 private:
  bool take(const Value& value) {
    if (!take(value_bytes)) return false;
    if (const auto* text = value.as<std::string>()) return take(text->size());
    if (const auto* uid = value.as<EntityUid>()) return take(uid->type.size() + uid->id.size());
    if (const auto* record = value.as_record()) return take(*record);
    const auto* elements = value.as_set();
    return !elements ||
           std::all_of(elements->begin(), elements->end(), [this](const Value& element) { return take(element); });
  }
  bool take(std::size_t bytes) {
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }

  std::size_t left_;
};

}  // namespace

EntityUid entity_of(const Identity& identity) {
  switch (identity.kind()) {
    case Identity::Kind::agent:
      return {"Agent", identity.text()};
    case Identity::Kind::human:
      return {"Human", identity.text()};
    case Identity::Kind::service:
      break;
  }
  return {"Service", identity.text()};
}

DatetimeValue datetime_of(Instant when) {
  return {std::chrono::floor<std::chrono::milliseconds>(when.time_since_epoch()).count()};
}

Value delegation_of(const Identity& principal, const DelegationChain& chain) {
  const Identity& root = chain.empty() ? principal : chain.front();
  std::vector<Value> links;
  for (const Identity& link : chain) links.emplace_back(entity_of(link));
  if (links.empty()) links.emplace_back(entity_of(principal));
  const auto depth = static_cast<std::int64_t>(std::max<std::size_t>(1, chain.size()));
  return Value::record(
      {{"root", Value(entity_of(root))}, {"depth", Value(depth)}, {"chain", Value::set(std::move(links))}});
}

bool is_larger(const Attributes& context, std::size_t bytes_max) { return !Allowance(bytes_max).take(context); }

std::optional<std::string> fault_in(const CheckRequest& request) {
  if (request.action.empty() || request.action.size() > 256) return "the action has 1 to 256 characters";
  if (request.resource.type.size() > 256 || !cedar::is_path(request.resource.type))
    return "the resource's type is no Cedar type";
  if (request.resource.id.size() > 4'096) return "the resource's id is longer than 4096 bytes";
  if (is_larger(request.context, context_bytes_max)) return "the context is larger than 256 KiB";
  if (request.chain.size() > delegation_chain_max_depth) return "the delegation chain is too deep";
  if (!request.chain.empty() && request.chain.back() != request.principal) {
    return "the delegation chain does not end with the principal";
  }
  return std::nullopt;
}

cedar::Request cedar_request(const CheckRequest& request) {
  Attributes context = request.context;
  context.emplace_back("delegation", delegation_of(request.principal, request.chain));
  return {
      entity_of(request.principal), {"Action", request.action}, request.resource, Value::record(std::move(context))};
}

}  // namespace creto::authz
