#pragma once

#include <string_view>

#include "creto/authz/authz.h"
#include "override_token.h"

namespace creto::authz {

/// Uses up a token, which was verified before, in the transaction of the operation it permits: the second half of
/// `Authz::consume_override`, the same here and over the wire.
Result<> use_token(sql::Tx& tx, const Context& ctx, const OverrideToken& token, const CheckRequest& request,
                   std::string_view operation_id, Instant now);

}  // namespace creto::authz
