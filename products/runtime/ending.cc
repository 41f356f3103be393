#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "runtime_service.h"

namespace creto::runtime {

void RuntimeService::finish(const Live& live, TerminationReason reason, const std::string& detail,
                            std::optional<int> exit_code) {
  if (live->finishing.exchange(true)) return;
  tasks_.post([this, live, reason, detail, exit_code] { take_down(live, reason, detail, exit_code); });
}

void RuntimeService::end_without_parent(const Live& live) {
  const auto& parent = live->record->sandbox.parent;
  if (!parent) return;
  {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(*parent);
    if (it != live_.end() && !it->second->finishing) return;
  }
  finish(live, TerminationReason::manual, "its parent ended", std::nullopt);
}

void RuntimeService::take_down(const Live& live, TerminationReason reason, const std::string& detail,
                               std::optional<int> exit_code) {
  auto record = *live->record;
  if (!record.ending) {
    record.ending = {reason, detail, exit_code, {}};
    if (auto driver = driver_for(live->runtime_class))
      if (auto counted = (*driver)->usage(live->id)) record.ending->usage = *counted;
    if (record.ending->usage.oom_kills > 0 && reason == TerminationReason::failed)
      record.ending->reason = TerminationReason::resource_limit;
    if (record.sandbox.ready_at) note_ending(record);
  }
  const auto ending = *record.ending;
  std::vector<Live> children;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, other] : live_)
      if (other->record->sandbox.parent == live->id) children.push_back(other);
  }
  for (const auto& child : children) finish(child, TerminationReason::manual, "its parent ended", std::nullopt);
  discard(live);
  release(events_.service_context(record.org), ReservationId::from_bytes(live->id.bytes()));
  auto& sandbox = record.sandbox;
  if (sandbox.ready_at) {
    // Whoever sees its end sees all that it wrote, also after a power cut.
    if (auto synced = live->sync_output(); !synced)
      services_.telemetry.error("runtime", "output_not_synced",
                                {{"sandbox", live->id.to_string()}, {"error", synced.error().to_string()}});
  } else {
    std::error_code ignored;
    std::filesystem::remove_all(live->directory, ignored);
  }
  sandbox.state = SandboxState::terminated;
  sandbox.reason = ending.reason;
  sandbox.detail = ending.detail;
  sandbox.exit_code = ending.exit_code;
  sandbox.terminated_at = services_.clock.now();
  record.ending.reset();
  record_end(live, record, ending.usage, std::chrono::seconds(1));
}

void RuntimeService::note_ending(const SandboxRecord& record) {
  auto ctx = events_.service_context(record.org);
  ctx.deadline = services_.clock.monotonic() + std::chrono::seconds(5);  // it ends without a database too
  auto noted = sql::write(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::update(tx, record); });
  if (!noted)
    services_.telemetry.warn("runtime", "ending_not_noted",
                             {{"sandbox", record.sandbox.id.to_string()}, {"error", noted.error().to_string()}});
}

void RuntimeService::record_end(const Live& live, const SandboxRecord& record, const SandboxUsage& usage, Nanos pause) {
  auto recorded = revoke_secrets(record);
  if (recorded)
    recorded = record.sandbox.ready_at ? try_record_end(record, usage) : try_record_failed_spawn(record, usage);
  if (!recorded && recorded.error().kind() != ErrorKind::conflict) {
    services_.telemetry.error("runtime", "termination_not_recorded",
                              {{"sandbox", record.sandbox.id.to_string()}, {"error", recorded.error().to_string()}});
    tasks_.post_after(pause, [this, live, record, usage, pause] {
      record_end(live, record, usage, std::min<Nanos>(pause * 2, std::chrono::minutes(1)));
    });
    return;
  }
  std::vector<std::function<void(const Sandbox&)>> callbacks;
  {
    const std::lock_guard lock(mutex_);
    live_.erase(live->id);
    if (const auto it = waiting_.find(live->id); it != waiting_.end()) {
      callbacks.swap(it->second);
      waiting_.erase(it);
    }
  }
  for (const auto& callback : callbacks) callback(record.sandbox);
}

Result<> RuntimeService::try_record_failed_spawn(SandboxRecord record, const SandboxUsage& usage) {
  const auto ctx = events_.service_context(record.org);
  const auto stored = CRETO_TRY(sql::read(
      services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::find(tx, record.org, record.sandbox.id); }));
  // A commit whose outcome we did not learn made it real after all.
  if (stored && stored->sandbox.ready_at) {
    auto& sandbox = record.sandbox;
    sandbox.ready_at = stored->sandbox.ready_at;
    sandbox.attestation = stored->sandbox.attestation;
    return try_record_end(record, usage);
  }
  auto agent_ctx = Context::of(record.sandbox.agent, record.sandbox.delegation_chain);
  agent_ctx.org = record.org;
  auto entry = audit::AuditRecord::of(agent_ctx, "sandbox_spawn_failed", sandbox_uri(record.sandbox.id),
                                      audit::Outcome::failure);
  entry.outcome_detail = record.sandbox.detail;
  return sql::write(services_.database, agent_ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(RuntimeStore::update(tx, record));
    CRETO_TRY(audit::record(tx, agent_ctx, entry));
    return {};
  });
}

Result<> RuntimeService::try_record_end(const SandboxRecord& record, const SandboxUsage& usage) {
  const auto& sandbox = record.sandbox;
  auto ctx = Context::of(sandbox.agent, sandbox.delegation_chain);
  ctx.org = record.org;
  const auto began = sandbox.ready_at.value_or(sandbox.created_at);
  const auto seconds = std::chrono::ceil<std::chrono::seconds>(*sandbox.terminated_at - began).count();
  contracts::RuntimeUsageEvent event;
  event.usage_type = "sandbox_terminated";
  event.idempotency_key = "terminated:" + sandbox.id.to_string();
  event.units = Decimal(std::max<std::int64_t>(seconds, 0));
  event.properties =
      CRETO_TRY(usage_properties(sandbox, Json{{"duration_seconds", seconds},
                                               {"cpu_ns", std::to_string(usage.cpu.count())},
                                               {"memory_peak_bytes", std::to_string(usage.memory_peak_bytes)},
                                               {"reason", to_string(*sandbox.reason)}}));
  auto used = CRETO_TRY(events_.usage(record.org, sandbox.agent, sandbox.delegation_chain, event));
  auto ended = CRETO_TRY(events_.lifecycle(record.org, sandbox.agent, sandbox.delegation_chain,
                                           {sandbox.id, "terminated", std::string(to_string(*sandbox.reason))}));
  auto entry = audit::AuditRecord::of(ctx, "sandbox_terminated", sandbox_uri(sandbox.id));
  entry.why = sandbox.detail;
  entry.metadata = Json{{"reason", to_string(*sandbox.reason)}, {"duration_seconds", seconds}}.dump();
  return sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(RuntimeStore::update(tx, record));
    CRETO_TRY(Events::publish(tx, ctx, {used, ended}));
    CRETO_TRY(audit::record(tx, ctx, entry));
    return {};
  });
}

}  // namespace creto::runtime
