#include "wiring.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "creto/io/sql.h"
#include "creto/io/tls.h"
#include "creto/vault/vault_lookup.h"

namespace creto::app {
namespace {

Error platform_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

class NhiAuthenticator final : public rpc::Authenticator {
 public:
  NhiAuthenticator(nhi::Nhi& nhi, std::string org) : nhi_(nhi), org_(std::move(org)) {}

  Result<rpc::Caller> authenticate(const Context& ctx, const rpc::Credentials& credentials) override {
    Context lookup = ctx;
    lookup.org = org_;
    if (!credentials.bearer.empty()) {
      const nhi::ResolvedToken token = CRETO_TRY(nhi_.resolve_token(lookup, credentials.bearer));
      return caller(lookup, token.agent.identity);
    }
    if (credentials.certificate_uris.empty())
      return platform_error(ErrorKind::unauthenticated, "no credentials: show a client certificate or a bearer token");
    // A certificate of ours carries exactly one identity; more than one is none of ours.
    if (credentials.certificate_uris.size() != 1)
      return platform_error(ErrorKind::unauthenticated, "certificate: must carry one identity");
    const tls::CertifiedIdentity certified = CRETO_TRY(tls::identity_from_uri(credentials.certificate_uris.front()));
    const Identity shown = CRETO_TRY(Identity::parse(certified.identity));
    if (shown.kind() == Identity::Kind::human) CRETO_TRY(check_keys(lookup, shown, certified.key_id));
    if (credentials.on_behalf_of.empty()) return caller(lookup, shown);
    if (shown.kind() != Identity::Kind::service)
      return platform_error(ErrorKind::unauthenticated, "creto-on-behalf-of: only a service may act for another");
    const Identity other = CRETO_TRY(Identity::parse(credentials.on_behalf_of));
    return caller(lookup, other);
  }

 private:
  /// His certificate's key lies open on his disk, so it must end with the keys that his passphrase guards.
  Result<> check_keys(const Context& ctx, const Identity& human, std::string_view key_id) {
    const auto sets = CRETO_TRY(nhi_.key_sets(ctx, human));
    const auto named = std::ranges::find(sets, key_id, &nhi::PublicKeys::key_id);
    if (named != sets.end() && named->in_force(system_clock().now())) return {};
    return platform_error(ErrorKind::unauthenticated,
                          fmt::format("the certificate of `{}` is for keys that are not in force: run `creto humans "
                                      "renew-certificate`",
                                      human.text()));
  }

  Result<rpc::Caller> caller(const Context& ctx, const Identity& identity) {
    const bool revoked = CRETO_TRY(nhi_.is_revoked(ctx, identity));
    if (revoked)
      return platform_error(ErrorKind::unauthenticated,
                            fmt::format("`{}` may not act: unknown, suspended, expired or revoked", identity.text()));
    const nhi::Chain chain = CRETO_TRY(nhi_.get_delegation_chain(ctx, identity));
    return rpc::Caller{identity, chain.identities(), org_};
  }

  nhi::Nhi& nhi_;
  const std::string org_;
};

Result<> decide(authz::Authz& authz, const Context& ctx, std::string_view action, std::string_view type,
                std::string_view id) {
  if (!ctx.caller) return platform_error(ErrorKind::unauthenticated, "nobody is asking");
  authz::CheckRequest request{.principal = *ctx.caller,
                              .chain = ctx.chain,
                              .action = std::string(action),
                              .resource = type.empty() ? authz::EntityUid{"Org", ctx.org}
                                                       : authz::EntityUid{std::string(type), std::string(id)},
                              .context = {},
                              .arguments_hash = {},
                              .override_token = {}};
  const authz::Decision decision = authz.admit(ctx, request);
  if (auto refused = authz::refusal(Product::platform, decision)) return *std::move(refused);
  return {};
}

class AuthzAuthorizer final : public rpc::Authorizer {
 public:
  explicit AuthzAuthorizer(authz::Authz& authz) : authz_(authz) {}
  Result<> authorize(const Context& ctx, std::string_view action, const rpc::Resource& resource) override {
    return decide(authz_, ctx, action, resource.type, resource.id);
  }

 private:
  authz::Authz& authz_;
};

class AuthzAccess final : public AccessControl {
 public:
  explicit AuthzAccess(authz::Authz& authz) : authz_(authz) {}
  Result<> require(const Context& ctx, std::string_view action, std::string_view type, std::string_view id) override {
    return decide(authz_, ctx, action, type, id);
  }

 private:
  authz::Authz& authz_;
};

class DelegationLimits final : public authz::Extension {
 public:
  explicit DelegationLimits(nhi::Nhi& nhi) : nhi_(nhi) {}
  std::string_view name() const override { return "delegation_limits"; }
  int priority() const override { return 10; }
  bool denies_on_failure() const override { return true; }
  Nanos budget() const override { return std::chrono::seconds(1); }  // it may have to read the chain from the database

  Result<std::optional<authz::Decision>> evaluate(const Context& ctx, const authz::CheckRequest& request) override {
    if (!request.principal.is_agent()) return std::optional<authz::Decision>();
    const Result<nhi::Chain> chain = nhi_.get_delegation_chain(ctx, request.principal);
    if (!chain && chain.error().retryable()) return Error(chain.error());
    if (!chain) return denied(chain.error().message());
    if (!chain->permits(request.action))
      return denied(fmt::format("the delegation does not cover `{}`", request.action));
    return std::optional<authz::Decision>();
  }

 private:
  static std::optional<authz::Decision> denied(std::string reason) {
    return authz::Decision(authz::Deny{.reason = std::move(reason), .policy = {}, .transient = false});
  }
  nhi::Nhi& nhi_;
};

class LogAuditor final : public rpc::Auditor {
 public:
  explicit LogAuditor(audit::AuditLog& log) : log_(log) {}

  Result<> record(const Context& ctx, const rpc::CallRecord& call) override {
    const auto outcome = [&] {
      if (call.error == nullptr) return audit::Outcome::success;
      switch (call.error->category()) {
        case ErrorCategory::authorization:
        case ErrorCategory::security:
        case ErrorCategory::oversight:
          return audit::Outcome::denied;
        case ErrorCategory::transient:
        case ErrorCategory::permanent:
          break;
      }
      return call.error->kind() == ErrorKind::timeout ? audit::Outcome::timeout : audit::Outcome::failure;
    }();
    const std::string resource = call.resource.type.empty()
                                     ? "org:" + ctx.org
                                     : legible(fmt::format("{}:{}", call.resource.type, call.resource.id), 1024);
    audit::AuditRecord record = audit::AuditRecord::of(ctx, std::string(call.action), resource, outcome);
    if (call.error != nullptr) record.outcome_detail = legible(call.error->to_string(), 1024);
    record.metadata = Json{{"method", std::string(call.method)}, {"peer", std::string(call.peer)}}.dump();
    const Result<audit::AuditId> id = log_.log(ctx, record);
    if (!id) return Error(id.error());
    return {};
  }

 private:
  audit::AuditLog& log_;
};

class NhiEntities final : public authz::EntitySource {
 public:
  NhiEntities(nhi::Nhi& nhi, sql::Database& database) : nhi_(nhi), changed_(database.signal("nhi.changed")) {}

  std::uint64_t version() const override { return changed_.count(); }
  bool may_know(std::string_view type) const override {
    return type == "Agent" || type == "Human" || type == "Service";
  }

  Result<std::optional<authz::Entity>> find(const std::string& org, const authz::EntityUid& uid) const override {
    if (!may_know(uid.type)) return std::optional<authz::Entity>();
    const Result<Identity> identity = Identity::parse(uid.id);
    if (!identity || authz::entity_of(*identity) != uid) return std::optional<authz::Entity>();
    Context ctx = Context::of_service(self_);
    ctx.org = org;
    const Result<nhi::Agent> agent = nhi_.get_agent(ctx, *identity);
    if (!agent && agent.error().kind() == ErrorKind::not_found) return std::optional<authz::Entity>();
    if (!agent) return Error(agent.error());

    authz::Entity entity{uid, {}, {}, {}};
    for (const auto& [key, value] : agent->attributes) entity.attributes.emplace_back(key, value);
    entity.attributes.emplace_back("name", agent->name);
    entity.attributes.emplace_back("type", std::string(nhi::to_string(agent->type)));
    entity.attributes.emplace_back("status", std::string(nhi::to_string(agent->status)));
    const authz::EntityUid owner = authz::entity_of(agent->owner);
    if (owner != uid) {
      entity.attributes.emplace_back("owner", owner);
      entity.parents.push_back(owner);
    }
    return std::optional(std::move(entity));
  }

 private:
  nhi::Nhi& nhi_;
  sql::Signal& changed_;
  const Identity self_ = Identity::service("creto").value();
};

/// Vault lies below authz, so it cannot speak of entities itself.
class SecretEntities final : public authz::ResourceSource {
 public:
  explicit SecretEntities(sql::Database& database) : database_(database) {}

  std::vector<std::string> types() const override { return {"Secret"}; }

  Result<std::optional<authz::Entity>> find(const Context& ctx, const authz::EntityUid& uid) const override {
    const Result<vault::SecretRef> ref = vault::SecretRef::parse(uid.id);
    if (!ref) return std::optional<authz::Entity>();
    const auto secret = CRETO_TRY(vault::find_secret(database_, ctx, *ref));
    if (!secret) return std::optional<authz::Entity>();
    const authz::EntityUid owner = authz::entity_of(secret->owner);
    authz::Entity entity{uid,
                         {{"owner", owner},
                          {"path", ref->path},
                          {"name", ref->name},
                          {"type", std::string(vault::to_string(secret->metadata.type))},
                          {"version", static_cast<std::int64_t>(secret->version)}},
                         {},
                         {owner}};
    if (secret->expires_at) entity.attributes.emplace_back("expires_at", authz::datetime_of(*secret->expires_at));
    for (const auto& [name, value] : secret->metadata.labels) entity.tags.emplace_back(name, value);
    return std::optional(std::move(entity));
  }

 private:
  sql::Database& database_;
};

}  // namespace

std::unique_ptr<rpc::Authenticator> authenticate_with(nhi::Nhi& nhi, std::string org) {
  return std::make_unique<NhiAuthenticator>(nhi, std::move(org));
}
std::unique_ptr<rpc::Authorizer> authorize_with(authz::Authz& authz) {
  return std::make_unique<AuthzAuthorizer>(authz);
}
std::unique_ptr<AccessControl> access_through(authz::Authz& authz) { return std::make_unique<AuthzAccess>(authz); }
std::unique_ptr<authz::Extension> delegation_limits(nhi::Nhi& nhi) { return std::make_unique<DelegationLimits>(nhi); }
std::unique_ptr<rpc::Auditor> audit_with(audit::AuditLog& log) { return std::make_unique<LogAuditor>(log); }
std::unique_ptr<authz::EntitySource> entities_of(nhi::Nhi& nhi, sql::Database& database) {
  return std::make_unique<NhiEntities>(nhi, database);
}
std::unique_ptr<authz::ResourceSource> secret_entities(sql::Database& database) {
  return std::make_unique<SecretEntities>(database);
}

}  // namespace creto::app
