#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "creto/authz/authz.h"
#include "snapshot.h"

namespace creto::authz {

/// The products' resources, for one check.
class AskedResources {
 public:
  AskedResources(const Context& ctx, const Clock& clock, const std::vector<RegisteredSource>& sources)
      : ctx_(ctx), clock_(clock), sources_(sources) {}

  bool empty() const { return sources_.empty(); }
  bool may_know(std::string_view type) const { return source_of(type) != nullptr; }
  /// Whether any product was asked.
  bool asked() const { return asked_; }
  /// None where no product knows it. Errors: the product's; timeout where it took too long; unavailable on a
  /// thread that must not wait.
  Result<std::optional<Entity>> find(const EntityUid& uid);

 private:
  const ResourceSource* source_of(std::string_view type) const {
    const auto at =
        std::find_if(sources_.begin(), sources_.end(), [&](const RegisteredSource& one) { return one.type == type; });
    return at == sources_.end() ? nullptr : at->source;
  }

  const Context& ctx_;
  const Clock& clock_;
  const std::vector<RegisteredSource>& sources_;
  bool asked_ = false;
};

}  // namespace creto::authz
