#include "creto/nhi/enrolment.h"

#include <algorithm>

#include "creto/io/proto.h"
#include "creto/io/rpc.h"
#include "creto/io/rpc_channel.h"
#include "creto/nhi/nhi_rpc.h"
#include "creto/nhi/v1/enrolment.pb.h"
#include "rpc/convert.h"

namespace creto::nhi {
namespace {

constexpr std::size_t join_bytes_max = 64 << 10;  // some 6 KiB are needed

void to_proto(const Invitation& invitation, v1::Invitation& out) {
  out.set_id(invitation.id);
  out.set_human(invitation.human.text());
  out.set_invited_by(invitation.invited_by.text());
  proto::set_time(out.mutable_created_at(), invitation.created_at);
  proto::set_time(out.mutable_expires_at(), invitation.expires_at);
  out.set_state(std::string(to_string(invitation.state)));
}

Result<Invitation> invitation_from(const v1::Invitation& invitation) {
  auto human = CRETO_TRY(proto::from_identity(invitation.human(), "human"));
  auto invited_by = CRETO_TRY(proto::from_identity(invitation.invited_by(), "invited_by"));
  auto created_at = CRETO_TRY(proto::from_time(invitation.created_at(), "created_at"));
  auto expires_at = CRETO_TRY(proto::from_time(invitation.expires_at(), "expires_at"));
  auto state = CRETO_TRY(invitation_state_from_string(invitation.state()));
  return Invitation{invitation.id(), std::move(human), std::move(invited_by), created_at, expires_at, state};
}

/// Leaves no copy of the secret in the message.
Secret taken(std::string& bytes) {
  Secret secret = Secret::copy_of(std::string_view(bytes));
  wipe(bytes.data(), bytes.size());
  return secret;
}

void to_proto(const Joining& joining, v1::JoinRequest& out) {
  out.set_org(joining.org);
  out.set_secret(std::string(joining.secret.reveal_text()));
  out.set_name(joining.name);
  out.set_signing_algorithm(std::string(crypto::to_string(joining.signing.algorithm())));
  out.set_signing_key(proto::to_text(joining.signing.bytes()));
  out.set_kem_algorithm(std::string(crypto::to_string(joining.kem.algorithm())));
  out.set_kem_key(proto::to_text(joining.kem.bytes()));
  out.set_certificate_request(joining.certificate_request);
  proto::set_signature(out.mutable_signature(), joining.signature);
}

Result<Joining> joining_from(v1::JoinRequest& request) {
  auto algorithm = CRETO_TRY(crypto::parse_signature_algorithm(request.signing_algorithm()));
  auto signing = CRETO_TRY(crypto::VerifyingKey::parse(algorithm, as_bytes(request.signing_key())));
  auto kem_algorithm = CRETO_TRY(crypto::parse_kem_algorithm(request.kem_algorithm()));
  auto kem = CRETO_TRY(crypto::KemPublicKey::parse(kem_algorithm, as_bytes(request.kem_key())));
  return Joining{request.org(),
                 taken(*request.mutable_secret()),
                 request.name(),
                 std::move(signing),
                 std::move(kem),
                 request.certificate_request(),
                 proto::from_signature(request.signature())};
}

class EnrolmentClient final : public Enrolment {
 public:
  explicit EnrolmentClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<IssuedInvitation> invite(const Context& ctx, const Identity& human, Nanos valid_for) override {
    v1::InviteHumanRequest request;
    request.set_human(human.text());
    proto::set_duration(request.mutable_valid_for(), valid_for);
    auto response = CRETO_TRY(call<v1::InviteHumanResponse>(ctx, "InviteHuman", request));
    auto invitation = CRETO_TRY(invitation_from(response.invitation()));
    return IssuedInvitation{std::move(invitation), taken(*response.mutable_secret()), response.authority()};
  }
  Result<std::vector<Invitation>> invitations(const Context& ctx) override {
    auto response = CRETO_TRY(
        call<v1::ListInvitationsResponse>(ctx, "ListInvitations", v1::ListInvitationsRequest(), {.idempotent = true}));
    std::vector<Invitation> out;
    for (const v1::Invitation& one : response.invitations()) {
      auto invitation = CRETO_TRY(invitation_from(one));
      out.push_back(std::move(invitation));
    }
    return out;
  }
  Result<Invitation> withdraw(const Context& ctx, std::string_view id) override {
    v1::WithdrawInvitationRequest request;
    request.set_id(std::string(id));
    auto response = CRETO_TRY(call<v1::Invitation>(ctx, "WithdrawInvitation", request, {.idempotent = true}));
    return invitation_from(response);
  }
  Result<Joined> join(const Context& ctx, const Joining& joining) override {
    v1::JoinRequest request;
    to_proto(joining, request);
    auto response = call<v1::JoinResponse>(ctx, "Join", request, {.idempotent = true});
    wipe(request.mutable_secret()->data(), request.secret().size());
    if (!response) return std::move(response).error();
    auto human = CRETO_TRY(from_proto(response->human()));
    return Joined{std::move(human), response->certificate()};
  }
  Result<std::string> renew_certificate(const Context& ctx, const CertificateRenewal& renewal) override {
    v1::RenewCertificateRequest request;
    request.set_org(renewal.org);
    request.set_human(renewal.human.text());
    request.set_certificate_request(renewal.certificate_request);
    proto::set_time(request.mutable_signed_at(), renewal.signed_at);
    proto::set_signature(request.mutable_signature(), renewal.signature);
    auto response =
        CRETO_TRY(call<v1::RenewCertificateResponse>(ctx, "RenewCertificate", request, {.idempotent = true}));
    return response.certificate();
  }

 private:
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.nhi.v1.EnrolmentService/" + std::string(method), request, options);
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

void register_enrolment(rpc::Dispatcher& dispatcher, Enrolment& enrolment) {
  auto service = dispatcher.service("creto.nhi.v1.EnrolmentService");
  using enum rpc::Access;

  service.unary<v1::InviteHumanRequest, v1::InviteHumanResponse>(
      "InviteHuman", {.resource = [](const v1::InviteHumanRequest& r) { return rpc::Resource{"Human", r.human()}; }},
      [&enrolment](const Context& ctx, const v1::InviteHumanRequest& request) -> Result<v1::InviteHumanResponse> {
        auto human = CRETO_TRY(proto::from_identity(request.human(), "human"));
        Nanos valid_for = std::chrono::days(1);
        if (request.has_valid_for()) valid_for = CRETO_TRY(proto::from_duration(request.valid_for(), "valid_for"));
        auto issued = CRETO_TRY(enrolment.invite(ctx, human, valid_for));
        v1::InviteHumanResponse response;
        to_proto(issued.invitation, *response.mutable_invitation());
        response.set_secret(std::string(issued.secret.reveal_text()));
        response.set_authority(issued.authority);
        return response;
      });
  service.unary<v1::ListInvitationsRequest, v1::ListInvitationsResponse>(
      "ListInvitations", {.idempotent = true},
      [&enrolment](const Context& ctx, const v1::ListInvitationsRequest&) -> Result<v1::ListInvitationsResponse> {
        auto all = CRETO_TRY(enrolment.invitations(ctx));
        v1::ListInvitationsResponse response;
        for (const Invitation& one : all) to_proto(one, *response.add_invitations());
        return response;
      });
  service.unary<v1::WithdrawInvitationRequest, v1::Invitation>(
      "WithdrawInvitation", {.idempotent = true},
      [&enrolment](const Context& ctx, const v1::WithdrawInvitationRequest& request) -> Result<v1::Invitation> {
        auto ended = CRETO_TRY(enrolment.withdraw(ctx, request.id()));
        v1::Invitation response;
        to_proto(ended, response);
        return response;
      });
  service.unary<v1::JoinRequest, v1::JoinResponse>(
      "Join", {.access = anonymous, .idempotent = true, .request_bytes_max = join_bytes_max},
      [&enrolment](const Context& ctx, v1::JoinRequest& request) -> Result<v1::JoinResponse> {
        auto joining = CRETO_TRY(joining_from(request));
        auto joined = CRETO_TRY(enrolment.join(ctx, joining));
        v1::JoinResponse response;
        to_proto(joined.human, *response.mutable_human());
        response.set_certificate(joined.certificate);
        return response;
      });
  service.unary<v1::RenewCertificateRequest, v1::RenewCertificateResponse>(
      "RenewCertificate", {.access = anonymous, .idempotent = true, .request_bytes_max = join_bytes_max},
      [&enrolment](const Context& ctx,
                   const v1::RenewCertificateRequest& request) -> Result<v1::RenewCertificateResponse> {
        auto human = CRETO_TRY(proto::from_identity(request.human(), "human"));
        auto signed_at = CRETO_TRY(proto::from_time(request.signed_at(), "signed_at"));
        auto certificate =
            CRETO_TRY(enrolment.renew_certificate(ctx, {.org = request.org(),
                                                        .human = std::move(human),
                                                        .certificate_request = request.certificate_request(),
                                                        .signed_at = signed_at,
                                                        .signature = proto::from_signature(request.signature())}));
        v1::RenewCertificateResponse response;
        response.set_certificate(certificate);
        return response;
      });
}

std::unique_ptr<Enrolment> create_enrolment_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<EnrolmentClient>(std::move(channel));
}

}  // namespace creto::nhi
