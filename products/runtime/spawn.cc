#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/common/assert.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "runtime_service.h"
#include "spec.h"

namespace creto::runtime {
namespace {

constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr std::string_view spawn_operation = "runtime.spawn";

}  // namespace

Result<SpawnResult> RuntimeService::spawn(const Context& ctx, const SandboxSpec& spec) {
  if (!ctx.caller) return Error(Product::runtime, ErrorKind::unauthenticated, "spawning needs an identity");
  const auto agent = spec.agent.value_or(*ctx.caller);
  const auto chain = CRETO_TRY(services_.nhi.get_delegation_chain(events_.service_context(ctx.org), agent));
  const auto links = chain.identities();
  if (ctx.caller->kind() != Identity::Kind::service &&
      std::find(links.begin(), links.end(), *ctx.caller) == links.end())
    return Error(Product::runtime, ErrorKind::permission_denied,
                 fmt::format("`{}` is not above `{}`", ctx.caller_text(), agent.text()));
  const Principal principal{agent, links};
  return spawn_for(ctx, principal, std::nullopt, spec, [&]() -> Result<Principal> { return principal; });
}

Result<SpawnResult> RuntimeService::spawn_child(const Context& ctx, const SandboxId& parent, SandboxSpec spec) {
  const auto live = find_live(ctx.org, parent);
  if (!live) return not_here(parent);
  const auto& record = *live->record;
  CRETO_TRY(may_touch(ctx, record));
  if (record.sandbox.delegation_chain.size() >= delegation_chain_max_depth)
    return Error(Product::runtime, ErrorKind::permission_denied,
                 fmt::format("the delegation chain is {} deep already", delegation_chain_max_depth));
  const Principal principal{record.sandbox.agent, record.sandbox.delegation_chain};
  return spawn_for(ctx, principal, parent, spec, [&] { return make_child(ctx, principal); });
}

Context RuntimeService::agent_context(const Context& ctx, const Principal& principal) const {
  auto own = Context::of(principal.agent, principal.chain);
  own.org = ctx.org;
  own.deadline = ctx.deadline;
  own.trace = ctx.trace;
  own.idempotency_key = ctx.idempotency_key;
  own.request_hash = ctx.request_hash;
  return own;
}

Result<Principal> RuntimeService::make_child(const Context& ctx, const Principal& parent) {
  auto own = agent_context(ctx, parent);
  const auto chain = CRETO_TRY(services_.nhi.get_delegation_chain(own, parent.agent));
  const auto above = CRETO_TRY(services_.nhi.get_agent(own, parent.agent));
  nhi::NewAgent fresh;
  fresh.name = fmt::format("{}/{}", above.name.substr(0, 80), hex(crypto::random_bytes(6)));
  // The child of a repeat is the first one, with its one delegation.
  if (!own.idempotency_key.empty()) {
    const auto named = crypto::sha3_256(as_bytes(parent.agent.text() + "\n" + own.idempotency_key));
    fresh.name = fmt::format("{}/{}", above.name.substr(0, 80), hex(BytesView(named).first(6)));
    own.idempotency_key = "child:" + hex(named);
    own.request_hash = crypto::sha3_256(as_bytes(fresh.name));
  }
  const auto child = CRETO_TRY(services_.nhi.register_agent(own, fresh));
  nhi::NewDelegation link{parent.agent, child.identity, std::nullopt, {},          {},
                          std::nullopt, std::nullopt,   {},           std::nullopt};
  link.permissions = chain.delegations.empty() ? std::vector<std::string>{"*"} : chain.delegations.back().permissions;
  link.expires_at = std::min(chain.valid_until, services_.clock.now() + std::chrono::days(30));
  CRETO_TRY(services_.nhi.create_delegation(own, link));
  auto links = parent.chain;
  links.push_back(child.identity);
  return Principal{child.identity, std::move(links)};
}

Result<SpawnResult> RuntimeService::spawn_for(const Context& ctx, const Principal& asking,
                                              const std::optional<SandboxId>& parent, const SandboxSpec& spec,
                                              const std::function<Result<Principal>()>& resident_of) {
  const auto started = services_.clock.monotonic();
  CRETO_TRY(check_spec(spec));
  const auto own = agent_context(ctx, asking);
  // A repeat is answered before anything is asked or held again.
  if (!ctx.idempotency_key.empty()) {
    const auto earlier = CRETO_TRY(earlier_spawn(ctx));
    if (earlier) return SpawnResult{*earlier, std::nullopt};
  }
  const auto image = CRETO_TRY(images_.get(spec.image));
  const auto runtime_class = spec.runtime_class.empty() ? options_.runtime_class : spec.runtime_class;
  const auto& more = options_.more_runtime_classes;
  if (runtime_class != options_.runtime_class && std::find(more.begin(), more.end(), runtime_class) == more.end())
    return invalid(fmt::format("runtime_class: `{}` is not offered here", runtime_class.substr(0, 64)));
  auto* driver = CRETO_TRY(driver_for(runtime_class));
  auto whole = config_json(spec);
  whole["image"] = spec.image;
  whole["image_digest"] = image.digest;
  whole["runtime_class"] = runtime_class;
  whole["secrets"] = spec.secrets;
  whole["child"] = parent.has_value();
  whole["parent"] = parent ? parent->to_string() : "";
  const auto arguments = CRETO_TRY(canonical_json(whole));
  const authz::CheckRequest check{asking.agent,
                                  asking.chain,
                                  "sandbox.spawn",
                                  {"Image", spec.image},
                                  // Of the same types as in `arguments`, which oversight shows to the same policies.
                                  {{"cpu_millicores", static_cast<std::int64_t>(spec.limits.cpu_millicores)},
                                   {"memory_bytes", static_cast<std::int64_t>(spec.limits.memory_bytes)},
                                   {"pids", static_cast<std::int64_t>(spec.limits.pids)},
                                   {"runtime_class", runtime_class},
                                   {"child", parent.has_value()},
                                   {"egress", egress_value(spec.egress)}},
                                  crypto::sha3_256(as_bytes(arguments)),
                                  spec.override_token};
  const auto description = fmt::format("start a sandbox from image `{}`", spec.image);
  auto waiting =
      CRETO_TRY(approvals_.require(own, check, parent, arguments, description, spec.reasoning, std::nullopt));
  if (waiting) return SpawnResult{std::nullopt, std::move(waiting)};
  if (services_.approvals && spec.override_token.empty()) {
    const contracts::GatedAction gated{asking.agent, asking.chain, parent,   check.action,
                                       "Image",      spec.image,   arguments};
    const auto gate = services_.approvals->check_approval_required(events_.asking_for(own), gated);
    if (!gate && gate.error().kind() == ErrorKind::quota_exceeded)
      return Error(Product::runtime, ErrorKind::quota_exceeded, "cannot start a sandbox: quota exceeded")
          .with_cause(gate.error());
    if (!gate) return gate.error();
    if (const auto* prohibited = std::get_if<contracts::Prohibited>(&*gate))
      return Error(Product::runtime, ErrorKind::permission_denied, prohibited->reason);
    if (const auto* required = std::get_if<contracts::ApprovalRequired>(&*gate)) {
      auto asked =
          CRETO_TRY(approvals_.ask(own, check, parent, arguments, description, spec.reasoning, required->needs, {}));
      return SpawnResult{std::nullopt, std::move(asked)};
    }
  }

  const auto hold = ReservationId::fresh(services_.clock.now());
  if (services_.limits) {
    auto held = services_.limits->reserve(
        own, {hold, asking.agent, asking.chain, "sandbox_allocated", Decimal(1), Money{}, std::chrono::minutes(10)});
    if (!held) {
      if (held.error().kind() != ErrorKind::quota_exceeded) return std::move(held).error();
      return Error(Product::runtime, ErrorKind::quota_exceeded, "cannot spawn a sandbox: the quota is used up")
          .with_cause(std::move(held).error());
    }
  }
  auto spawned = bring_up(ctx, own, *driver, image, spec, check, parent, resident_of, hold, started);
  // Otherwise the usage event settles it, in the same step in which it counts.
  if (!spawned) {
    release(own, hold);
    return std::move(spawned).error();
  }
  return SpawnResult{std::move(*spawned), std::nullopt};
}

contracts::SpendRequest RuntimeService::running_hold(const SandboxId& id, const Identity& agent,
                                                     const DelegationChain& chain) const {
  return {ReservationId::from_bytes(id.bytes()),
          agent,
          chain,
          "sandbox_running",
          Decimal(1),
          Money{},
          options_.running_hold,
          {{"sandbox_id", id.to_string()}}};
}

void RuntimeService::keep_holding(const Live& live, Nanos after) {
  if (!services_.limits) return;
  tasks_.post_after(after, [this, weak = std::weak_ptr(live)] {
    const auto sandbox = weak.lock();
    if (!sandbox || sandbox->finishing) return;
    const auto& record = *sandbox->record;
    auto ctx = events_.service_context(record.org);
    ctx.deadline = services_.clock.monotonic() + std::chrono::seconds(10);
    const auto hold = running_hold(sandbox->id, record.sandbox.agent, record.sandbox.delegation_chain);
    // Where a limit has become lower, it runs on all the same: that it runs is a fact.
    if (auto held = services_.limits->reserve(ctx, hold); !held)
      services_.telemetry.warn("runtime", "running_not_held",
                               {{"sandbox", sandbox->id.to_string()}, {"error", held.error().to_string()}});
    if (sandbox->finishing) return release(ctx, hold.id);
    keep_holding(sandbox, options_.running_hold / 3);
  });
}

void RuntimeService::release(const Context& ctx, const ReservationId& hold) {
  if (!services_.limits) return;
  if (auto released = services_.limits->release(ctx, hold); !released)
    services_.telemetry.warn("runtime", "release_failed", {{"error", released.error().to_string()}});
}

Result<std::optional<Sandbox>> RuntimeService::earlier_spawn(const Context& ctx) {
  const auto found =
      CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) { return io::earlier(tx, ctx, spawn_operation); }));
  if (!found) return std::nullopt;
  const auto id = CRETO_TRY(SandboxId::parse(*found));
  const auto record = CRETO_TRY(stored(ctx, id));
  return std::optional(record.sandbox);
}

template <class F>
Result<SandboxId> RuntimeService::once_spawn(sql::Tx& tx, const Context& ctx, F&& fn) {
  return io::once(
      tx, ctx, spawn_operation, idempotency_window, std::forward<F>(fn),
      [](const SandboxId& id) { return id.to_string(); }, [](std::string_view text) { return SandboxId::parse(text); });
}

Result<Sandbox> RuntimeService::bring_up(const Context& ctx, const Context& own, SandboxDriver& driver,
                                         const ImageStore::Image& image, const SandboxSpec& spec,
                                         const authz::CheckRequest& check, const std::optional<SandboxId>& parent,
                                         const std::function<Result<Principal>()>& resident_of,
                                         const ReservationId& hold, Monotonic started) {
  const auto deadline = std::min(ctx.deadline, started + options_.ready_timeout);
  bool warm = true;
  auto live = take_warm(image, driver.traits().name, spec.limits);
  if (!live) {
    warm = false;
    live = CRETO_TRY(make_sandbox(driver, image, spec.limits, deadline));
  }
  auto claimed = claim(ctx, own, live, image, spec, check, parent, resident_of, hold, warm, deadline);
  if (!claimed) {
    drop(live);
    return claimed;
  }
  if (claimed->id != live->id) {  // a parallel call with the same key was quicker
    drop(live);
    release(own, hold);
  }
  const auto took = services_.clock.monotonic() - started;
  services_.telemetry
      .histogram("runtime_sandbox_spawn_duration_seconds", "From the request to ready",
                 {{"runtime_class", driver.traits().name}})
      .observe(std::chrono::duration<double>(took).count());
  return claimed;
}

Result<Sandbox> RuntimeService::claim(const Context& ctx, const Context& own, const Live& live,
                                      const ImageStore::Image& image, const SandboxSpec& spec,
                                      const authz::CheckRequest& check, const std::optional<SandboxId>& parent,
                                      const std::function<Result<Principal>()>& resident_of, const ReservationId& hold,
                                      bool warm, Monotonic deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (live_.size() >= options_.sandboxes_max)
      return Error(Product::runtime, ErrorKind::resource_exhausted,
                   fmt::format("{} sandboxes are running already", live_.size()));
  }
  const auto resident = CRETO_TRY(resident_of());
  const auto agent_ctx = agent_context(ctx, resident);
  const auto now = services_.clock.now();
  const auto running = running_hold(live->id, resident.agent, resident.chain);
  if (services_.limits) {
    auto held = services_.limits->reserve(agent_ctx, running);
    if (!held && held.error().kind() == ErrorKind::quota_exceeded)
      return Error(Product::runtime, ErrorKind::quota_exceeded, "cannot spawn a sandbox: as many run as may")
          .with_cause(std::move(held).error());
    if (!held) return std::move(held).error();
  }
  auto claimed = claim_held(ctx, own, live, image, spec, check, parent, resident, hold, warm, deadline, now);
  if (!claimed || claimed->id != live->id) release(agent_ctx, running.id);
  return claimed;
}

Result<Sandbox> RuntimeService::claim_held(const Context& ctx, const Context& own, const Live& live,
                                           const ImageStore::Image& image, const SandboxSpec& spec,
                                           const authz::CheckRequest& check, const std::optional<SandboxId>& parent,
                                           const Principal& resident, const ReservationId& hold, bool warm,
                                           Monotonic deadline, Instant now) {
  const auto agent_ctx = agent_context(ctx, resident);
  SandboxRecord record{ctx.org,           Sandbox{live->id, resident.agent},
                       spec.environment,  spec.working_directory,
                       spec.egress,       live->process,
                       live->lease->slot, {}};
  record.creator = ctx.caller;
  auto& sandbox = record.sandbox;
  sandbox.delegation_chain = resident.chain;
  sandbox.parent = parent;
  sandbox.image = image.name;
  sandbox.image_digest = image.digest;
  sandbox.runtime_class = live->runtime_class;
  sandbox.isolation = live->isolation;
  sandbox.command = spec.command;
  sandbox.limits = spec.limits;
  sandbox.warm = warm;
  sandbox.created_at = now;

  std::vector<vault::SecretRef> lent;
  for (const auto& text : spec.secrets) {
    auto ref = CRETO_TRY(vault::SecretRef::parse(text));
    lent.push_back(std::move(ref));
  }
  if (!lent.empty()) {
    if (!services_.vault)
      return Error(Product::runtime, ErrorKind::unavailable, "the vault is not part of this installation");
    // Written down before it is made, so that it is taken back whatever happens in between.
    record.secret_delegation = vault::delegation_of(live->id).to_string();
  }

  // Of what is begun from here on the end will be recorded, also by a later process.
  auto inserted = sql::write(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::insert(tx, record); });
  if (!inserted) {
    live->record = record;
    finish(live, TerminationReason::failed, inserted.error().to_string(), std::nullopt);
    return std::move(inserted).error();
  }
  const auto unready = record;
  const auto use_approval = [&](sql::Tx& tx) -> Result<> {
    if (spec.override_token.empty()) return {};
    return services_.authz.consume_override(tx, own, check, live->id.to_string());
  };
  const auto fill = [&]() -> Result<SandboxId> {
    vault::DelegatedSecrets secrets{
        {vault::delegation_of(live->id), resident.agent, resident.agent, {}, {}, {}, {}, 0, {}}, {}};
    if (!lent.empty())
      secrets = CRETO_TRY(services_.vault->get_delegated_secrets(agent_ctx, live->id, lent, options_.secret_ttl));
    return make_ready(ctx, agent_ctx, live, record, secrets, hold, use_approval, deadline);
  };
  auto first = fill();
  if (first && *first == live->id) return record.sandbox;
  live->record = unready;
  finish(live, TerminationReason::failed,
         first ? fmt::format("`{}` was quicker with the same idempotency key", first->to_string())
               : first.error().to_string(),
         std::nullopt);
  if (!first) return std::move(first).error();
  const auto other = CRETO_TRY(stored(ctx, *first));
  return other.sandbox;
}

Result<> RuntimeService::revoke_secrets(const SandboxRecord& record) {
  if (record.secret_delegation.empty() || !services_.vault) return {};
  const auto id = vault::SecretDelegationId::parse(record.secret_delegation);
  auto ctx = Context::of(record.sandbox.agent, record.sandbox.delegation_chain);
  ctx.org = record.org;
  auto revoked = services_.vault->revoke_delegation(ctx, *id);
  if (revoked || revoked.error().kind() == ErrorKind::not_found) return {};
  services_.telemetry.error("runtime", "secrets_not_revoked",
                            {{"sandbox", record.sandbox.id.to_string()}, {"error", revoked.error().to_string()}});
  if (revoked.error().retryable()) return std::move(revoked).error();
  return {};
}

Result<SandboxId> RuntimeService::make_ready(const Context& ctx, const Context& agent_ctx, const Live& live,
                                             SandboxRecord& record, vault::DelegatedSecrets& secrets,
                                             const ReservationId& hold,
                                             const std::function<Result<>(sql::Tx&)>& use_approval,
                                             Monotonic deadline) {
  auto& sandbox = record.sandbox;
  const auto sandbox_key = crypto::SigningKey::generate(crypto::SignatureAlgorithm::ed25519);
  CRETO_TRY(send_claim(live, record, secrets, sandbox_key));
  const auto problem = live->wait_claimed(deadline);
  if (!problem) return Error(Product::runtime, ErrorKind::timeout, "the sandbox did not take its claim in time");
  if (!problem->empty())
    return Error(Product::runtime, ErrorKind::sandbox_spawn_failed,
                 fmt::format("the sandbox refused its claim: {}", *problem));

  sandbox.attestation = CRETO_TRY(attest(record, sandbox_key));
  sandbox.ready_at = services_.clock.now();
  sandbox.state = SandboxState::running;
  live->record = record;
  arm(live);
  CRETO_TRY(live->open_output());
  CRETO_TRY(open_gateway(live));
  const auto document_hash = hex(crypto::sha3_256(as_bytes(sandbox.attestation.document)));
  contracts::RuntimeUsageEvent usage;
  usage.usage_type = "sandbox_allocated";
  usage.idempotency_key = "allocated:" + sandbox.id.to_string();
  usage.properties = CRETO_TRY(usage_properties(sandbox, Json{{"reservation_id", hold.to_string()}}));
  // Who asked for it is who is billed and limited: a child counts for itself, and through its chain for everybody
  // above.
  auto allocated = CRETO_TRY(events_.usage(record.org, sandbox.agent, sandbox.delegation_chain, usage));
  auto created = CRETO_TRY(
      events_.lifecycle(record.org, sandbox.agent, sandbox.delegation_chain, {sandbox.id, "created", document_hash}));
  auto entry = audit::AuditRecord::of(agent_ctx, "sandbox_spawned", sandbox_uri(sandbox.id));
  entry.metadata = Json{
      {"image", sandbox.image},
      {"image_digest", sandbox.image_digest},
      {"runtime_class", sandbox.runtime_class},
      {"attestation_hash", document_hash},
      {"warm",
       sandbox.warm}}.dump();
  const auto first = CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<SandboxId> {
    return once_spawn(tx, ctx, [&]() -> Result<SandboxId> {
      CRETO_TRY(RuntimeStore::update(tx, record));
      CRETO_TRY(use_approval(tx));
      CRETO_TRY(Events::publish(tx, agent_ctx, {allocated, created}));
      CRETO_TRY(audit::record(tx, agent_ctx, entry));
      return live->id;
    });
  }));
  if (first != live->id) return first;
  // From here on it is real: whatever happens now ends it, and nothing un-spawns it.
  {
    const std::lock_guard lock(mutex_);
    live_.emplace(live->id, live);
  }
  begin(live);
  keep_holding(live, options_.running_hold / 3);
  // Its end may have come while nobody was listed for it.
  if (live->ended()) finish(live, TerminationReason::failed, "the sandbox ended unexpectedly", std::nullopt);
  end_without_parent(live);
  return first;
}

Result<> RuntimeService::send_claim(const Live& live, const SandboxRecord& record,
                                    const vault::DelegatedSecrets& secrets, const crypto::SigningKey& sandbox_key) {
  std::map<std::string, std::string> plain = {
      {"PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}, {"HOME", "/home/agent"}, {"LANG", "C.UTF-8"}};
  for (const auto& [name, value] : record.environment) plain[name] = value;
  plain["CRETO_GATEWAY"] = "/run/creto/gateway.sock";
  plain["CRETO_SANDBOX_ID"] = record.sandbox.id.to_string();
  plain["CRETO_AGENT"] = record.sandbox.agent.text();
  std::vector<Secret> environment;
  for (const auto& [name, value] : plain) environment.push_back(Secret::copy_of(std::string_view(name + "=" + value)));
  std::vector<ClaimFile> files;
  for (const auto& secret : secrets.secrets) {
    Secret variable(secret.ref.name.size() + 1 + secret.value.size());
    auto out = std::copy(secret.ref.name.begin(), secret.ref.name.end(), variable.writable().begin());
    *out++ = '=';
    std::copy(secret.value.reveal().begin(), secret.value.reveal().end(), out);
    environment.push_back(std::move(variable));
    files.push_back({"/run/secrets/" + secret.ref.name, secret.value.clone()});
  }
  files.push_back({"/run/secrets/creto-sandbox-key", sandbox_key.seed().clone()});
  return hub_->claim(live->id, environment, files);
}

Result<std::string> RuntimeService::usage_properties(const Sandbox& sandbox, Json more) {
  more["sandbox_id"] = sandbox.id.to_string();
  more["runtime_class"] = sandbox.runtime_class;
  more["cpu_millicores"] = sandbox.limits.cpu_millicores;
  more["memory_bytes"] = std::to_string(sandbox.limits.memory_bytes);
  return canonical_json(more);
}

Result<Attestation> RuntimeService::attest(const SandboxRecord& record, const crypto::SigningKey& sandbox_key) {
  const auto& sandbox = record.sandbox;
  const auto driver = CRETO_TRY(driver_for(sandbox.runtime_class));
  Json chain = Json::array();
  for (const auto& link : sandbox.delegation_chain) chain.push_back(link.text());
  SandboxSpec spec;
  spec.command = sandbox.command;
  spec.environment = record.environment;
  spec.working_directory = record.working_directory;
  spec.egress = record.egress;
  spec.limits = sandbox.limits;
  const auto config = CRETO_TRY(canonical_json(config_json(spec)));
  Attestation attestation;
  attestation.document =
      CRETO_TRY(canonical_json(Json{{"schema_version", 1},
                                    {"org", record.org},
                                    {"sandbox_id", sandbox.id.to_string()},
                                    {"agent", sandbox.agent.text()},
                                    {"delegation_chain", std::move(chain)},
                                    {"image", sandbox.image},
                                    {"image_digest", sandbox.image_digest},
                                    {"config_hash", "sha3-256:" + hex(crypto::sha3_256(as_bytes(config)))},
                                    {"runtime_class", sandbox.runtime_class},
                                    {"isolation", sandbox.isolation},
                                    {"runtime_version", driver->probe().version},
                                    {"sandbox_key", sandbox_key.verifying_key().text()},
                                    {"nonce", hex(crypto::random_bytes(32))},
                                    {"timestamp_ns", std::to_string(services_.timestamps.now().physical_ns)}}));
  const auto signed_text = "sandbox_attestation\n" + attestation.document;
  attestation.signature =
      CRETO_TRY(services_.nhi.sign(events_.service_context(record.org), events_.service(), as_bytes(signed_text)));
  return attestation;
}

}  // namespace creto::runtime
