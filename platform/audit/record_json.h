#pragma once

#include <string>
#include <string_view>

#include "creto/audit/audit_log.h"

namespace creto::audit {

/// The entry as it goes into the log: canonical JSON (docs/formats.md, "Audit record"). Requires: `record.id`.
/// Errors: invalid_input (names the field), too_large.
Result<std::string> to_entry(std::string_view org, const AuditRecord& record);

struct ParsedEntry {
  std::string org;
  AuditRecord record;
};
/// Errors: invalid_input, too_large.
Result<ParsedEntry> parse_entry(std::string_view entry);

}  // namespace creto::audit
