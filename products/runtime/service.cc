#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "creto/audit/audit_log.h"
#include "creto/crypto/hash.h"
#include "driver/init_program.h"
#include "runtime_service.h"

namespace creto::runtime {

RuntimeService::~RuntimeService() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  pool_changed_.notify_all();
  if (pool_thread_.joinable()) pool_thread_.join();
  // Nobody inside asks for anything more; what was begun is brought to its end.
  gateway_tasks_.stop();
  if (!options_.keep_sandboxes)
    for (const auto& live : all_live()) finish(live, TerminationReason::manual, "the runtime stopped", std::nullopt);
  tasks_.finish();
  // Claimed sandboxes live on for the next process; warm ones belong to nobody.
  for (const auto& sandbox : all_live()) {
    sandbox->gateway.reset();
    hub_->close(sandbox->id);
    sandbox->gone();
  }
  for (const auto& sandbox : pool_) discard(sandbox);
  // Gateway and cgroups go with the last sandbox: whoever lives on needs them.
  if (network_ && network_->leases().empty()) network_->remove();
  drivers_.clear();
  proxy_.reset();
  hub_.reset();
  backlog_.finish();
}

Result<> RuntimeService::open() {
  CRETO_TRY(RuntimeStore::migrate(services_.database));
  CRETO_TRY(audit::prepare(services_.database));
  std::map<std::string, ActionDeclaration> actions;
  if (!options_.actions_file.empty()) {
    const auto text = CRETO_TRY(read_text_file(options_.actions_file));
    actions = CRETO_TRY(parse_actions(text, options_.variables));
  }
  CRETO_TRY(make_directory(options_.state_directory, 0700));
  CRETO_TRY(make_directory(options_.state_directory + "/sandboxes", 0700));
  init_program_ = CRETO_TRY(install_init_program(options_.state_directory));
  doors_ = std::make_unique<AgentDoors>(services_, events_, approvals_, gateway_tasks_, backlog_, std::move(actions));
  CRETO_TRY(services_.nhi.ensure_service(events_.service_context("default"), events_.service()));

  CRETO_TRY(driver_for(options_.runtime_class));
  hub_ = CRETO_TRY(ControlHub::create(services_.telemetry));
  const auto digest = hex(crypto::sha3_256(as_bytes(std::filesystem::absolute(options_.state_directory).string())));
  network_ = CRETO_TRY(SandboxNetwork::create(digest.substr(0, 8), services_.telemetry));
  EgressOptions egress;
  egress.static_hosts = options_.static_hosts;
  proxy_ = CRETO_TRY(EgressProxy::create(
      std::move(egress), CRETO_TRY(network_->open_sockets()),
      [this](const EgressTarget& target) { return decide_egress(target); },
      [this](const EgressClosed& closed) { record_egress(closed); }, services_.telemetry));
  CRETO_TRY(take_over());
  // Only now: what ended meanwhile must not be taken down while it is being taken over.
  tasks_.start(4);
  gateway_tasks_.start(16);
  CRETO_TRY(doors_->resume());
  if (!options_.pool_image.empty() && options_.pool_size > 0) pool_thread_ = std::thread([this] { keep_pool(); });
  return {};
}

Result<Sandbox> RuntimeService::terminate(const Context& ctx, const SandboxId& id) {
  const auto record = CRETO_TRY(stored(ctx, id));
  CRETO_TRY(may_touch(ctx, record));
  if (record.sandbox.state == SandboxState::terminated) return record.sandbox;
  const auto live = find_live(ctx.org, id);
  if (!live) return not_here(id);
  finish(live, TerminationReason::manual, fmt::format("by {}", ctx.caller_text()), std::nullopt);
  return wait_terminated(ctx, id);
}

Result<Sandbox> RuntimeService::get(const Context& ctx, const SandboxId& id) {
  const auto record = CRETO_TRY(stored(ctx, id));
  CRETO_TRY(may_touch(ctx, record));
  return record.sandbox;
}

Result<std::vector<Sandbox>> RuntimeService::list(const Context& ctx, const SandboxFilter& filter) {
  if (filter.limit < 1 || filter.limit > 1000) return invalid("limit: must be 1 to 1000");
  const auto records =
      CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) -> Result<std::vector<SandboxRecord>> {
        return RuntimeStore::list(tx, ctx.org, filter);
      }));
  std::vector<Sandbox> sandboxes;
  for (const auto& record : records)
    if (may_touch(ctx, record)) sandboxes.push_back(record.sandbox);
  return sandboxes;
}

Result<OutputChunk> RuntimeService::output(const Context& ctx, const SandboxId& id, OutputStream stream,
                                           std::uint64_t offset) {
  const auto record = CRETO_TRY(stored(ctx, id));
  CRETO_TRY(may_touch(ctx, record));
  OutputChunk chunk;
  chunk.next_offset = offset;
  const Fd fd(::open(LiveSandbox(id, directory_of(id)).output_path(stream).c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.valid()) {
    chunk.bytes.resize(1 << 20);
    const auto n = ::pread(fd.get(), chunk.bytes.data(), chunk.bytes.size(), static_cast<off_t>(offset));
    if (n < 0) return system_error("cannot read the output");
    chunk.bytes.resize(static_cast<std::size_t>(n));
    chunk.next_offset += static_cast<std::uint64_t>(n);
  }
  const bool over = record.sandbox.state == SandboxState::terminated;
  if (!fd.valid() && over && record.sandbox.ready_at)
    return Error(Product::runtime, ErrorKind::not_found,
                 fmt::format("the output of sandbox `{}` is not kept any more", id.to_string()));
  chunk.complete = chunk.bytes.empty() && over;
  return chunk;
}

Result<std::size_t> RuntimeService::sweep(const Context& ctx) {
  CRETO_TRY(sql::write(services_.database, ctx,
                       [&](sql::Tx& tx) { return RuntimeStore::forget_waiting(tx, services_.clock.now()); }));
  struct Kept {
    std::filesystem::path directory;
    Instant ended_at;
    std::uint64_t bytes;
  };
  std::vector<Kept> kept;
  for (const auto& directory : sandbox_directories()) {
    std::error_code ignored;
    if (std::filesystem::exists(directory / "run", ignored)) continue;  // it lives
    // Nothing was written there since its end took `run` away.
    struct stat info{};
    if (::stat(directory.c_str(), &info) != 0) continue;
    const Instant ended_at(std::chrono::seconds(info.st_mtim.tv_sec) + Nanos(info.st_mtim.tv_nsec));
    std::uint64_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(directory, ignored))
      if (const auto size = file.file_size(ignored); !ignored) bytes += size;
    kept.push_back({directory, ended_at, bytes});
  }
  std::sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.ended_at > b.ended_at; });
  std::uint64_t total = 0;
  std::size_t removed = 0;
  for (const auto& one : kept) {
    total += one.bytes;
    const bool old = services_.clock.now() - one.ended_at > options_.output_age;
    if (!old && (one.bytes == 0 || total <= options_.output_bytes_max)) continue;
    std::error_code failed;
    std::filesystem::remove_all(one.directory, failed);
    if (failed)
      return Error(Product::runtime, ErrorKind::unavailable,
                   fmt::format("cannot remove `{}`: {}", one.directory.string(), failed.message()));
    ++removed;
  }
  return removed;
}

Result<> RuntimeService::when_terminated(const Context& ctx, const SandboxId& id,
                                         std::function<void(const Sandbox&)> on_end) {
  {
    // Registered before it is looked up, so that an end in between is not missed.
    const std::lock_guard lock(mutex_);
    if (live_.contains(id)) {
      const auto& record = *live_.at(id)->record;
      if (record.org != ctx.org) return not_here(id);
      CRETO_TRY(may_touch(ctx, record));
      waiting_[id].push_back(std::move(on_end));
      return {};
    }
  }
  const auto record = CRETO_TRY(stored(ctx, id));
  CRETO_TRY(may_touch(ctx, record));
  if (record.sandbox.state != SandboxState::terminated) return not_here(id);
  on_end(record.sandbox);
  return {};
}

Result<> RuntimeService::verify_attestation(const Context& ctx, const Attestation& attestation) {
  const auto failed = [](std::string why) {
    return Error(Product::runtime, ErrorKind::attestation_failed, std::move(why));
  };
  if (attestation.document.size() > 64 << 10) return failed("the document is larger than 64 KiB");
  const auto document = parse_json(attestation.document);
  if (!document || !document->is_object()) return failed("the document is no JSON object");
  for (const char* field : {"sandbox_id", "agent", "image_digest", "config_hash", "runtime_class", "runtime_version",
                            "sandbox_key", "nonce", "timestamp_ns"})
    if (!document->contains(field)) return failed(fmt::format("the document lacks `{}`", field));
  JsonReader reader(*document, "attestation");
  const Instant made = from_unix_ns(reader.integer("timestamp_ns"));
  // It says how a sandbox was made, and goes on saying so when the runtime has newer keys.
  const auto signed_text = "sandbox_attestation\n" + attestation.document;
  auto verified = services_.nhi.verify_past(events_.service_context(ctx.org), events_.service(), as_bytes(signed_text),
                                            attestation.signature, {}, made);
  if (!verified) return failed("the signature is not the runtime's").with_cause(std::move(verified).error());
  return {};
}

Result<RuntimeStatus> RuntimeService::status(const Context&) {
  auto* driver = CRETO_TRY(driver_for(options_.runtime_class));
  const auto& probe = driver->probe();
  const std::lock_guard lock(mutex_);
  return RuntimeStatus{probe.runtime,
                       probe.isolation,
                       probe.version,
                       std::string(to_string(probe.cgroups)),
                       network_ != nullptr,
                       pool_.size(),
                       options_.pool_image.empty() ? 0 : options_.pool_size,
                       live_.size()};
}

HealthStatus RuntimeService::health() {
  const std::lock_guard lock(mutex_);
  if (!pool_problem_.empty())
    return {Health::degraded, fmt::format("the warm pool cannot be filled: {}", pool_problem_)};
  return {};
}

std::string RuntimeService::directory_of(const SandboxId& id) const {
  return fmt::format("{}/sandboxes/{}", options_.state_directory, id.to_string());
}

std::vector<std::filesystem::path> RuntimeService::sandbox_directories() const {
  std::vector<std::filesystem::path> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(options_.state_directory + "/sandboxes", ignored))
    if (SandboxId::parse(entry.path().filename().string())) found.push_back(entry.path());
  return found;
}

Error RuntimeService::not_here(const SandboxId& id) {
  return Error(Product::runtime, ErrorKind::not_found, fmt::format("no running sandbox `{}`", id.to_string()));
}

Result<> RuntimeService::may_touch(const Context& ctx, const SandboxRecord& record) {
  const auto& chain = record.sandbox.delegation_chain;
  if (ctx.caller && (!ctx.caller->is_agent() || std::find(chain.begin(), chain.end(), *ctx.caller) != chain.end()))
    return {};
  return Error(Product::runtime, ErrorKind::not_found,
               fmt::format("there is no sandbox `{}`", record.sandbox.id.to_string()));
}

Live RuntimeService::find_live(const std::string& org, const SandboxId& id) {
  const std::lock_guard lock(mutex_);
  const auto it = live_.find(id);
  return it != live_.end() && it->second->record->org == org ? it->second : nullptr;
}

std::vector<Live> RuntimeService::all_live() {
  const std::lock_guard lock(mutex_);
  std::vector<Live> all;
  for (const auto& [id, live] : live_) all.push_back(live);
  return all;
}

Result<SandboxRecord> RuntimeService::stored(const Context& ctx, const SandboxId& id) {
  auto record =
      CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::find(tx, ctx.org, id); }));
  if (!record)
    return Error(Product::runtime, ErrorKind::not_found, fmt::format("there is no sandbox `{}`", id.to_string()));
  return std::move(*record);
}

Result<Sandbox> RuntimeService::wait_terminated(const Context& ctx, const SandboxId& id) {
  struct Waiting {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Sandbox> sandbox;
  };
  auto waiting = std::make_shared<Waiting>();
  CRETO_TRY(when_terminated(ctx, id, [waiting](const Sandbox& sandbox) {
    const std::lock_guard lock(waiting->mutex);
    waiting->sandbox = sandbox;
    waiting->changed.notify_all();
  }));
  std::unique_lock lock(waiting->mutex);
  const auto until = std::min(ctx.deadline, services_.clock.monotonic() + std::chrono::seconds(60));
  if (!waiting->changed.wait_until(lock, until, [&] { return waiting->sandbox.has_value(); }))
    return Error(Product::runtime, ErrorKind::timeout, "the sandbox is still being taken down");
  return std::move(*waiting->sandbox);
}

Result<SandboxDriver*> RuntimeService::driver_for(const std::string& runtime_class) {
  const std::lock_guard lock(drivers_mutex_);
  if (const auto it = drivers_.find(runtime_class); it != drivers_.end()) return it->second.get();
  auto driver = CRETO_TRY(SandboxDriver::create(
      {.runtime = runtime_class, .state_directory = options_.state_directory + "/" + runtime_class},
      services_.telemetry));
  return drivers_.emplace(runtime_class, std::move(driver)).first->second.get();
}

Result<std::unique_ptr<Runtime>> create_runtime(RuntimeServices services, RuntimeOptions options) {
  auto runtime = std::make_unique<RuntimeService>(services, std::move(options));
  CRETO_TRY(runtime->open());
  return runtime;
}

}  // namespace creto::runtime
