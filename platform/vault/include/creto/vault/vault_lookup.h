#pragma once

#include <optional>

#include "creto/vault/vault.h"

namespace creto::vault {

/// What is known of a secret in `ctx.org` but its value, whoever asks: for authorization, which has to know what it
/// decides about. The latest version; none where there is no such secret. Nothing is audited. Requires: a vault has
/// migrated `database`.
Result<std::optional<SecretInfo>> find_secret(sql::Database& database, const Context& ctx, const SecretRef& ref);

}  // namespace creto::vault
