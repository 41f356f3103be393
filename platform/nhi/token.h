#pragma once

#include "creto/nhi/nhi.h"

namespace creto::nhi {

/// A token as it came: parsed, not verified.
struct ParsedToken {
  std::string org;
  Identity issuer;
  std::string id;
  Instant issued_at{};
  Instant expires_at{};
  std::string signed_bytes;
  Signature signature;
};

inline constexpr Nanos token_valid_for_max = std::chrono::hours(24);
inline constexpr std::size_t token_bytes_max = 8192;

/// Errors: unauthenticated for anything that is not a well-formed token.
Result<ParsedToken> parse_token(std::string_view token);

/// That it lies within its time. Errors: expired; unauthenticated for one from the future or over 24 hours.
Result<> check_token_time(const ParsedToken& token, Instant now, Nanos skew);

}  // namespace creto::nhi
