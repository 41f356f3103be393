#include <algorithm>

#include "creto/io/rpc_channel.h"
#include "creto/vault/vault_rpc.h"
#include "rpc/convert.h"

namespace creto::vault {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class VaultClient final : public Vault {
 public:
  explicit VaultClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<SecretInfo> create_secret(const Context& ctx, NewSecret secret) override {
    v1::CreateSecretRequest request;
    to_proto(secret.ref, *request.mutable_reference());
    request.set_value(std::string(secret.value.reveal_text()));
    to_proto(secret.metadata, *request.mutable_metadata());
    if (secret.expires_at) proto::set_time(request.mutable_expires_at(), *secret.expires_at);
    const auto made = CRETO_TRY((call<v1::SecretInfo>(ctx, "CreateSecret", request)));
    return from_proto(made);
  }

  Result<SecretVersion> get_secret(const Context& ctx, const SecretRef& ref, std::uint64_t version) override {
    v1::GetSecretRequest request;
    to_proto(ref, *request.mutable_reference());
    request.set_version(version);
    const auto got = CRETO_TRY((call<v1::Secret>(ctx, "GetSecret", request, repeatable)));
    return from_proto(got);
  }

  Result<std::vector<SecretVersion>> get_secrets(const Context& ctx, const std::vector<SecretRef>& refs) override {
    v1::GetSecretsRequest request;
    for (const auto& ref : refs) to_proto(ref, *request.add_references());
    const auto got = CRETO_TRY((call<v1::GetSecretsResponse>(ctx, "GetSecrets", request, repeatable)));
    return all<SecretVersion>(got.secrets());
  }

  Result<std::vector<SecretInfo>> list_secrets(const Context& ctx, std::string_view path_prefix, std::string_view after,
                                               std::size_t limit) override {
    if (limit == 0 || limit > 1000)
      return Error(Product::platform, ErrorKind::invalid_input, "`limit` must be 1 to 1000");
    v1::ListSecretsRequest request;
    request.set_path_prefix(std::string(path_prefix));
    request.set_after(std::string(after));
    request.set_limit(static_cast<std::uint32_t>(limit));
    const auto found = CRETO_TRY((call<v1::ListSecretsResponse>(ctx, "ListSecrets", request, repeatable)));
    return all<SecretInfo>(found.secrets());
  }

  Result<SecretInfo> update_secret(const Context& ctx, SecretUpdate update) override {
    v1::UpdateSecretRequest request;
    to_proto(update.ref, *request.mutable_reference());
    request.set_value(std::string(update.value.reveal_text()));
    if (update.metadata) to_proto(*update.metadata, *request.mutable_metadata());
    if (update.expires_at) proto::set_time(request.mutable_expires_at(), *update.expires_at);
    request.set_expected_version(update.expected_version);
    const auto made = CRETO_TRY((call<v1::SecretInfo>(ctx, "UpdateSecret", request)));
    return from_proto(made);
  }

  Result<> delete_secret(const Context& ctx, const SecretRef& ref) override {
    v1::DeleteSecretRequest request;
    to_proto(ref, *request.mutable_reference());
    CRETO_TRY((call<v1::DeleteSecretResponse>(ctx, "DeleteSecret", request)));
    return {};
  }

  Result<SecretDelegation> create_delegation(const Context& ctx, const DelegationRequest& r) override {
    v1::CreateDelegationRequest request;
    request.set_delegatee(r.delegatee.text());
    for (const auto& ref : r.secrets) to_proto(ref, *request.add_secrets());
    proto::set_duration(request.mutable_ttl(), r.ttl);
    to_proto(r.restrictions, *request.mutable_restrictions());
    const auto made = CRETO_TRY((call<v1::Delegation>(ctx, "CreateDelegation", request)));
    return from_proto(made);
  }

  Result<DelegatedSecrets> use_delegation(const Context& ctx, const SecretDelegationId& id,
                                          const std::optional<SandboxId>& sandbox) override {
    v1::UseDelegationRequest request;
    request.set_id(id.to_string());
    if (sandbox) request.set_sandbox_id(sandbox->to_string());
    const auto used = CRETO_TRY((call<v1::DelegatedSecrets>(ctx, "UseDelegation", request)));
    return from_proto(used);
  }

  Result<DelegatedSecrets> get_delegated_secrets(const Context& ctx, const SandboxId& sandbox,
                                                 const std::vector<SecretRef>& refs, Nanos ttl) override {
    v1::GetDelegatedSecretsRequest request;
    request.set_sandbox_id(sandbox.to_string());
    for (const auto& ref : refs) to_proto(ref, *request.add_references());
    proto::set_duration(request.mutable_ttl(), ttl);
    const auto given = CRETO_TRY((call<v1::DelegatedSecrets>(ctx, "GetDelegatedSecrets", request)));
    return from_proto(given);
  }

  Result<SecretDelegation> revoke_delegation(const Context& ctx, const SecretDelegationId& id) override {
    v1::RevokeDelegationRequest request;
    request.set_id(id.to_string());
    const auto revoked = CRETO_TRY((call<v1::Delegation>(ctx, "RevokeDelegation", request, repeatable)));
    return from_proto(revoked);
  }

  Result<SecretDelegation> get_delegation(const Context& ctx, const SecretDelegationId& id) override {
    v1::GetDelegationRequest request;
    request.set_id(id.to_string());
    const auto found = CRETO_TRY((call<v1::Delegation>(ctx, "GetDelegation", request, repeatable)));
    return from_proto(found);
  }

  Result<std::vector<SecretAccess>> access_log(const Context& ctx, const SecretRef& ref, std::int64_t before,
                                               std::size_t limit) override {
    v1::GetAccessLogRequest request;
    request.set_path(ref.path);
    request.set_name(ref.name);
    request.set_before(before);
    request.set_limit(static_cast<std::uint32_t>(std::min<std::size_t>(limit, 1001)));
    const auto log = CRETO_TRY((call<v1::GetAccessLogResponse>(ctx, "GetAccessLog", request, repeatable)));
    return all<SecretAccess>(log.entries());
  }

  /// Whether the service answers at all; its own health is at its health endpoint.
  HealthStatus health() override {
    v1::ListSecretsRequest request;
    request.set_limit(1);
    auto answered = call<v1::ListSecretsResponse>(Context(), "ListSecrets", request);
    if (!answered && answered.error().category() == ErrorCategory::transient) {
      return {Health::unhealthy, "the vault does not answer"};
    }
    return {};
  }

 private:
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    if (!ctx.idempotency_key.empty()) options.idempotent = true;
    return channel_->call<Req, Res>(ctx, "/creto.vault.v1.VaultService/" + std::string(method), request, options);
  }

  template <class T, class List>
  static Result<std::vector<T>> all(const List& list) {
    std::vector<T> out;
    for (const auto& one : list) {
      auto value = CRETO_TRY(from_proto(one));
      out.push_back(std::move(value));
    }
    return out;
  }

  const std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Vault> create_vault_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<VaultClient>(std::move(channel));
}

}  // namespace creto::vault
