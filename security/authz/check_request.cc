#include "check_request.h"

#include <algorithm>

namespace creto::authz {

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

Value delegation_of(const Identity& principal, const DelegationChain& chain) {
  const Identity& root = chain.empty() ? principal : chain.front();
  std::vector<Value> links;
  for (const Identity& link : chain) links.emplace_back(entity_of(link));
  if (links.empty()) links.emplace_back(entity_of(principal));
  const auto depth = static_cast<std::int64_t>(std::max<std::size_t>(1, chain.size()));
  return Value::record(
      {{"root", Value(entity_of(root))}, {"depth", Value(depth)}, {"chain", Value::set(std::move(links))}});
}

}  // namespace creto::authz
