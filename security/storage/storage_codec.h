#pragma once

#include <string>

#include "creto/storage/storage.h"

namespace creto::storage {

/// What callers may hand in; each refuses with invalid_input naming the field.
Result<> check_bucket(std::string_view bucket);
Result<> check_key(std::string_view key);
Result<> check_content_type(std::string_view type);
Result<> check_metadata(const std::map<std::string, std::string>& metadata);

/// What a presigned URL permits (docs/formats.md, "Presigned URL").
struct Grant {
  std::string org;
  Identity as;  ///< in whose name
  StorageRef ref;
  PresignedOperation operation;
  std::int64_t expires_s = 0;  ///< Unix seconds
};

inline constexpr std::string_view presigned_path = "/v1/presigned/";

/// Path and query, signed with `key` (HMAC-SHA256).
std::string sign_target(const Grant& grant, BytesView key);
/// Errors: permission_denied where it does not verify (nothing else is said); invalid_input
Result<Grant> verify_target(std::string_view target, BytesView key);

}  // namespace creto::storage
