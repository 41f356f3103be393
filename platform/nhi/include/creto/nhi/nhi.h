#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/identity.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/key_sealer.h"
#include "creto/crypto/signing.h"

namespace creto::sql {
class Database;
}

/// Who agents are: identities, keys, delegations, tokens (003 §6).
namespace creto::nhi {

/// What separates the uses of an identity's key that have rules of their own from what it signs for others (the context
/// of FIPS 204; `sign` takes the prekeys' alone).
inline constexpr std::string_view delegation_context = "creto.delegation";
inline constexpr std::string_view token_context = "creto.token";
inline constexpr std::string_view prekey_context = "creto.prekey";
inline constexpr std::string_view succession_context = "creto.succession";

enum class AgentType : std::uint8_t { autonomous, supervised, workflow, tool, human, service };
std::string_view to_string(AgentType type);
Result<AgentType> agent_type_from_string(std::string_view text);

enum class AgentStatus : std::uint8_t { active, suspended, revoked };
std::string_view to_string(AgentStatus status);
Result<AgentStatus> agent_status_from_string(std::string_view text);

/// The record behind an identity; of humans and services too.
struct Agent {
  Identity identity;
  std::string name;  ///< 1 to 128 characters; unique among the organization's active identities
  AgentType type;
  Identity owner;  ///< the human or service that answers for it; itself for a human or service
  Instant created_at{};
  Instant expires_at = Instant::max();
  AgentStatus status = AgentStatus::active;
  std::map<std::string, std::string> attributes;  ///< at most 64, keys 1 to 64, values up to 1 024 characters
  std::vector<std::string> roles = {};            ///< of a human; what `set_roles` says

  friend bool operator==(const Agent&, const Agent&) = default;
};

/// How a key set follows from the one before, which signed it: whoever has an identity's first set can follow its keys
/// to the last (docs/formats.md, "Succession").
struct Succession {
  std::string previous_key_id;
  Instant signed_at{};
  Signature signature;  ///< over `succession_signed_bytes`, by the previous set
};

/// Algorithms are named in the keys. The X-Wing key is ML-KEM-768's, then X25519's.
struct PublicKeys {
  std::string key_id;                       ///< `key_id_of` this set; rotation makes a new one
  crypto::VerifyingKey signing;             ///< hybrid-ed25519-ml-dsa-65
  std::optional<crypto::KemPublicKey> kem;  ///< x-wing; none for a human who registered none
  Instant valid_from{};
  Instant valid_until = Instant::max();
  std::optional<Succession> succession = {};  ///< none for the first set
  bool compromised = false;                   ///< since `valid_until` others may hold it

  /// Whether what it signs counts at `now`.
  bool in_force(Instant now) const { return !compromised && valid_until > now; }
  BytesView ed25519() const { return signing.ed25519_half(); }
  BytesView ml_dsa_65() const { return signing.ml_dsa_half(); }
  BytesView ml_kem_768() const { return kem ? BytesView(kem->bytes()).first(1184) : BytesView(); }
  BytesView x25519() const { return kem ? BytesView(kem->bytes()).last(32) : BytesView(); }
};

/// The first 8 bytes, in hex, of a hash over both public keys.
std::string key_id_of(const crypto::VerifyingKey& signing, const std::optional<crypto::KemPublicKey>& kem);
/// What the set named `previous_key_id` signs, under `succession_context`, where `next` follows it.
Result<std::string> succession_signed_bytes(std::string_view org, const Identity& identity, const PublicKeys& next,
                                            std::string_view previous_key_id, Instant signed_at);
/// That each of `sets` (newest first) but the first set is signed by the one before it, and that an agent's first one
/// is the key that its identity is made of. Errors: signature_invalid.
Result<> check_succession(std::string_view org, const Identity& identity, std::span<const PublicKeys> sets);

/// A set that a human made on his side, signed with the one that is in force.
struct NextKeys {
  crypto::VerifyingKey signing;
  std::optional<crypto::KemPublicKey> kem = {};
  Succession succession;  ///< `signed_at` within five minutes of the server's clock
};

struct KeyRotation {
  /// How long what the sets before sign still counts; at most a year. The default is as long as a message may be under
  /// way.
  Nanos overlap = std::chrono::days(30);
  /// Others may hold the keys: what they sign counts no more, but where it was told before now. `overlap` is not.
  bool compromised = false;
  std::optional<NextKeys> next = {};  ///< a human's; those of agents and services are made here
};

struct NewAgent {
  std::string name = {};
  AgentType type = AgentType::autonomous;  ///< not human
  std::optional<Identity> owner = {};      ///< default: the root of the caller's chain
  std::optional<Nanos> valid_for = {};     ///< of record and keys; default one year, at most ten
  std::map<std::string, std::string> attributes = {};
};

struct AgentChange {
  std::optional<std::string> name = {};
  std::optional<AgentStatus> status = {};  ///< active or suspended; revoking has its own call
  std::optional<Instant> expires_at = {};  ///< only earlier than it is
  std::optional<std::map<std::string, std::string>> attributes = {};  ///< replaces all
};

/// What a delegator grants a delegatee. Signed over `signed_bytes()`, whose format is "Delegation" in docs/formats.md.
struct Delegation {
  DelegationId id;
  std::string org;
  Identity delegator;
  Identity delegatee;
  std::optional<DelegationId> parent;    ///< the delegation by which the delegator itself acts; none for a root
  std::vector<std::string> permissions;  ///< 1 to 64 of "payments.pay", "sandbox.*", "*"; sorted, no repetition
  Instant created_at{};
  Instant expires_at{};
  std::string key_id;  ///< the delegator's key that signed
  Signature signature;
  bool revoked = false;

  Result<std::string> signed_bytes() const;
};

/// Fields of a delegation that its maker chooses. A human signs on his own side: then `id`, `created_at`, `key_id` and
/// `signature` are given; for agents and services nhi fills and signs them.
struct NewDelegation {
  Identity delegator;
  Identity delegatee;
  std::optional<DelegationId> parent;  ///< default for an agent: the last of its own chain
  std::vector<std::string> permissions;
  Instant expires_at{};

  std::optional<DelegationId> id;
  std::optional<Instant> created_at;  ///< within five minutes of the server's clock
  std::string key_id;
  std::optional<Signature> signature;
};

/// A root and the signed delegations from it to one agent.
struct Chain {
  Agent root;
  std::vector<Delegation> delegations;  ///< root's first; empty for a human or service
  Instant valid_until{};                ///< the earliest end of any link or identity in it

  /// Root first, the acting identity last.
  DelegationChain identities() const;
  /// Whether the last delegation covers `action`; a root by itself may ask for anything.
  bool permits(std::string_view action) const;
};

/// A chain as it was at a time, and between which times the same answer holds.
struct PastChain {
  Chain chain;
  Instant from = Instant::min();
  Instant until = Instant::max();
};

/// "sandbox.*" covers "sandbox.spawn" and "sandbox.*"; "*" covers everything.
bool covers(std::string_view permission, std::string_view action);

struct ResolvedToken {
  std::string org;
  Agent agent;
  std::string id;  ///< the token's own
  Instant expires_at{};
};

/// Public halves with which others begin sessions (PQXDH). Made and signed at the endpoint; `signature`s are the
/// identity's hybrid ones and are checked on publication.
struct SignedPrekey {
  std::uint32_t id = 0;
  Bytes key;            ///< X25519 or ML-KEM-768
  Signature signature;  ///< over `prekey_signed_bytes`
};
struct OneTimePrekey {
  std::uint32_t id = 0;
  Bytes key;  ///< X25519
};
struct KeyBundleUpload {
  Bytes identity_dh;  ///< X25519, the endpoint's long-term one
  Signature identity_dh_signature;
  SignedPrekey signed_prekey;
  SignedPrekey last_resort_kem;         ///< given out where no one-time one is left
  std::vector<OneTimePrekey> one_time;  ///< added to those there; at most 1 000 kept
  std::vector<SignedPrekey> one_time_kem;
};
struct KeyBundle {
  Identity identity;
  PublicKeys keys;  ///< the set that signed it
  Bytes identity_dh;
  Signature identity_dh_signature;
  SignedPrekey signed_prekey;
  SignedPrekey kem;
  bool kem_is_last_resort = false;
  std::optional<OneTimePrekey> one_time;
};
struct PrekeyCount {
  std::int64_t one_time = 0;
  std::int64_t one_time_kem = 0;
};
enum class PrekeyUse : std::uint8_t { identity_dh, signed_prekey, kem };
/// What the signature of a published key is over (docs/formats.md, "Prekey"): binds identity, use, id and key.
std::string prekey_signed_bytes(const Identity& identity, PrekeyUse use, std::uint32_t id, BytesView key);

struct AgentFilter {
  std::optional<Identity> owner = {};
  std::optional<AgentType> type = {};
  std::optional<AgentStatus> status = {};
  std::string name = {};    ///< exact; empty: any
  std::string role = {};    ///< who has it; empty: any
  std::size_t limit = 100;  ///< 1 to 1 000
  std::string after = {};   ///< identity text after which the page begins
};

/// Registers, vouches for and speaks for identities. Private keys are sealed at rest and never leave. Every change is
/// audited in its transaction. Thread-safe.
///
/// Invariant 1: an agent's identity is the Ed25519 key of its first key set, and every later set is signed by the one
/// before it. Invariant 2: every stored delegation verifies under its delegator's key, and covers no more and no longer
/// than its parent. Invariant 3: what is revoked stays revoked.
///
/// Errors of every call: invalid_input naming the field; not_found; unavailable.
class Nhi {
 public:
  virtual ~Nhi() = default;

  // --- identities
  /// Makes the keys too. Repeating with the same idempotency key returns the first agent.
  /// Errors: already_exists (the name); conflict (idempotency key with other content); permission_denied (another's
  /// `owner`).
  virtual Result<Agent> register_agent(const Context& ctx, const NewAgent& agent) = 0;
  /// A human, whose keys are made and kept on his side. Errors: already_exists unless it is there with the same keys.
  virtual Result<Agent> register_human(const Context& ctx, const Identity& human, const std::string& name,
                                       const crypto::VerifyingKey& signing,
                                       const std::optional<crypto::KemPublicKey>& kem) = 0;
  /// A service, whose keys nhi holds as an agent's. Returns it unchanged where it is there.
  virtual Result<Agent> ensure_service(const Context& ctx, const Identity& service) = 0;
  /// Errors: conflict where it is revoked.
  virtual Result<Agent> update_agent(const Context& ctx, const Identity& identity, const AgentChange& change) = 0;
  /// What a human stands for: "cfo" where an approval says `role:cfo`. Replaces all: at most 16, each 1 to 64 of a-z,
  /// 0-9 and `-`; kept sorted, each once. A call of its own, so that who may change a name may not make approvers.
  /// Errors: conflict where he is revoked.
  virtual Result<Agent> set_roles(const Context& ctx, const Identity& human, std::vector<std::string> roles) = 0;
  /// Also ends every chain through it. Idempotent.
  virtual Result<Agent> revoke_agent(const Context& ctx, const Identity& identity, const std::string& reason) = 0;
  virtual Result<Agent> get_agent(const Context& ctx, const Identity& identity) = 0;
  virtual Result<std::vector<Agent>> list_agents(const Context& ctx, const AgentFilter& filter) = 0;
  /// By identity text or by name. Errors: not_found.
  virtual Result<Agent> find_agent(const Context& ctx, const std::string& identity_or_name) = 0;
  virtual Result<bool> is_registered(const Context& ctx, const Identity& identity) = 0;
  /// True also for one that is suspended, past its time or unknown: whether it may not act.
  virtual Result<bool> is_revoked(const Context& ctx, const Identity& identity) = 0;

  // --- tokens (docs/formats.md, "Token")
  /// Errors: unauthenticated for one that does not verify or whose identity may not act; expired.
  virtual Result<ResolvedToken> resolve_token(const Context& ctx, const std::string& token) = 0;
  /// For an identity whose keys are held here. `valid_for` up to 24 hours.
  virtual Result<std::string> issue_token(const Context& ctx, const Identity& identity, Nanos valid_for) = 0;

  // --- delegation
  /// Errors: permission_denied where it would widen its parent, or the caller is not the delegator; signature_invalid;
  /// expired; conflict where `id` exists with other content.
  virtual Result<Delegation> create_delegation(const Context& ctx, const NewDelegation& delegation) = 0;
  /// How `identity` comes to act: by its newest valid delegation that leads back to its owner, or by `leaf`.
  /// Errors: permission_denied where no valid chain exists.
  virtual Result<Chain> get_delegation_chain(const Context& ctx, const Identity& identity,
                                             const std::optional<DelegationId>& leaf = std::nullopt) = 0;
  /// How `identity` came to act at `when`, by its newest delegation from its owner that was valid then, else by the
  /// last one that was; also where it, or anybody in the chain, has ended since. For facts that are told later (whose
  /// use that was), never for decisions. Errors: permission_denied where there never was a chain.
  virtual Result<PastChain> get_past_delegation_chain(const Context& ctx, const Identity& identity, Instant when) = 0;
  /// That every signature, bound, depth, expiry and status holds now. Errors: signature_invalid, expired,
  /// permission_denied.
  virtual Result<> verify_delegation(const Context& ctx, const Chain& chain) = 0;
  /// By the delegator or somebody above him. Idempotent.
  virtual Result<> revoke_delegation(const Context& ctx, const DelegationId& id) = 0;

  // --- keys
  /// The newest set.
  virtual Result<PublicKeys> get_public_keys(const Context& ctx, const Identity& identity) = 0;
  /// All that there ever were, newest first; they hold together as `check_succession` says.
  virtual Result<std::vector<PublicKeys>> key_sets(const Context& ctx, const Identity& identity) = 0;
  /// A new set, which signs from now on and is what others encrypt to; what was encrypted to the sets before still
  /// opens. A human's is signed by the set before it, and asked for by himself. Repeating with the same idempotency
  /// key, or the same `next`, returns the set that is there.
  /// Errors: permission_denied; invalid_input (`next` for a human, and only for him; `overlap`); signature_invalid;
  /// conflict where somebody else rotated at the same time, or `next` was in use before; resource_exhausted after 256
  /// sets.
  virtual Result<PublicKeys> rotate_keys(const Context& ctx, const Identity& identity, const KeyRotation& rotation) = 0;
  /// In the name of an agent or service: hybrid, over `data` under `context` (at most 255 bytes; it names the use). The
  /// caller is the identity itself or a service. Errors: permission_denied; too_large over 4 MiB.
  /// An identity that may not act any more signs nothing, but for events: what it used is told by the service that saw
  /// it. Tokens and delegations are not signed by it: they have calls of their own.
  virtual Result<Signature> sign(const Context& ctx, const Identity& identity, BytesView data,
                                 std::string_view context = {}) = 0;
  /// Under any key set of the identity that is in force. Errors: signature_invalid, unsupported_algorithm.
  virtual Result<> verify(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                          std::string_view context = {}) = 0;
  /// For facts that are told later: under any that had not ended at `when`; where all had, under any there ever was. A
  /// compromised set counts only where the fact was there at `told`, before it was known to be (none: it comes now).
  virtual Result<> verify_past(const Context& ctx, const Identity& identity, BytesView data, const Signature& signature,
                               std::string_view context, Instant when, std::optional<Instant> told = std::nullopt) = 0;
  /// The secret that `ciphertext` (x-wing) holds for the key set `key_id`. In process only. The caller is the identity
  /// or a service; only a service's may be of an identity that has ended.
  virtual Result<Secret> decapsulate(const Context& ctx, const Identity& identity, std::string_view key_id,
                                     BytesView ciphertext) = 0;

  // --- key bundles for messaging
  /// Signed by the newest key set; what an earlier one signed is no longer given out. Errors: signature_invalid;
  /// permission_denied unless the caller is the identity or a service.
  virtual Result<PrekeyCount> publish_key_bundle(const Context& ctx, const Identity& identity,
                                                 const KeyBundleUpload& bundle) = 0;
  /// Uses up one one-time prekey of each kind: no two callers get the same. Errors: not_found where none was published
  /// under a key set that is in force.
  virtual Result<KeyBundle> take_key_bundle(const Context& ctx, const Identity& identity) = 0;
  /// Of those that the newest key set vouches for.
  virtual Result<PrekeyCount> prekey_count(const Context& ctx, const Identity& identity) = 0;

  /// Forgets what another process has changed since. Errors: unavailable; then it is noticed after `cache_ttl`.
  virtual Result<> refresh(const Context& ctx) = 0;

  virtual HealthStatus health() = 0;
};

struct NhiOptions {
  Nanos agent_valid_for = std::chrono::days(365);
  Nanos cache_ttl = std::chrono::seconds(60);  ///< how long another process' change may go unseen without `refresh`
  std::size_t cache_entries = 10'000;
  Nanos clock_skew = std::chrono::minutes(5);  ///< tolerated in what others sign
};

/// The service over its tables in `database`; migrates them. Raises the database's signal "nhi.changed" after each
/// change of an identity, a delegation or a key. All references must outlive it.
Result<std::unique_ptr<Nhi>> create_nhi(sql::Database& database, crypto::KeySealer& sealer, const Clock& clock,
                                        NhiOptions options = {});

/// A token signed on the holder's own side, for humans.
Result<std::string> make_token(const crypto::SigningKey& key, const Identity& identity, std::string_view org,
                               Instant now, Nanos valid_for);

}  // namespace creto::nhi
