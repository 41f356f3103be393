#pragma once

namespace creto::audit {

/// Raised when records were committed to audit_pending.
inline constexpr const char* pending_signal = "audit.pending";

}  // namespace creto::audit
