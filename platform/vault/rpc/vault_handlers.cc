#include "creto/io/rpc.h"
#include "creto/vault/vault_rpc.h"
#include "rpc/convert.h"

namespace creto::vault {
namespace {

Result<Nanos> ttl_of(bool given, const google::protobuf::Duration& ttl) {
  if (!given) return Nanos(std::chrono::hours(1));
  return proto::from_duration(ttl, "ttl");
}

std::size_t limit_of(std::uint32_t limit) { return limit == 0 ? 100 : limit; }

std::vector<SecretRef> refs_of(const google::protobuf::RepeatedPtrField<v1::SecretRef>& refs) {
  std::vector<SecretRef> out;
  for (const auto& ref : refs) out.push_back(from_proto(ref));
  return out;
}

template <class Out, class In>
Out as_proto(const In& in) {
  Out out;
  to_proto(in, out);
  return out;
}

}  // namespace

// Who may touch which secret is decided by the vault itself, per secret: the dispatcher only asks who is calling.
void register_vault(rpc::Dispatcher& dispatcher, Vault& vault) {
  auto service = dispatcher.service("creto.vault.v1.VaultService");
  constexpr auto own = rpc::Access::authenticated;

  service.unary<v1::CreateSecretRequest, v1::SecretInfo>(
      "CreateSecret", {.access = own},
      [&vault](const Context& ctx, const v1::CreateSecretRequest& r) -> Result<v1::SecretInfo> {
        auto metadata = CRETO_TRY(from_proto(r.metadata()));
        const auto expires_at = CRETO_TRY(expiry_of(r));
        const auto made = CRETO_TRY(vault.create_secret(
            ctx, NewSecret{from_proto(r.reference()), Secret::copy_of(r.value()), std::move(metadata), expires_at}));
        return as_proto<v1::SecretInfo>(made);
      });
  service.unary<v1::GetSecretRequest, v1::Secret>(
      "GetSecret", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::GetSecretRequest& r) -> Result<v1::Secret> {
        const auto got = CRETO_TRY(vault.get_secret(ctx, from_proto(r.reference()), r.version()));
        return as_proto<v1::Secret>(got);
      });
  service.unary<v1::GetSecretsRequest, v1::GetSecretsResponse>(
      "GetSecrets", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::GetSecretsRequest& r) -> Result<v1::GetSecretsResponse> {
        const auto got = CRETO_TRY(vault.get_secrets(ctx, refs_of(r.references())));
        v1::GetSecretsResponse response;
        for (const auto& one : got) to_proto(one, *response.add_secrets());
        return response;
      });
  service.unary<v1::ListSecretsRequest, v1::ListSecretsResponse>(
      "ListSecrets", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::ListSecretsRequest& r) -> Result<v1::ListSecretsResponse> {
        const auto found = CRETO_TRY(vault.list_secrets(ctx, r.path_prefix(), r.after(), limit_of(r.limit())));
        v1::ListSecretsResponse response;
        for (const auto& one : found) to_proto(one, *response.add_secrets());
        return response;
      });
  service.unary<v1::UpdateSecretRequest, v1::SecretInfo>(
      "UpdateSecret", {.access = own},
      [&vault](const Context& ctx, const v1::UpdateSecretRequest& r) -> Result<v1::SecretInfo> {
        SecretUpdate update;
        update.ref = from_proto(r.reference());
        update.value = Secret::copy_of(r.value());
        if (r.has_metadata()) update.metadata = CRETO_TRY(from_proto(r.metadata()));
        update.expires_at = CRETO_TRY(expiry_of(r));
        update.expected_version = r.expected_version();
        const auto made = CRETO_TRY(vault.update_secret(ctx, std::move(update)));
        return as_proto<v1::SecretInfo>(made);
      });
  service.unary<v1::DeleteSecretRequest, v1::DeleteSecretResponse>(
      "DeleteSecret", {.access = own},
      [&vault](const Context& ctx, const v1::DeleteSecretRequest& r) -> Result<v1::DeleteSecretResponse> {
        CRETO_TRY(vault.delete_secret(ctx, from_proto(r.reference())));
        return v1::DeleteSecretResponse();
      });
  service.unary<v1::CreateDelegationRequest, v1::Delegation>(
      "CreateDelegation", {.access = own},
      [&vault](const Context& ctx, const v1::CreateDelegationRequest& r) -> Result<v1::Delegation> {
        auto delegatee = CRETO_TRY(Identity::parse(r.delegatee()));
        const auto ttl = CRETO_TRY(ttl_of(r.has_ttl(), r.ttl()));
        DelegationRestrictions restrictions;
        if (r.has_restrictions()) restrictions = CRETO_TRY(from_proto(r.restrictions()));
        const auto made = CRETO_TRY(vault.create_delegation(
            ctx, DelegationRequest{std::move(delegatee), refs_of(r.secrets()), ttl, restrictions}));
        return as_proto<v1::Delegation>(made);
      });
  service.unary<v1::UseDelegationRequest, v1::DelegatedSecrets>(
      "UseDelegation", {.access = own},
      [&vault](const Context& ctx, const v1::UseDelegationRequest& r) -> Result<v1::DelegatedSecrets> {
        const auto id = CRETO_TRY(SecretDelegationId::parse(r.id()));
        std::optional<SandboxId> sandbox;
        if (!r.sandbox_id().empty()) sandbox = CRETO_TRY(SandboxId::parse(r.sandbox_id()));
        const auto used = CRETO_TRY(vault.use_delegation(ctx, id, sandbox));
        return as_proto<v1::DelegatedSecrets>(used);
      });
  service.unary<v1::GetDelegatedSecretsRequest, v1::DelegatedSecrets>(
      "GetDelegatedSecrets", {.access = own},
      [&vault](const Context& ctx, const v1::GetDelegatedSecretsRequest& r) -> Result<v1::DelegatedSecrets> {
        const auto sandbox = CRETO_TRY(SandboxId::parse(r.sandbox_id()));
        const auto ttl = CRETO_TRY(ttl_of(r.has_ttl(), r.ttl()));
        const auto given = CRETO_TRY(vault.get_delegated_secrets(ctx, sandbox, refs_of(r.references()), ttl));
        return as_proto<v1::DelegatedSecrets>(given);
      });
  service.unary<v1::RevokeDelegationRequest, v1::Delegation>(
      "RevokeDelegation", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::RevokeDelegationRequest& r) -> Result<v1::Delegation> {
        const auto id = CRETO_TRY(SecretDelegationId::parse(r.id()));
        const auto revoked = CRETO_TRY(vault.revoke_delegation(ctx, id));
        return as_proto<v1::Delegation>(revoked);
      });
  service.unary<v1::GetDelegationRequest, v1::Delegation>(
      "GetDelegation", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::GetDelegationRequest& r) -> Result<v1::Delegation> {
        const auto id = CRETO_TRY(SecretDelegationId::parse(r.id()));
        const auto found = CRETO_TRY(vault.get_delegation(ctx, id));
        return as_proto<v1::Delegation>(found);
      });
  service.unary<v1::GetAccessLogRequest, v1::GetAccessLogResponse>(
      "GetAccessLog", {.access = own, .idempotent = true},
      [&vault](const Context& ctx, const v1::GetAccessLogRequest& r) -> Result<v1::GetAccessLogResponse> {
        const auto entries =
            CRETO_TRY(vault.access_log(ctx, SecretRef{r.path(), r.name()}, r.before(), limit_of(r.limit())));
        v1::GetAccessLogResponse response;
        for (const auto& one : entries) to_proto(one, *response.add_entries());
        return response;
      });
}

}  // namespace creto::vault
