#include <fmt/format.h>

#include "creto/authz/authz.h"

namespace creto::authz {

std::string_view to_string(const Decision& decision) {
  static constexpr std::string_view names[] = {"allow", "deny", "requires_oversight", "quota_exceeded", "rate_limited"};
  return names[decision.index()];
}

std::optional<Error> refusal(Product product, const Decision& decision) {
  if (std::holds_alternative<Allow>(decision)) return std::nullopt;
  if (const auto* deny = std::get_if<Deny>(&decision)) {
    if (deny->transient) {
      return Error(product, ErrorKind::unavailable, fmt::format("not authorized: {}", deny->reason))
          .with_retryable(true);
    }
    return Error(product, ErrorKind::permission_denied, fmt::format("not authorized: {}", deny->reason));
  }
  if (const auto* quota = std::get_if<QuotaExceeded>(&decision)) {
    Error cause(Product::metering, ErrorKind::quota_exceeded,
                quota->message.empty()
                    ? fmt::format("quota `{}` exceeded ({}/{})", quota->quota_id, quota->used, quota->limit)
                    : quota->message);
    return Error(product, ErrorKind::quota_exceeded, "quota exceeded").with_cause(std::move(cause));
  }
  if (const auto* rate = std::get_if<RateLimited>(&decision)) {
    return Error(product, ErrorKind::rate_limited, "too many requests").with_retry_after(rate->retry_after);
  }
  std::string policies;
  for (const auto& requirement : std::get<RequiresOversight>(decision).requirements) {
    policies += fmt::format("{}`{}`", policies.empty() ? "" : ", ", requirement.oversight_policy);
  }
  return Error(product, ErrorKind::oversight_required, fmt::format("a human must approve this ({})", policies));
}

}  // namespace creto::authz
