#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/access.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/crypto/key_sealer.h"

namespace creto::sql {
class Database;
}

namespace creto::vault {

CRETO_ID(SecretDelegationId, "sdl");

/// Where a secret is: a folder-like path and a name, "agents/invoice" + "LEDGER_TOKEN". Path: 1 to 256 characters of
/// [A-Za-z0-9._/-], no empty, "." or ".." part; name: [A-Za-z_][A-Za-z0-9_]{0,127}, so that it can be an environment
/// variable.
struct SecretRef {
  std::string path;
  std::string name;

  /// "path/name"; also the id of the Cedar resource Secret::"path/name".
  std::string text() const { return path + "/" + name; }
  /// The inverse: splits at the last '/'. Errors: invalid_input
  static Result<SecretRef> parse(std::string_view text);
  friend auto operator<=>(const SecretRef&, const SecretRef&) = default;
};

enum class SecretType : std::uint8_t { generic, api_key, password, certificate, private_key, token, connection_string };
std::string_view to_string(SecretType type);
Result<SecretType> secret_type_from_string(std::string_view text);

struct SecretMetadata {
  SecretType type = SecretType::generic;
  std::string description;                    ///< up to 1 KiB
  std::map<std::string, std::string> labels;  ///< up to 64, key and value up to 256 bytes
  friend bool operator==(const SecretMetadata&, const SecretMetadata&) = default;
};

/// Everything about one version of a secret but its value.
struct SecretInfo {
  SecretRef ref;
  Identity owner;
  std::uint64_t version = 1;  ///< counts from 1
  SecretMetadata metadata;
  Instant created_at{};  ///< of this version
  std::optional<Instant> expires_at;
};

struct SecretVersion {
  SecretInfo info;
  Secret value;
};

struct NewSecret {
  SecretRef ref;
  Secret value;  ///< 1 byte to 64 KiB
  SecretMetadata metadata;
  std::optional<Instant> expires_at;
};

/// A new version. What is not set stays as in the latest.
struct SecretUpdate {
  SecretRef ref;
  Secret value;
  std::optional<SecretMetadata> metadata;
  std::optional<Instant> expires_at;
  std::uint64_t expected_version = 0;  ///< 0: whatever the latest is; else conflict where it is not this one
};

/// Where and how often a delegated secret may be used (003 §5.2).
struct DelegationRestrictions {
  std::optional<SandboxId> bound_sandbox;  ///< only for this sandbox
  bool single_use = false;                 ///< the same as max_uses = 1
  bool memory_only = true;                 ///< the receiver must not write it to disk
  std::uint32_t max_uses = 0;              ///< 0: as often as wanted while active
};

enum class DelegationStatus : std::uint8_t { active, expired, revoked, exhausted };
std::string_view to_string(DelegationStatus status);

struct DelegationRequest {
  Identity delegatee;
  std::vector<SecretRef> secrets;  ///< 1 to 64, no repeats
  Nanos ttl = std::chrono::hours(1);
  DelegationRestrictions restrictions;
};

struct SecretDelegation {
  SecretDelegationId id;
  Identity delegator;
  Identity delegatee;
  std::vector<SecretRef> secrets;
  Instant created_at{};
  Instant expires_at{};
  DelegationRestrictions restrictions;
  std::uint32_t uses = 0;
  DelegationStatus status = DelegationStatus::active;  ///< as of now
};

struct DelegatedSecret {
  SecretRef ref;
  std::uint64_t version = 0;
  Secret value;
};

struct DelegatedSecrets {
  SecretDelegation delegation;
  std::vector<DelegatedSecret> secrets;
};

/// What is lent to a sandbox by `get_delegated_secrets`.
inline SecretDelegationId delegation_of(const SandboxId& sandbox) {
  return SecretDelegationId::from_bytes(sandbox.bytes());
}

/// One use of a secret, or one that was refused. Never holds a value.
struct SecretAccess {
  std::int64_t sequence = 0;  ///< rises with time; the cursor of `access_log`
  Instant at{};
  Identity who;
  std::string operation;  ///< "secret.read", "secret.create", "secret.delegate", ...
  SecretRef ref;
  std::uint64_t version = 0;  ///< 0 where none was touched
  std::string delegation_id;  ///< empty where none
  bool allowed = true;
};

struct VaultOptions {
  Nanos delegation_ttl_max = std::chrono::hours(24);
  bool require_memory_only = true;   ///< refuses delegations that would let the receiver write to disk
  std::uint32_t versions_kept = 10;  ///< older versions of a secret are erased when a new one comes
};

/// Keeps secrets and lends them.
///
/// Every call is done for `ctx.caller`. A secret belongs to who created it; anybody else needs policy's permission
/// (secret.read, secret.write, secret.delegate on Secret::"path/name"). Each access, also a refused one, is audited in
/// the transaction that grants it, by name and never by value. Values are encrypted with a key of their own
/// (AES-256-GCM) under the root key, wiped from memory after use, and never logged.
///
/// Thread-safe.
///
/// Errors of every call: unauthenticated without caller; permission_denied; invalid_input; unavailable
class Vault {
 public:
  virtual ~Vault() = default;

  /// Errors: already_exists
  virtual Result<SecretInfo> create_secret(const Context& ctx, NewSecret secret) = 0;
  /// `version` 0 is the latest. Errors: not_found; expired (past expires_at: the value is not handed out)
  virtual Result<SecretVersion> get_secret(const Context& ctx, const SecretRef& ref, std::uint64_t version = 0) = 0;
  /// All or none, in the order asked; 1 to 64.
  virtual Result<std::vector<SecretVersion>> get_secrets(const Context& ctx, const std::vector<SecretRef>& refs) = 0;
  /// What there is, without values: the latest version of each secret under `path_prefix` the caller owns or may read,
  /// sorted, from after `after`, up to `limit` (1 to 1000).
  virtual Result<std::vector<SecretInfo>> list_secrets(const Context& ctx, std::string_view path_prefix,
                                                       std::string_view after, std::size_t limit) = 0;
  /// Errors: not_found; conflict where `expected_version` is not the latest
  virtual Result<SecretInfo> update_secret(const Context& ctx, SecretUpdate update) = 0;
  /// Erases every version; delegations of it yield nothing afterwards. Errors: not_found
  virtual Result<> delete_secret(const Context& ctx, const SecretRef& ref) = 0;

  /// Lends secrets that the caller owns or may delegate. Errors: not_found (one of them)
  virtual Result<SecretDelegation> create_delegation(const Context& ctx, const DelegationRequest& request) = 0;
  /// For the delegatee, inside `sandbox` where it has one. Counts one use, whatever the number of secrets; the count
  /// and the audit record commit before a value is handed out.
  ///
  /// Errors: not_found; expired; permission_denied (revoked, other delegatee, other sandbox); resource_exhausted (used
  /// up)
  virtual Result<DelegatedSecrets> use_delegation(const Context& ctx, const SecretDelegationId& id,
                                                  const std::optional<SandboxId>& sandbox) = 0;
  /// For whoever fills a sandbox with secrets, in the name of its agent (`ctx.caller`): makes a delegation bound to
  /// `sandbox`, memory only, for those of `refs` that the agent owns, may read by policy, or was lent by an active
  /// delegation (which counts a use); returns it with the values. All or none. Its id is `delegation_of(sandbox)`, so
  /// that it can be revoked also by who never heard the answer. Revoke it when the sandbox ends.
  /// Errors: already_exists: once for each sandbox
  virtual Result<DelegatedSecrets> get_delegated_secrets(const Context& ctx, const SandboxId& sandbox,
                                                         const std::vector<SecretRef>& refs, Nanos ttl) = 0;
  /// For delegator, delegatee, or who may secret.delegate on every secret of it. Repeating it is fine.
  /// Errors: not_found
  virtual Result<SecretDelegation> revoke_delegation(const Context& ctx, const SecretDelegationId& id) = 0;
  /// For delegator and delegatee. Errors: not_found
  virtual Result<SecretDelegation> get_delegation(const Context& ctx, const SecretDelegationId& id) = 0;

  /// For the owner, newest first, those with a sequence below `before` (0: from the newest), up to `limit` (1 to 1000).
  virtual Result<std::vector<SecretAccess>> access_log(const Context& ctx, const SecretRef& ref, std::int64_t before,
                                                       std::size_t limit) = 0;

  virtual HealthStatus health() = 0;
};

/// Everything passed in must outlive the vault. Runs its migrations.
Result<std::unique_ptr<Vault>> create_vault(sql::Database& database, crypto::KeySealer& sealer, AccessControl& access,
                                            const Clock& clock, VaultOptions options = {});

}  // namespace creto::vault
