#pragma once

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache.h"
#include "creto/audit/audit_log.h"
#include "creto/io/sql.h"
#include "creto/nhi/nhi.h"
#include "store.h"

namespace creto::nhi {

constexpr auto hybrid = crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;
constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr std::size_t sign_bytes_max = 4 << 20;

Error unknown(const Identity& identity);
/// Why an identity may not act now; success where it may.
Result<> check_acting(const Agent& agent, Instant now);
Result<> check_algorithms(const crypto::VerifyingKey& signing, const std::optional<crypto::KemPublicKey>& kem);
audit::AuditRecord record_of(const Context& ctx, std::string what, const Identity& about);

/// An identity with all its key sets, newest first.
struct Known {
  Agent agent;
  std::vector<PublicKeys> keys;

  const PublicKeys* find(std::string_view key_id) const {
    for (const PublicKeys& set : keys)
      if (set.key_id == key_id) return &set;
    return nullptr;
  }
};

struct PrivateKeys {
  crypto::SigningKey signing;
  crypto::KemPrivateKey kem;
};

/// Identities and tokens are in nhi_service.cc, the rest in a file each: key_service.cc, key_bundle_service.cc,
/// delegation_service.cc.
class NhiService final : public Nhi {
 public:
  NhiService(sql::Database& database, crypto::KeySealer& sealer, const Clock& clock, NhiOptions options)
      : database_(database),
        sealer_(sealer),
        clock_(clock),
        options_(options),
        known_(options.cache_entries, options.cache_ttl, clock),
        chains_(options.cache_entries, options.cache_ttl, clock),
        tokens_(options.cache_entries, options.cache_ttl, clock),
        private_(1000, options.cache_ttl, clock) {}

  Result<Agent> register_agent(const Context& ctx, const NewAgent& wanted) override;
  Result<Agent> register_human(const Context& ctx, const Identity& human, const std::string& name,
                               const crypto::VerifyingKey& signing,
                               const std::optional<crypto::KemPublicKey>& kem) override;
  Result<Agent> ensure_service(const Context& ctx, const Identity& service) override;
  Result<Agent> update_agent(const Context& ctx, const Identity& identity, const AgentChange& change) override;
  Result<Agent> set_roles(const Context& ctx, const Identity& human, std::vector<std::string> roles) override;
  Result<Agent> revoke_agent(const Context& ctx, const Identity& identity, const std::string& reason) override;
  Result<Agent> get_agent(const Context& ctx, const Identity& identity) override {
    auto found = CRETO_TRY(known(ctx, identity));
    return found->agent;
  }
  Result<std::vector<Agent>> list_agents(const Context& ctx, const AgentFilter& filter) override;
  Result<Agent> find_agent(const Context& ctx, const std::string& identity_or_name) override;
  Result<bool> is_registered(const Context& ctx, const Identity& identity) override;
  Result<bool> is_revoked(const Context& ctx, const Identity& identity) override;

  Result<ResolvedToken> resolve_token(const Context& ctx, const std::string& token) override;
  Result<std::string> issue_token(const Context& ctx, const Identity& identity, Nanos valid_for) override;

  Result<Delegation> create_delegation(const Context& ctx, const NewDelegation& wanted) override;
  Result<Chain> get_delegation_chain(const Context& ctx, const Identity& identity,
                                     const std::optional<DelegationId>& leaf) override;
  Result<PastChain> get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) override;
  Result<> verify_delegation(const Context& ctx, const Chain& chain) override;
  Result<> revoke_delegation(const Context& ctx, const DelegationId& id) override;

  Result<PublicKeys> get_public_keys(const Context& ctx, const Identity& identity) override;
  Result<std::vector<PublicKeys>> key_sets(const Context& ctx, const Identity& identity) override {
    auto found = CRETO_TRY(known(ctx, identity));
    return found->keys;
  }
  Result<PublicKeys> rotate_keys(const Context& ctx, const Identity& identity, const KeyRotation& rotation) override;
  Result<Signature> sign(const Context& ctx, const Identity& identity, BytesView data,
                         std::string_view context) override;
  Result<> verify(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                  std::string_view context) override;
  Result<> verify_past(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                       std::string_view context, Instant when, std::optional<Instant> told) override;
  Result<Secret> decapsulate(const Context& ctx, const Identity& identity, std::string_view key_id,
                             BytesView ciphertext) override;

  Result<PrekeyCount> publish_key_bundle(const Context& ctx, const Identity& identity,
                                         const KeyBundleUpload& bundle) override;
  Result<KeyBundle> take_key_bundle(const Context& ctx, const Identity& identity) override;
  Result<PrekeyCount> prekey_count(const Context& ctx, const Identity& identity) override;

  Result<> refresh(const Context& ctx) override;

  HealthStatus health() override;

 private:
  static std::string cache_key(const Context& ctx, std::string_view text) {
    return fmt::format("{}\n{}", ctx.org, text);
  }

  void forget_all();
  /// After what `tx` changes has been committed nothing read before is used, also not by others who `refresh`.
  Result<> forget_after(sql::Tx& tx);

  /// Errors: not_found.
  Result<std::shared_ptr<const Known>> known(const Context& ctx, const Identity& identity);
  /// Errors: as `check_acting`.
  Result<std::shared_ptr<const Known>> acting(const Context& ctx, const Identity& identity);
  /// The caller itself, or a service, which acts for others on its own responsibility.
  Result<> check_speaks_for(const Context& ctx, const Identity& identity) const;

  /// Fresh keys, sealed. For an agent `identity` is what its Ed25519 key makes it.
  Result<std::pair<PublicKeys, Bytes>> make_keys(const Context& ctx, std::optional<Identity>& identity,
                                                 Instant valid_until);
  Result<std::shared_ptr<const PrivateKeys>> private_keys(const Context& ctx, const Known& known,
                                                          const std::string& key_id);
  Result<> insert_managed(sql::Tx& tx, const Context& ctx, const Agent& agent, const PublicKeys& keys,
                          const Bytes& sealed, std::string what);
  Result<std::pair<PublicKeys, std::optional<Bytes>>> next_keys(const Context& ctx, const Known& known,
                                                                const KeyRotation& rotation);
  Result<> verify_link(const Context& ctx, const Delegation& link);
  Result<Chain> load_chain(const Context& ctx, const Agent& agent, const std::optional<DelegationId>& leaf);
  Result<Chain> chain_from(const Context& ctx, Delegation last);
  Result<PastChain> past_chain_from(const Context& ctx, store::PastDelegation last);

  sql::Database& database_;
  crypto::KeySealer& sealer_;
  const Clock& clock_;
  const NhiOptions options_;
  std::atomic<std::int64_t> changes_seen_{0};  ///< as `store::changes` counts them
  Cache<Known> known_;
  Cache<Chain> chains_;
  Cache<ResolvedToken> tokens_;
  Cache<PrivateKeys> private_;
};

}  // namespace creto::nhi
