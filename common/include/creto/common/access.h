#pragma once

#include <string_view>

#include "creto/common/context.h"
#include "creto/common/result.h"

namespace creto {

/// Asks whether the caller of `ctx` may do something. The port through which modules below authz ask it; app wires
/// authz in. Thread-safe.
class AccessControl {
 public:
  virtual ~AccessControl() = default;

  /// Succeeds only where policy says Allow for `ctx.caller` (with `ctx.chain`).
  /// `action` is a Cedar action id such as "secret.read"; the resource is `resource_type`::"`resource_id`".
  ///
  /// Errors: permission_denied and whatever else the decision was; unavailable counts as no.
  virtual Result<> require(const Context& ctx, std::string_view action, std::string_view resource_type,
                           std::string_view resource_id) = 0;
};

}  // namespace creto
