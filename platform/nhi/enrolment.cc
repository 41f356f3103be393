#include "creto/nhi/enrolment.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/common/json.h"
#include "creto/common/names.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "delegation.h"
#include "store.h"

namespace creto::nhi {
namespace {

using std::chrono::days;
using std::chrono::minutes;

constexpr std::size_t secret_size = 32;
constexpr Nanos valid_for_min = minutes(1);
constexpr Nanos valid_for_max = days(30);
constexpr Nanos remembered = days(90);

constexpr auto states = std::to_array<Named<InvitationState>>({{InvitationState::open, "open"},
                                                               {InvitationState::used, "used"},
                                                               {InvitationState::withdrawn, "withdrawn"},
                                                               {InvitationState::expired, "expired"}});

std::string hash_text(std::string_view text) { return hex(BytesView(crypto::sha3_256(as_bytes(text)))); }

/// The same words for whatever is wrong with a secret: who guesses learns nothing.
Error opens_nothing() {
  return refuse(ErrorKind::unauthenticated, "invitation: is not known, has ended or was used; ask for another one");
}

audit::AuditRecord record_of(const Context& ctx, std::string what, const Identity& human, std::string_view invitation) {
  audit::AuditRecord record = audit::AuditRecord::of(ctx, std::move(what), "nhi:agent:" + human.text());
  if (!invitation.empty()) record.metadata = Json{{"invitation", invitation}}.dump();
  return record;
}

/// For what is done in somebody's name who is not on the line.
Context in_the_name_of(const Context& ctx, const std::string& org, const Identity& who) {
  Context out = ctx;
  out.org = org;
  out.caller = who;
  out.chain = {who};
  return out;
}

class EnrolmentService final : public Enrolment {
 public:
  EnrolmentService(sql::Database& database, Nhi& nhi, Certifier& certifier, const Clock& clock, NhiOptions options)
      : database_(database), nhi_(nhi), certifier_(certifier), clock_(clock), options_(std::move(options)) {}

  Result<IssuedInvitation> invite(const Context& ctx, const Identity& human, Nanos valid_for) override {
    if (human.kind() != Identity::Kind::human)
      return refuse(ErrorKind::invalid_input, "`human` must be a human's identity");
    if (valid_for < valid_for_min || valid_for > valid_for_max)
      return refuse(ErrorKind::invalid_input, "`valid_for` must be 1 minute to 30 days");
    if (!ctx.caller) return refuse(ErrorKind::unauthenticated, "nobody is inviting");
    const bool registered = CRETO_TRY(nhi_.is_registered(ctx, human));
    if (registered) return refuse(ErrorKind::already_exists, fmt::format("`{}` is registered", human.text()));
    std::string authority = CRETO_TRY(certifier_.authority());

    Secret secret = crypto::random_secret(secret_size);
    const Hash256 hash = crypto::sha3_256(secret.reveal());
    const Instant now = clock_.now();
    Invitation made{store::invitation_id(hash), human, *ctx.caller, now, now + valid_for};
    CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(store::forget_invitations(tx, ctx.org, now - remembered));
      CRETO_TRY(store::insert_invitation(tx, ctx.org, made, hash));
      CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "human_invited", human, made.id)));
      return {};
    }));
    return IssuedInvitation{std::move(made), std::move(secret), std::move(authority)};
  }

  Result<std::vector<Invitation>> invitations(const Context& ctx) override {
    auto stored = CRETO_TRY(sql::read(
        database_, ctx, [&](sql::Tx& tx) { return store::list_invitations(tx, ctx.org, clock_.now() - remembered); }));
    std::vector<Invitation> out;
    for (store::StoredInvitation& one : stored) out.push_back(seen_now(std::move(one.invitation)));
    return out;
  }

  Result<Invitation> withdraw(const Context& ctx, std::string_view id) override {
    return sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<Invitation> {
      auto found = CRETO_TRY(store::find_invitation(tx, ctx.org, id));
      if (!found) return refuse(ErrorKind::not_found, fmt::format("there is no invitation `{}`", id.substr(0, 64)));
      Invitation& invitation = found->invitation;
      if (invitation.state == InvitationState::used)
        return refuse(ErrorKind::conflict, fmt::format("invitation `{}`: was used; revoke `{}` instead", invitation.id,
                                                       invitation.human.text()));
      if (invitation.state == InvitationState::withdrawn) return std::move(invitation);
      invitation.state = InvitationState::withdrawn;
      const bool ended = CRETO_TRY(store::end_invitation(tx, ctx.org, invitation, {}));
      if (!ended) return refuse(ErrorKind::conflict, fmt::format("invitation `{}`: was just used", invitation.id));
      CRETO_TRY(audit::record(tx, ctx, record_of(ctx, "invitation_withdrawn", invitation.human, invitation.id)));
      return std::move(invitation);
    });
  }

  Result<Joined> join(const Context& ctx, const Joining& joining) override {
    const Hash256 hash = crypto::sha3_256(joining.secret.reveal());
    Context own = ctx;
    own.org = joining.org;
    // Cheap first: without a secret that opens something there is nothing to verify.
    const auto looked_up =
        CRETO_TRY(sql::read(database_, own, [&](sql::Tx& tx) { return open_for(tx, own.org, hash, {}); }));
    const std::string bytes = CRETO_TRY(join_signed_bytes(joining.org, joining.secret, joining.certificate_request));
    if (!joining.signing.verify(as_bytes(bytes), joining.signature, as_bytes(join_context)))
      return refuse(ErrorKind::signature_invalid, "`signature`: is not the signing key's over this request");
    const Identity& human = looked_up.human;
    const Context inviter = in_the_name_of(ctx, joining.org, looked_up.invited_by);
    const bool may_not_act = CRETO_TRY(nhi_.is_revoked(inviter, looked_up.invited_by));
    if (may_not_act) return opens_nothing();

    // Before anything is certain: a bad request must not use the invitation up.
    const std::string key_id = key_id_of(joining.signing, joining.kem);
    std::string certificate = CRETO_TRY(certifier_.certify(human, key_id, joining.certificate_request));
    // Whoever comes first with keys has the invitation; registering may be repeated, with these.
    CRETO_TRY(sql::write(database_, own, [&](sql::Tx& tx) -> Result<> {
      Invitation invitation = CRETO_TRY(open_for(tx, own.org, hash, key_id));
      if (invitation.state == InvitationState::used) return {};
      invitation.state = InvitationState::used;
      const bool first = CRETO_TRY(store::end_invitation(tx, own.org, invitation, key_id));
      if (!first) return opens_nothing();
      CRETO_TRY(audit::record(tx, inviter, record_of(inviter, "human_joined", human, invitation.id)));
      return {};
    }));
    Agent agent = CRETO_TRY(nhi_.register_human(inviter, human, joining.name, joining.signing, joining.kem));
    return Joined{std::move(agent), std::move(certificate)};
  }

  Result<std::string> renew_certificate(const Context& ctx, const CertificateRenewal& renewal) override {
    if (renewal.human.kind() != Identity::Kind::human)
      return refuse(ErrorKind::invalid_input, "`human` must be a human's identity");
    const Instant now = clock_.now();
    if (renewal.signed_at > now + options_.clock_skew || renewal.signed_at < now - options_.clock_skew)
      return refuse(ErrorKind::expired, "`signed_at` must be within five minutes of the server's clock");
    const Context own = in_the_name_of(ctx, renewal.org, renewal.human);
    const bool may_not_act = CRETO_TRY(nhi_.is_revoked(own, renewal.human));
    if (may_not_act)
      return refuse(ErrorKind::unauthenticated,
                    fmt::format("`{}` may not act: unknown, suspended, expired or revoked", renewal.human.text()));
    const std::string bytes =
        CRETO_TRY(renewal_signed_bytes(renewal.org, renewal.human, renewal.certificate_request, renewal.signed_at));
    CRETO_TRY(nhi_.verify(own, renewal.human, as_bytes(bytes), renewal.signature, certificate_context));
    const PublicKeys keys = CRETO_TRY(nhi_.get_public_keys(own, renewal.human));
    std::string certificate = CRETO_TRY(certifier_.certify(renewal.human, keys.key_id, renewal.certificate_request));
    CRETO_TRY(sql::write(database_, own, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(audit::record(tx, own, record_of(own, "certificate_renewed", renewal.human, {})));
      return {};
    }));
    return certificate;
  }

 private:
  Invitation seen_now(Invitation invitation) const {
    if (invitation.state == InvitationState::open && invitation.expires_at <= clock_.now())
      invitation.state = InvitationState::expired;
    return invitation;
  }

  /// What the secret opens: an open invitation, or one that was used with the keys `key_id`; with no `key_id` with any.
  Result<Invitation> open_for(sql::Tx& tx, const std::string& org, const Hash256& hash, std::string_view key_id) const {
    auto found = CRETO_TRY(store::find_invitation(tx, org, store::invitation_id(hash)));
    if (!found || !equal_constant_time(found->hash, BytesView(hash))) return opens_nothing();
    const Invitation& invitation = found->invitation;
    const bool used = invitation.state == InvitationState::used && (key_id.empty() || found->key_id == key_id);
    if ((invitation.state != InvitationState::open && !used) || invitation.expires_at <= clock_.now())
      return opens_nothing();
    return invitation;
  }

  sql::Database& database_;
  Nhi& nhi_;
  Certifier& certifier_;
  const Clock& clock_;
  const NhiOptions options_;
};

}  // namespace

std::string_view to_string(InvitationState state) { return name_of(states, state); }
Result<InvitationState> invitation_state_from_string(std::string_view text) {
  return value_of(states, text, "state", Product::platform);
}

Result<std::string> join_signed_bytes(std::string_view org, const Secret& secret,
                                      std::string_view certificate_request) {
  const Json json = {{"schema_version", 1},
                     {"org", org},
                     {"invitation", hex(BytesView(crypto::sha3_256(secret.reveal())))},
                     {"certificate_request", hash_text(certificate_request)}};
  const std::string canonical = CRETO_TRY(canonical_json(json));
  return "creto.join\n" + canonical;
}

Result<std::string> renewal_signed_bytes(std::string_view org, const Identity& human,
                                         std::string_view certificate_request, Instant signed_at) {
  const Json json = {{"schema_version", 1},
                     {"org", org},
                     {"human", human.text()},
                     {"certificate_request", hash_text(certificate_request)},
                     {"signed_at", std::to_string(unix_ns(signed_at))}};
  const std::string canonical = CRETO_TRY(canonical_json(json));
  return "creto.certificate\n" + canonical;
}

Result<std::unique_ptr<Enrolment>> create_enrolment(sql::Database& database, Nhi& nhi, Certifier& certifier,
                                                    const Clock& clock, NhiOptions options) {
  CRETO_TRY(store::migrate(database));
  CRETO_TRY(audit::prepare(database));
  return std::unique_ptr<Enrolment>(
      std::make_unique<EnrolmentService>(database, nhi, certifier, clock, std::move(options)));
}

}  // namespace creto::nhi
