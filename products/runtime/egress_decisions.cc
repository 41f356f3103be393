#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "runtime_service.h"

namespace creto::runtime {
namespace {

bool matches(const EgressRule& rule, const EgressTarget& target) {
  if (rule.port != 0 && rule.port != target.port) return false;
  if (rule.host == "*" || rule.host == target.host) return true;
  return rule.host.starts_with("*.") && target.host.size() > rule.host.size() - 1 &&
         target.host.ends_with(rule.host.substr(1));
}

}  // namespace

Result<> RuntimeService::decide_egress(const EgressTarget& target) {
  Live live;
  {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(target.sandbox);
    if (it != live_.end()) live = it->second;
  }
  if (!live) return Error(Product::runtime, ErrorKind::egress_denied, "an unclaimed sandbox reaches nothing");
  const auto& record = *live->record;
  auto ctx = Context::of(record.sandbox.agent, record.sandbox.delegation_chain);
  ctx.org = record.org;
  ctx.deadline = services_.clock.monotonic() + std::chrono::seconds(10);
  const auto first_of = [&](const std::vector<EgressRule>& rules) -> const EgressRule* {
    const auto rule = std::find_if(rules.begin(), rules.end(), [&](const EgressRule& r) { return matches(r, target); });
    return rule == rules.end() ? nullptr : &*rule;
  };
  // Whoever spawns writes the sandbox' own rules: they deny or ask for more, and never permit. Only the
  // installation's stand above policy.
  const EgressRule* own = first_of(record.egress);
  const EgressRule* common = first_of(options_.egress);
  const auto says = [](const EgressRule* rule, EgressVerdict verdict) { return rule && rule->verdict == verdict; };
  auto verdict = EgressVerdict::require_authz;
  const EgressRule* decides = nullptr;
  if (says(own, EgressVerdict::deny) || says(common, EgressVerdict::deny)) {
    verdict = EgressVerdict::deny;
    decides = says(own, EgressVerdict::deny) ? own : common;
  } else if (says(common, EgressVerdict::allow) && !says(own, EgressVerdict::require_authz)) {
    verdict = EgressVerdict::allow;
    decides = common;
  }
  const std::string why = decides ? fmt::format("rule {}:{}", decides->host, decides->port) : "authorization";
  std::optional<Error> refusal;
  if (verdict == EgressVerdict::deny)
    refusal = Error(Product::runtime, ErrorKind::egress_denied, fmt::format("denied by {}", why));
  if (verdict == EgressVerdict::require_authz) {
    const auto decision = services_.authz.admit(ctx, {record.sandbox.agent,
                                                      record.sandbox.delegation_chain,
                                                      "network.egress",
                                                      {"Host", target.text()},
                                                      {{"host", target.host},
                                                       {"port", static_cast<std::int64_t>(target.port)},
                                                       {"sandbox_id", record.sandbox.id.to_string()}},
                                                      {},
                                                      {}});
    refusal = authz::refusal(Product::runtime, decision);
  }
  auto entry = audit::AuditRecord::of(ctx, refusal ? "egress_denied" : "egress_allowed", sandbox_uri(target.sandbox),
                                      refusal ? audit::Outcome::denied : audit::Outcome::success);
  entry.why = why;
  if (refusal) entry.outcome_detail = refusal->to_string();
  entry.metadata = Json{{"destination", target.text()}}.dump();
  // What cannot be written down does not happen.
  CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(audit::record(tx, ctx, entry));
    return {};
  }));
  if (refusal) return std::move(*refusal);
  return {};
}

void RuntimeService::record_egress(const EgressClosed& closed) {
  const auto bytes = closed.bytes_in + closed.bytes_out;
  if (bytes == 0) return;
  Live live;
  {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(closed.target.sandbox);
    if (it == live_.end()) return;
    live = it->second;
  }
  services_.telemetry.counter("runtime_egress_bytes_total", "Bytes through the egress proxy, both ways").add(bytes);
  contracts::RuntimeUsageEvent usage;
  usage.usage_type = "network_egress";
  usage.idempotency_key = "egress:" + EventId::fresh(services_.clock.now()).to_string();
  usage.units = Decimal(static_cast<std::int64_t>(bytes));
  usage.properties = Json{{"sandbox_id", live->id.to_string()},
                          {"destination", closed.target.text()},
                          {"bytes_transferred", std::to_string(bytes)},
                          {"bytes_out", std::to_string(closed.bytes_out)},
                          {"bytes_in", std::to_string(closed.bytes_in)}}
                         .dump();
  backlog_.record("egress of " + live->id.to_string(), [this, record = *live->record, usage]() -> Result<> {
    const auto& sandbox = record.sandbox;
    auto ctx = Context::of(sandbox.agent, sandbox.delegation_chain);
    ctx.org = record.org;
    ctx.deadline = services_.clock.monotonic() + std::chrono::seconds(10);
    auto event = CRETO_TRY(events_.usage(record.org, sandbox.agent, sandbox.delegation_chain, usage));
    return sql::write(services_.database, ctx, [&](sql::Tx& tx) { return Events::publish(tx, ctx, {event}); });
  });
}

}  // namespace creto::runtime
