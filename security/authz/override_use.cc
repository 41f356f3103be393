#include "override_use.h"

#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/io/sql.h"
#include "store.h"

namespace creto::authz {

Result<> use_token(sql::Tx& tx, const Context& ctx, const OverrideToken& token, const CheckRequest& request,
                   std::string_view operation_id, Instant now) {
  const auto refused = [](ErrorKind kind, std::string message) {
    return Error(Product::platform, kind, std::move(message));
  };
  if (operation_id.empty() || operation_id.size() > 256) {
    return refused(ErrorKind::invalid_input, "the id of an operation has 1 to 256 bytes");
  }
  const auto use = CRETO_TRY(store::override_use(tx, ctx.org, token.request));
  if (use == operation_id) return {};
  if (use) return refused(ErrorKind::permission_denied, "the approval was used already");
  if (now >= token.expires_at) return refused(ErrorKind::expired, "the approval has expired");
  const bool revoked = CRETO_TRY(store::is_override_revoked(tx, ctx.org, token.request));
  if (revoked) return refused(ErrorKind::permission_denied, "the approval was withdrawn");
  const bool first = CRETO_TRY(store::use_override(tx, ctx.org, token.request, operation_id));
  if (!first) return refused(ErrorKind::permission_denied, "the approval was used already");
  auto record = audit::AuditRecord::of(ctx, "override_used", "oversight:request:" + token.request.to_string());
  record.metadata = Json{{"action", request.action},
                         {"arguments_hash", hex(request.arguments_hash)},
                         {"operation", operation_id},
                         {"resource", request.resource.to_string()}}
                        .dump();
  CRETO_TRY(audit::record(tx, ctx, std::move(record)));
  return {};
}

}  // namespace creto::authz
