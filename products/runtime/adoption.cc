#include <fmt/format.h>

#include <algorithm>

#include "creto/audit/audit_log.h"
#include "runtime_service.h"

namespace creto::runtime {

Result<> RuntimeService::take_over() {
  auto records = CRETO_TRY(sql::read(services_.database, events_.service_context("default"),
                                     [](sql::Tx& tx) { return RuntimeStore::not_terminated(tx); }));
  // Also what was run under another runtime class than today's.
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(options_.state_directory, ignored)) {
    if (!std::filesystem::exists(entry.path() / "bundles", ignored)) continue;
    const auto runtime_class = entry.path().filename().string();
    if (auto driver = driver_for(runtime_class); !driver)
      services_.telemetry.error("runtime", "runtime_class_lost",
                                {{"runtime_class", runtime_class}, {"error", driver.error().to_string()}});
  }
  std::map<SandboxId, bool> running;
  std::map<SandboxId, SandboxDriver*> known;
  {
    const std::lock_guard lock(drivers_mutex_);
    for (const auto& [name, driver] : drivers_) {
      const auto found = CRETO_TRY(driver->list());
      for (const auto& sandbox : found) {
        running[sandbox.id] = sandbox.running;
        known[sandbox.id] = driver.get();
      }
    }
  }
  std::vector<std::uint32_t> kept;
  for (auto& record : records) {
    const auto& id = record.sandbox.id;
    auto live = std::make_shared<LiveSandbox>(id, directory_of(id));
    live->runtime_class = record.sandbox.runtime_class;
    live->isolation = record.sandbox.isolation;
    live->image = record.sandbox.image;
    live->image_digest = record.sandbox.image_digest;
    live->process = record.process;
    live->record = record;
    const bool alive = record.sandbox.state == SandboxState::running && running[id];
    known.erase(id);
    auto lease = network_->adopt(record.network_slot);
    if (lease) {
      live->lease = *lease;
      kept.push_back(lease->slot);
    }
    {
      const std::lock_guard lock(mutex_);
      live_.emplace(id, live);
    }
    if (const auto& ending = record.ending) {
      finish(live, ending->reason, ending->detail, ending->exit_code);
      continue;
    }
    if (!alive || !lease) {
      finish(live, TerminationReason::failed,
             record.sandbox.ready_at ? "ended while the runtime was down" : "the runtime ended before it was ready",
             std::nullopt);
      continue;
    }
    if (auto resumed = resume(live); !resumed)
      finish(live, TerminationReason::failed, fmt::format("cannot be taken over: {}", resumed.error().to_string()),
             std::nullopt);
  }
  for (const auto& live : all_live()) end_without_parent(live);
  for (const auto& [id, driver] : known) {
    if (auto removed = driver->remove(id); !removed)
      services_.telemetry.error("runtime", "sandbox_remove_failed",
                                {{"sandbox", id.to_string()}, {"error", removed.error().to_string()}});
    std::filesystem::remove_all(directory_of(id), ignored);
  }
  // Those that were never stored, and that no driver had heard of yet.
  for (const auto& directory : sandbox_directories()) {
    const auto id = SandboxId::parse(directory.filename().string());
    if (!live_.contains(*id) && std::filesystem::exists(directory / "run", ignored))
      std::filesystem::remove_all(directory, ignored);
  }
  for (const auto& lease : network_->leases())
    if (std::find(kept.begin(), kept.end(), lease.slot) == kept.end()) network_->release(lease);
  return {};
}

Result<> RuntimeService::resume(const Live& live) {
  proxy_->admit(live->lease->guest_address, live->id);
  arm(live);
  tasks_.post_after(options_.ready_timeout, [this, weak = std::weak_ptr(live)] {
    const auto sandbox = weak.lock();
    if (sandbox && !sandbox->was_connected())
      finish(sandbox, TerminationReason::failed, "cannot be taken over: its init did not connect again", std::nullopt);
  });
  CRETO_TRY(live->open_output());
  CRETO_TRY(hub_->listen(live->id, live->run_directory(), live));
  CRETO_TRY(open_gateway(live));
  watch(**driver_for(live->runtime_class), live);
  begin(live);
  keep_holding(live, Nanos(0));
  return {};
}

}  // namespace creto::runtime
