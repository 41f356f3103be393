#include "creto/common/error.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "creto/common/assert.h"
#include "creto/common/bytes.h"

namespace creto {
namespace {

struct KindInfo {
  ErrorKind kind;
  std::string_view name;
  int number;
  ErrorCategory category;
};

using enum ErrorCategory;
constexpr std::array kinds = {
    KindInfo{ErrorKind::not_found, "not_found", 404, permanent},
    KindInfo{ErrorKind::already_exists, "already_exists", 409, permanent},
    KindInfo{ErrorKind::conflict, "conflict", 409, permanent},
    KindInfo{ErrorKind::invalid_input, "invalid_input", 400, permanent},
    KindInfo{ErrorKind::unauthenticated, "unauthenticated", 401, security},
    KindInfo{ErrorKind::permission_denied, "permission_denied", 403, authorization},
    KindInfo{ErrorKind::expired, "expired", 410, permanent},
    KindInfo{ErrorKind::too_large, "too_large", 413, permanent},
    KindInfo{ErrorKind::resource_exhausted, "resource_exhausted", 507, transient},
    KindInfo{ErrorKind::rate_limited, "rate_limited", 429, transient},
    KindInfo{ErrorKind::timeout, "timeout", 504, transient},
    KindInfo{ErrorKind::cancelled, "cancelled", 499, permanent},
    KindInfo{ErrorKind::unavailable, "unavailable", 503, transient},
    KindInfo{ErrorKind::internal, "internal", 500, permanent},
    KindInfo{ErrorKind::quota_exceeded, "quota_exceeded", 429, authorization},
    KindInfo{ErrorKind::oversight_required, "oversight_required", 202, oversight},
    KindInfo{ErrorKind::approval_denied, "approval_denied", 403, oversight},
    KindInfo{ErrorKind::approval_timeout, "approval_timeout", 408, oversight},
    KindInfo{ErrorKind::sandbox_spawn_failed, "sandbox_spawn_failed", 500, permanent},
    KindInfo{ErrorKind::attestation_failed, "attestation_failed", 495, security},
    KindInfo{ErrorKind::egress_denied, "egress_denied", 403, authorization},
    KindInfo{ErrorKind::encryption_failed, "encryption_failed", 500, security},
    KindInfo{ErrorKind::decryption_failed, "decryption_failed", 422, security},
    KindInfo{ErrorKind::signature_invalid, "signature_invalid", 401, security},
    KindInfo{ErrorKind::hash_mismatch, "hash_mismatch", 422, security},
    KindInfo{ErrorKind::delivery_denied, "delivery_denied", 403, authorization},
    KindInfo{ErrorKind::recipient_not_found, "recipient_not_found", 404, permanent},
    KindInfo{ErrorKind::topic_not_found, "topic_not_found", 404, permanent},
    KindInfo{ErrorKind::unsupported_algorithm, "unsupported_algorithm", 400, security},
};

constexpr bool kinds_follow_enum_order() {
  for (std::size_t i = 0; i < kinds.size(); ++i)
    if (static_cast<std::size_t>(kinds[i].kind) != i) return false;
  return kinds.size() == static_cast<std::size_t>(ErrorKind::unsupported_algorithm) + 1;
}
static_assert(kinds_follow_enum_order());

/// Messages quote what callers sent; whoever stores or sends them need not look again.
std::string shown(std::string text) {
  if (is_valid_utf8(text) && text.find('\0') == std::string::npos) return text;
  return legible(text);
}

const KindInfo& info(ErrorKind kind) { return kinds[static_cast<std::size_t>(kind)]; }

}  // namespace

std::string_view code_prefix(Product product) {
  switch (product) {
    case Product::platform:
      return "PL";
    case Product::runtime:
      return "RT";
    case Product::metering:
      return "MT";
    case Product::oversight:
      return "OV";
    case Product::messaging:
      return "MS";
  }
  std::unreachable();
}

std::string_view to_string(Product product) {
  switch (product) {
    case Product::platform:
      return "platform";
    case Product::runtime:
      return "runtime";
    case Product::metering:
      return "metering";
    case Product::oversight:
      return "oversight";
    case Product::messaging:
      return "messaging";
  }
  std::unreachable();
}

std::string_view to_string(ErrorKind kind) { return info(kind).name; }
ErrorCategory category_of(ErrorKind kind) { return info(kind).category; }

std::optional<ErrorKind> error_kind_from_string(std::string_view text) {
  for (const KindInfo& entry : kinds)
    if (entry.name == text) return entry.kind;
  return std::nullopt;
}

std::string_view to_string(ErrorCategory category) {
  switch (category) {
    case ErrorCategory::transient:
      return "transient";
    case ErrorCategory::permanent:
      return "permanent";
    case ErrorCategory::security:
      return "security";
    case ErrorCategory::authorization:
      return "authorization";
    case ErrorCategory::oversight:
      return "oversight";
  }
  std::unreachable();
}

struct Error::Rep {
  Product product;
  ErrorKind kind;
  int number;
  std::string message;
  std::vector<std::string> context;
  std::optional<Error> cause;
  bool retryable;
  std::optional<std::chrono::nanoseconds> retry_after;
  std::string trace_id;
};

Error::Error(Product product, ErrorKind kind, std::string message)
    : rep_(new Rep{product,
                   kind,
                   info(kind).number,
                   shown(std::move(message)),
                   {},
                   std::nullopt,
                   info(kind).category == ErrorCategory::transient,
                   std::nullopt,
                   {}}) {}
Error::Error(const Error& other) : rep_(std::make_unique<Rep>(*other.rep_)) {}
Error& Error::operator=(const Error& other) {
  if (this != &other) rep_ = std::make_unique<Rep>(*other.rep_);
  return *this;
}
Error::Error(Error&&) noexcept = default;
Error& Error::operator=(Error&&) noexcept = default;
Error::~Error() = default;

ErrorKind Error::kind() const { return rep_->kind; }
Product Error::product() const { return rep_->product; }
int Error::number() const { return rep_->number; }
std::string Error::code() const { return fmt::format("{}-{:03}", code_prefix(rep_->product), rep_->number); }
const std::string& Error::message() const { return rep_->message; }
const std::vector<std::string>& Error::context() const { return rep_->context; }
const Error* Error::caused_by() const { return rep_->cause ? &*rep_->cause : nullptr; }
bool Error::retryable() const { return rep_->retryable; }
std::optional<std::chrono::nanoseconds> Error::retry_after() const { return rep_->retry_after; }
const std::string& Error::trace_id() const { return rep_->trace_id; }

Error&& Error::with_number(int number) && {
  CRETO_ASSERT(number >= 1 && number <= 999);
  rep_->number = number;
  return std::move(*this);
}
Error&& Error::with_context(std::string context) && {
  rep_->context.push_back(shown(std::move(context)));
  return std::move(*this);
}
Error&& Error::with_cause(Error cause) && {
  rep_->cause.emplace(std::move(cause));
  return std::move(*this);
}
Error&& Error::with_retryable(bool retryable) && {
  rep_->retryable = retryable;
  return std::move(*this);
}
Error&& Error::with_retry_after(std::chrono::nanoseconds delay) && {
  rep_->retry_after = delay;
  return std::move(*this);
}
Error&& Error::with_trace(std::string trace_id) && {
  rep_->trace_id = std::move(trace_id);
  return std::move(*this);
}

std::string Error::to_string() const {
  std::string text = code() + ": ";
  for (auto it = rep_->context.rbegin(); it != rep_->context.rend(); ++it) text += *it + ": ";
  text += rep_->message;
  if (rep_->cause) text += " (" + rep_->cause->to_string() + ")";
  return text;
}

}  // namespace creto
