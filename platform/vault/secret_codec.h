#pragma once

#include <string>

#include "creto/vault/vault.h"

namespace creto::vault {

/// What callers may hand in; each refuses with invalid_input naming the field, or too_large.
Result<> check(const SecretRef& ref);
Result<> check(const SecretMetadata& metadata);
Result<> check_value(const Secret& value);

/// Canonical JSON, as kept in the tables.
Result<std::string> to_json(const SecretMetadata& metadata);
Result<SecretMetadata> metadata_from_json(std::string_view text);

Result<std::string> to_json(const SecretInfo& info);
Result<SecretInfo> info_from_json(std::string_view text);

}  // namespace creto::vault
