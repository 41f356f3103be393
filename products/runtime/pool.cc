#include <fmt/format.h>

#include <algorithm>

#include "runtime_service.h"

namespace creto::runtime {

Result<Live> RuntimeService::make_sandbox(SandboxDriver& driver, const ImageStore::Image& image,
                                          const ResourceLimits& limits, Monotonic deadline) {
  const auto id = SandboxId::fresh(services_.clock.now());
  auto live = std::make_shared<LiveSandbox>(id, directory_of(id));
  live->runtime_class = driver.traits().name;
  live->isolation = driver.traits().isolation;
  live->image = image.name;
  live->image_digest = image.digest;
  live->limits = limits;
  const auto made = [&]() -> Result<> {
    CRETO_TRY(make_directory(live->directory, 0700));
    CRETO_TRY(make_directory(live->run_directory(), 0755));
    live->lease = CRETO_TRY(network_->acquire());
    proxy_->admit(live->lease->guest_address, id);
    CRETO_TRY(write_text_file(live->directory + "/resolv.conf",
                              fmt::format("nameserver {}\noptions timeout:2 attempts:2\n", live->lease->host_address)));
    CRETO_TRY(write_text_file(live->directory + "/hosts", "127.0.0.1 localhost sandbox\n"));
    CRETO_TRY(hub_->listen(id, live->run_directory(), live));
    const LaunchSpec launch{
        .id = id,
        .rootfs = image.rootfs,
        .run_directory = live->run_directory(),
        .init_program = init_program_,
        .files = {{live->directory + "/resolv.conf", "/etc/resolv.conf"}, {live->directory + "/hosts", "/etc/hosts"}},
        .network_namespace = live->lease->namespace_path,
        .limits = limits};
    live->process = CRETO_TRY(driver.launch(launch));
    watch(driver, live);
    if (!live->wait_connected(deadline))
      return Error(Product::runtime, ErrorKind::sandbox_spawn_failed, "the sandbox' init did not answer in time");
    return {};
  };
  if (auto done = made(); !done) {
    discard(live);
    return Error(Product::runtime, ErrorKind::sandbox_spawn_failed, "cannot make a sandbox")
        .with_cause(std::move(done).error());
  }
  return live;
}

void RuntimeService::watch(SandboxDriver& driver, const Live& live) {
  driver.watch(live->id, live->process, [this, weak = std::weak_ptr(live)](bool out_of_memory) {
    const auto sandbox = weak.lock();
    if (!sandbox) return;
    sandbox->gone();
    tasks_.post([this, sandbox, out_of_memory] {
      {
        const std::lock_guard lock(mutex_);
        const auto warm = std::find(pool_.begin(), pool_.end(), sandbox);
        if (warm != pool_.end()) {
          pool_.erase(warm);
          pool_changed_.notify_all();
        } else if (!live_.contains(sandbox->id)) {
          return;  // whoever is making or dropping it sees that it is gone
        }
      }
      if (!sandbox->record) return discard(sandbox);
      finish(sandbox, out_of_memory ? TerminationReason::resource_limit : TerminationReason::failed,
             out_of_memory ? "out of memory" : "the sandbox ended unexpectedly", std::nullopt);
    });
  });
}

void RuntimeService::discard(const Live& live) {
  // What runs inside first: its requests to the gateway end with it.
  if (auto driver = driver_for(live->runtime_class)) {
    if (auto removed = (*driver)->remove(live->id); !removed)
      services_.telemetry.error("runtime", "sandbox_remove_failed",
                                {{"sandbox", live->id.to_string()}, {"error", removed.error().to_string()}});
  }
  live->gateway.reset();
  hub_->close(live->id);
  live->gone();
  proxy_->dismiss(live->id);
  if (live->lease) network_->release(*live->lease);
  std::error_code ignored;
  std::filesystem::remove_all(live->run_directory(), ignored);
  if (!live->record) std::filesystem::remove_all(live->directory, ignored);
}

void RuntimeService::drop(const Live& live) {
  {
    const std::lock_guard lock(mutex_);
    live_.erase(live->id);
  }
  if (live->finishing.exchange(true)) return;
  tasks_.post([this, live] {
    discard(live);
    std::error_code ignored;
    std::filesystem::remove_all(live->directory, ignored);
  });
}

Live RuntimeService::take_warm(const ImageStore::Image& image, const std::string& runtime_class,
                               const ResourceLimits& limits) {
  const std::lock_guard lock(mutex_);
  ResourceLimits of_pool;
  of_pool.time = limits.time;  // kept by a timer, not by the sandbox
  if (!(limits == of_pool)) return nullptr;
  const auto it = std::find_if(pool_.begin(), pool_.end(), [&](const Live& live) {
    return live->image_digest == image.digest && live->runtime_class == runtime_class && !live->ended();
  });
  if (it == pool_.end()) return nullptr;
  auto live = std::move(*it);
  pool_.erase(it);
  pool_changed_.notify_all();
  return live;
}

void RuntimeService::keep_pool() {
  std::unique_lock lock(mutex_);
  Nanos pause{};
  while (!stopping_) {
    if (pool_.size() >= options_.pool_size) {
      pool_changed_.wait(lock);
      continue;
    }
    if (pause > Nanos(0)) {
      pool_changed_.wait_for(lock, pause);
      if (stopping_) return;
    }
    lock.unlock();
    auto fresh = make_warm();
    lock.lock();
    if (fresh) {
      pool_problem_.clear();
      pause = Nanos(0);
      pool_.push_back(std::move(*fresh));
    } else {
      pool_problem_ = fresh.error().to_string();
      services_.telemetry.warn("runtime", "pool_not_filled", {{"error", pool_problem_}});
      pause = std::clamp<Nanos>(pause * 2, std::chrono::seconds(1), std::chrono::minutes(1));
    }
  }
}

Result<Live> RuntimeService::make_warm() {
  const auto image = CRETO_TRY(images_.get(options_.pool_image));
  auto* driver = CRETO_TRY(driver_for(options_.runtime_class));
  return make_sandbox(*driver, image, ResourceLimits{}, services_.clock.monotonic() + options_.ready_timeout);
}

}  // namespace creto::runtime
