#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "creto/authz/authz.h"
#include "snapshot.h"
#include "source_asker.h"

namespace creto::authz {

/// The products' resources, for one check.
class AskedResources {
 public:
  AskedResources(const Context& ctx, const std::vector<RegisteredSource>& sources) : ctx_(ctx), sources_(sources) {}

  bool empty() const { return sources_.empty(); }
  bool may_know(std::string_view type) const { return asker_of(type) != nullptr; }
  /// Whether any product was asked.
  bool asked() const { return asked_; }
  /// None where no product knows it. Errors: as SourceAsker; unavailable on a thread that must not wait.
  Result<std::optional<Entity>> find(const EntityUid& uid) {
    SourceAsker* const asker = asker_of(uid.type);
    if (asker == nullptr) return std::optional<Entity>();
    asked_ = true;
    return asker->find(ctx_, uid);
  }

 private:
  SourceAsker* asker_of(std::string_view type) const {
    const auto at =
        std::find_if(sources_.begin(), sources_.end(), [&](const RegisteredSource& one) { return one.type == type; });
    return at == sources_.end() ? nullptr : at->asker;
  }

  const Context& ctx_;
  const std::vector<RegisteredSource>& sources_;
  bool asked_ = false;
};

}  // namespace creto::authz
