#pragma once

#include <optional>
#include <string>
#include <vector>

#include "creto/io/sql.h"
#include "creto/vault/vault.h"

namespace creto::vault {

CRETO_ID(SecretId, "sec");

/// A secret apart from its versions. `id` tells it from a later one of the same name.
struct SecretHead {
  std::string id;  ///< a SecretId
  SecretRef ref;
  Identity owner;
  std::uint64_t latest = 0;
};

struct StoredVersion {
  SecretInfo info;
  Bytes sealed;
};

/// A delegation with the ids of what it lends, in the order of `delegation.secrets`.
struct StoredDelegation {
  SecretDelegation delegation;  ///< `status` as of the `now` it was read with
  std::vector<std::string> secret_ids;
};

/// The vault's tables. Knows rows, not rules. Stateless.
namespace store {

Result<> migrate(sql::Database& database);

Result<std::optional<SecretHead>> find_head(sql::Tx& tx, const Context& ctx, const SecretRef& ref);
Result<std::optional<SecretHead>> find_head_by_id(sql::Tx& tx, const Context& ctx, std::string_view id);
/// By path and name, under `path_prefix`, after `after`.
Result<std::vector<SecretHead>> list_heads(sql::Tx& tx, const Context& ctx, std::string_view path_prefix,
                                           const std::optional<SecretRef>& after, std::size_t limit);
Result<> insert_head(sql::Tx& tx, const Context& ctx, const SecretHead& head);
Result<> set_latest(sql::Tx& tx, const Context& ctx, const SecretHead& head);
Result<> delete_secret(sql::Tx& tx, const Context& ctx, const SecretHead& head);

Result<> insert_version(sql::Tx& tx, const Context& ctx, const SecretHead& head, const StoredVersion& version);
Result<std::optional<StoredVersion>> find_version(sql::Tx& tx, const Context& ctx, const SecretHead& head,
                                                  std::uint64_t version);
/// Erases versions up to and with `last`.
Result<> delete_versions(sql::Tx& tx, const Context& ctx, const SecretHead& head, std::uint64_t last);

Result<> insert_delegation(sql::Tx& tx, const Context& ctx, const StoredDelegation& delegation);
Result<std::optional<StoredDelegation>> find_delegation(sql::Tx& tx, const Context& ctx, std::string_view id,
                                                        Instant now);
/// The active delegation to `delegatee` of the secret that ends last; bound to `sandbox` or to none.
Result<std::optional<StoredDelegation>> find_lease(sql::Tx& tx, const Context& ctx, std::string_view secret_id,
                                                   const Identity& delegatee, const SandboxId& sandbox, Instant now);
/// Counts a use if it is active; false where it is not.
Result<bool> count_use(sql::Tx& tx, const Context& ctx, std::string_view id, Instant now);
Result<> revoke(sql::Tx& tx, const Context& ctx, std::string_view id);

Result<> insert_access(sql::Tx& tx, const Context& ctx, const SecretAccess& access);
Result<std::vector<SecretAccess>> list_access(sql::Tx& tx, const Context& ctx, const SecretRef& ref,
                                              std::int64_t before, std::size_t limit);

}  // namespace store
}  // namespace creto::vault
