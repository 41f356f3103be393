#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace creto {

/// Who speaks; gives an error code its prefix (001 §8.1).
enum class Product : std::uint8_t { platform, runtime, metering, oversight, messaging };

/// "PL", "RT", "MT", "OV", "MS".
std::string_view code_prefix(Product product);
/// "platform", "runtime", ...
std::string_view to_string(Product product);

/// What went wrong, in terms a program can act on (000 §4.1, extended by 002 and 003).
enum class ErrorKind : std::uint8_t {
  // any product
  not_found,
  already_exists,
  conflict,            ///< the state does not permit it, or an idempotency key was used with other content
  invalid_input,       ///< the message names the field and the rule
  unauthenticated,     ///< no identity, or one that could not be proved
  permission_denied,   ///< the identity is known and may not
  expired,             ///< token, secret, delegation or message is past its time
  too_large,           ///< over a stated size limit
  resource_exhausted,  ///< disk, storage quota or queue is full
  rate_limited,
  timeout,
  cancelled,
  unavailable,  ///< a dependency does not answer; the outcome may be unknown, repeating is safe
  internal,
  // metering
  quota_exceeded,
  // oversight
  oversight_required,
  approval_denied,
  approval_timeout,
  // runtime
  sandbox_spawn_failed,
  attestation_failed,
  egress_denied,
  // messaging, storage, crypto
  encryption_failed,
  decryption_failed,
  signature_invalid,
  hash_mismatch,
  delivery_denied,
  recipient_not_found,
  topic_not_found,
  unsupported_algorithm,
};

/// "not_found", "quota_exceeded", ...: the wire spelling.
std::string_view to_string(ErrorKind kind);
std::optional<ErrorKind> error_kind_from_string(std::string_view text);

/// How a caller should react (002 §4, 004 §4.1).
enum class ErrorCategory : std::uint8_t { transient, permanent, security, authorization, oversight };
ErrorCategory category_of(ErrorKind kind);
std::string_view to_string(ErrorCategory category);

/// The EnablementError of 001 §8.2.
///
/// `code()` such as `RT-429` is for programs, `message()` for people: lower case, no full stop, names the thing in
/// backticks; both message and context are UTF-8 without NUL, whatever they quote. One pointer wide; copying copies the
/// whole chain.
class Error {
 public:
  /// The code's number follows from `kind` (not_found is 404, quota_exceeded 429, ...) unless `with_number` says other.
  Error(Product product, ErrorKind kind, std::string message);
  Error(const Error& other);
  Error& operator=(const Error& other);
  Error(Error&&) noexcept;
  Error& operator=(Error&&) noexcept;
  ~Error();

  ErrorKind kind() const;
  ErrorCategory category() const { return category_of(kind()); }
  Product product() const;
  int number() const;        ///< 1..999
  std::string code() const;  ///< "MT-429"
  const std::string& message() const;
  const std::vector<std::string>& context() const;
  const Error* caused_by() const;  ///< null where there is none
  bool retryable() const;
  std::optional<std::chrono::nanoseconds> retry_after() const;
  const std::string& trace_id() const;

  Error&& with_number(int number) &&;
  Error&& with_context(std::string context) &&;  ///< outermost last
  Error&& with_cause(Error cause) &&;
  Error&& with_retryable(bool retryable) &&;
  Error&& with_retry_after(std::chrono::nanoseconds delay) &&;
  Error&& with_trace(std::string trace_id) &&;

  /// "RT-429: cannot spawn sandbox: quota exceeded (MT-429: monthly quota of `sandbox_allocated` exceeded (3/3))".
  std::string to_string() const;

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

}  // namespace creto
