#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "creto/audit/audit_log.h"
#include "creto/common/result.h"
#include "creto/common/time.h"
#include "creto/io/sql.h"

/// What every part of the service says in the same way.
namespace creto::metering {

/// How long it is remembered that a limit's window was told of; what is older is not told any more.
inline constexpr Nanos notice_age_max = std::chrono::days(400);

inline Error error(ErrorKind kind, std::string message) { return Error(Product::metering, kind, std::move(message)); }
inline Error not_found(std::string_view what, std::string_view id) {
  return error(ErrorKind::not_found, fmt::format("{} `{}` does not exist", what, id.substr(0, 300)));
}

/// The record of a change, in its transaction.
inline Result<> audit_change(sql::Tx& tx, const Context& ctx, std::string what, std::string resource,
                             std::string metadata = "{}") {
  auto record = audit::AuditRecord::of(ctx, std::move(what), std::move(resource));
  record.metadata = std::move(metadata);
  CRETO_TRY(audit::record(tx, ctx, std::move(record)));
  return {};
}

}  // namespace creto::metering
