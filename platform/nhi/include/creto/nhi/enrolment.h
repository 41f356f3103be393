#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "creto/nhi/nhi.h"

/// How humans come in: somebody who may invites them, they make their keys on their own side, and the server registers
/// these and certifies their client key (docs/formats.md, "Invitation").
namespace creto::nhi {

inline constexpr std::string_view join_context = "creto.join";
inline constexpr std::string_view certificate_context = "creto.certificate";

enum class InvitationState : std::uint8_t { open, used, withdrawn, expired };
std::string_view to_string(InvitationState state);
Result<InvitationState> invitation_state_from_string(std::string_view text);

struct Invitation {
  std::string id;  ///< 16 hex digits: names it, opens nothing
  Identity human;
  Identity invited_by;
  Instant created_at{};
  Instant expires_at{};
  InvitationState state = InvitationState::open;

  friend bool operator==(const Invitation&, const Invitation&) = default;
};

struct IssuedInvitation {
  Invitation invitation;
  Secret secret;          ///< 32 bytes: whoever has them joins as `human`; kept nowhere here
  std::string authority;  ///< PEM: whom the server's certificate is by
};

/// Who joins, and that the keys are his: `signature` is the new signing key's over `join_signed_bytes`.
struct Joining {
  std::string org;
  Secret secret;
  std::string name;  ///< as of `Nhi::register_human`
  crypto::VerifyingKey signing;
  crypto::KemPublicKey kem;
  std::string certificate_request;  ///< PKCS #10, PEM
  Signature signature;
};
struct Joined {
  Agent human;
  std::string certificate;  ///< PEM
};

struct CertificateRenewal {
  std::string org;
  Identity human;
  std::string certificate_request;
  Instant signed_at{};  ///< within `NhiOptions::clock_skew` of the server's clock
  Signature signature;  ///< over `renewal_signed_bytes`
};

Result<std::string> join_signed_bytes(std::string_view org, const Secret& secret, std::string_view certificate_request);
Result<std::string> renewal_signed_bytes(std::string_view org, const Identity& human,
                                         std::string_view certificate_request, Instant signed_at);

/// Who signs certificates. Thread-safe.
class Certifier {
 public:
  virtual ~Certifier() = default;
  /// A client certificate over the key in `request` (PKCS #10, PEM) that names `identity` and stands and falls with its
  /// key set `key_id`. Errors: invalid_input for a bad request.
  virtual Result<std::string> certify(const Identity& identity, std::string_view key_id, std::string_view request) = 0;
  /// PEM.
  virtual Result<std::string> authority() = 0;
};

/// Thread-safe. Every change is audited in its transaction.
///
/// Invariant: an invitation makes one human, with one set of keys.
class Enrolment {
 public:
  virtual ~Enrolment() = default;

  /// `valid_for`: 1 minute to 30 days. Errors: already_exists where the human is registered; invalid_input.
  virtual Result<IssuedInvitation> invite(const Context& ctx, const Identity& human, Nanos valid_for) = 0;
  /// Newest first, at most 1 000; what ended or was used more than 90 days ago is forgotten.
  virtual Result<std::vector<Invitation>> invitations(const Context& ctx) = 0;
  /// Idempotent. Errors: not_found; conflict where it was used.
  virtual Result<Invitation> withdraw(const Context& ctx, std::string_view id) = 0;

  /// Nobody need be `ctx.caller`, nor be known. Repeating it with the same keys, as after a broken connection,
  /// certifies again, until the invitation's end. Errors: unauthenticated where the secret opens no invitation, or one
  /// that ended, was withdrawn, was used with other keys, or whose inviter may not act any more; signature_invalid;
  /// invalid_input; already_exists.
  virtual Result<Joined> join(const Context& ctx, const Joining& joining) = 0;
  /// Nobody need be `ctx.caller`. The certificate is bound to the newest key set. Errors: unauthenticated for a human
  /// who may not act; signature_invalid; expired for a `signed_at` off the server's clock; invalid_input.
  virtual Result<std::string> renew_certificate(const Context& ctx, const CertificateRenewal& renewal) = 0;
};

/// Over the tables of `create_nhi` in `database`. All references must outlive it.
Result<std::unique_ptr<Enrolment>> create_enrolment(sql::Database& database, Nhi& nhi, Certifier& certifier,
                                                    const Clock& clock, NhiOptions options = {});

}  // namespace creto::nhi
