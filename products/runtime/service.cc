#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "actions.h"
#include "backlog.h"
#include "creto/audit/audit_log.h"
#include "creto/authz/authz.h"
#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "creto/crypto/signing.h"
#include "creto/io/http_server.h"
#include "creto/io/idempotency.h"
#include "creto/nhi/nhi.h"
#include "creto/vault/vault.h"
#include "driver/init_program.h"
#include "events.h"
#include "gateway/agent_doors.h"
#include "images.h"
#include "live_sandbox.h"
#include "net/egress_proxy.h"
#include "tasks.h"

namespace creto::runtime {
namespace {

using Live = std::shared_ptr<LiveSandbox>;

constexpr Nanos idempotency_window = std::chrono::hours(24);
constexpr std::string_view spawn_operation = "runtime.spawn";

Error invalid(std::string message) { return Error(Product::runtime, ErrorKind::invalid_input, std::move(message)); }

int exit_code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

bool is_variable_name(std::string_view name) {
  return !name.empty() && name.size() <= 128 && !(name.front() >= '0' && name.front() <= '9') &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
         });
}

Result<> check_strings(std::string_view field, const std::vector<std::string>& values) {
  std::size_t size = 0;
  for (const auto& value : values) {
    if (value.find('\0') != std::string::npos || !is_valid_utf8(value))
      return invalid(fmt::format("{}: must be text without zero bytes", field));
    size += value.size();
  }
  if (values.size() > 1024 || size > 256 << 10)
    return Error(Product::runtime, ErrorKind::too_large, fmt::format("{}: is larger than 256 KiB", field));
  return {};
}

Result<> check_environment(const std::map<std::string, std::string>& environment) {
  std::vector<std::string> values;
  for (const auto& [name, value] : environment) {
    if (!is_variable_name(name)) return invalid("environment: names must be [A-Za-z_][A-Za-z0-9_]{0,127}");
    values.push_back(value);
  }
  return check_strings("environment", values);
}

Result<> check_spec(const SandboxSpec& spec) {
  CRETO_TRY(check_strings("command", spec.command));
  CRETO_TRY(check_environment(spec.environment));
  if (!spec.working_directory.empty() && spec.working_directory.front() != '/')
    return invalid("working_directory: must be absolute");
  CRETO_TRY(check_strings("working_directory", {spec.working_directory}));
  const auto& l = spec.limits;
  if (l.cpu_millicores < 10 || l.cpu_millicores > 1'000'000)
    return invalid("limits.cpu_millicores: must be 10 to 1000000");
  if (l.memory_bytes < 32ull << 20 || l.memory_bytes > 1ull << 40)
    return invalid("limits.memory_bytes: must be 32 MiB to 1 TiB");
  if (l.pids < 8 || l.pids > 32768) return invalid("limits.pids: must be 8 to 32768");
  if (l.time < Nanos(0)) return invalid("limits.time: must not be negative");
  if (spec.secrets.size() > 64) return invalid("secrets: 64 at most");
  if (spec.egress.size() > 256) return invalid("egress: 256 rules at most");
  for (const auto& rule : spec.egress) {
    const auto name = rule.host.starts_with("*.") ? rule.host.substr(2) : rule.host;
    if (rule.host != "*" && !egress::is_host_name(name))
      return invalid(fmt::format("egress: `{}` is no host", rule.host.substr(0, 64)));
  }
  if (spec.reasoning.size() > 16 << 10)
    return Error(Product::runtime, ErrorKind::too_large, "reasoning: is longer than 16 KiB");
  return {};
}

Json egress_json(const std::vector<EgressRule>& rules) {
  Json list = Json::array();
  for (const auto& rule : rules)
    list.push_back({{"host", rule.host}, {"port", rule.port}, {"verdict", to_string(rule.verdict)}});
  return list;
}

authz::Value egress_value(const std::vector<EgressRule>& rules) {
  std::vector<authz::Value> list;
  for (const auto& rule : rules)
    list.push_back(authz::Value::record(
        {{"host", rule.host}, {"port", static_cast<std::int64_t>(rule.port)}, {"verdict", to_string(rule.verdict)}}));
  return authz::Value::set(std::move(list));
}

/// How a sandbox is set up, whole: what an attestation vouches for, and what an approval is bound to.
Json config_json(const SandboxSpec& spec) {
  return {{"command", spec.command},
          {"environment", spec.environment},
          {"working_directory", spec.working_directory},
          {"egress", egress_json(spec.egress)},
          {"cpu_millicores", spec.limits.cpu_millicores},
          {"memory_bytes", spec.limits.memory_bytes},
          {"pids", spec.limits.pids},
          {"time_ns", std::to_string(spec.limits.time.count())}};
}

bool matches(const EgressRule& rule, const EgressTarget& target) {
  if (rule.port != 0 && rule.port != target.port) return false;
  if (rule.host == "*" || rule.host == target.host) return true;
  return rule.host.starts_with("*.") && target.host.size() > rule.host.size() - 1 &&
         target.host.ends_with(rule.host.substr(1));
}

std::string sandbox_uri(const SandboxId& id) { return "runtime:sandbox:" + id.to_string(); }

class RuntimeService final : public Runtime {
 public:
  RuntimeService(RuntimeServices services, RuntimeOptions options)
      : services_(services),
        options_(std::move(options)),
        events_(services_),
        approvals_(services_, events_),
        images_(options_.image_directory, options_.state_directory + "/rootfs") {}

  ~RuntimeService() override {
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

  Result<> open() {
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

  // --- spawn ---------------------------------------------------------------------------------------------------------

  Result<SpawnResult> spawn(const Context& ctx, const SandboxSpec& spec) override {
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

  Result<SpawnResult> spawn_child(const Context& ctx, const SandboxId& parent, SandboxSpec spec) override {
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

  // --- the rest of the interface ------------------------------------------------------------------------------------

  Result<ExecResult> exec(const Context& ctx, const SandboxId& id, const ExecRequest& request) override {
    const auto live = find_live(ctx.org, id);
    if (!live) return not_here(id);
    CRETO_TRY(may_touch(ctx, *live->record));
    if (request.command.empty()) return invalid("command: must not be empty");
    CRETO_TRY(check_strings("command", request.command));
    CRETO_TRY(check_environment(request.environment));
    if (request.input.size() > 1 << 20)
      return Error(Product::runtime, ErrorKind::too_large, "input: is larger than 1 MiB");
    auto record = audit::AuditRecord::of(ctx, "sandbox_exec", sandbox_uri(id));
    record.metadata = Json{{"command", request.command}}.dump();
    CRETO_TRY(sql::write(services_.database, ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(audit::record(tx, ctx, record));
      return {};
    }));
    const bool connected =
        live->wait_connected(std::min(ctx.deadline, services_.clock.monotonic() + options_.ready_timeout));
    if (!connected && live->ended()) return not_here(id);
    if (!connected)
      return Error(Product::runtime, ErrorKind::unavailable, "the sandbox has not come back to this server yet");
    const auto stream = live->begin_stream();
    const auto forget = std::shared_ptr<void>(nullptr, [&](void*) { live->forget_stream(stream); });
    std::vector<std::string> environment;
    for (const auto& [name, value] : request.environment) environment.push_back(name + "=" + value);
    CRETO_TRY(hub_->start(id, stream, request.working_directory, request.command, environment));
    for (std::size_t at = 0; at < request.input.size(); at += 256 << 10)
      CRETO_TRY(hub_->input(id, stream, std::string_view(request.input).substr(at, 256 << 10)));
    CRETO_TRY(hub_->input(id, stream, {}));
    ExecResult result;
    auto command = live->wait_over(stream, std::min(ctx.deadline, services_.clock.monotonic() + request.timeout));
    if (!command) {
      result.timed_out = true;
      CRETO_TRY(hub_->signal(id, stream, SIGKILL));
      command = live->wait_over(stream, services_.clock.monotonic() + std::chrono::seconds(5));
      if (!command) return Error(Product::runtime, ErrorKind::timeout, "the command did not end");
    }
    if (!command->failure.empty())
      return Error(Product::runtime, ErrorKind::invalid_input, fmt::format("command: {}", command->failure));
    result.exit_code = exit_code_of(command->status);
    result.out = std::move(command->out);
    result.err = std::move(command->err);
    return result;
  }

  Result<Sandbox> terminate(const Context& ctx, const SandboxId& id) override {
    const auto record = CRETO_TRY(stored(ctx, id));
    CRETO_TRY(may_touch(ctx, record));
    if (record.sandbox.state == SandboxState::terminated) return record.sandbox;
    const auto live = find_live(ctx.org, id);
    if (!live) return not_here(id);
    finish(live, TerminationReason::manual, fmt::format("by {}", ctx.caller_text()), std::nullopt);
    return wait_terminated(ctx, id);
  }

  Result<Sandbox> get(const Context& ctx, const SandboxId& id) override {
    const auto record = CRETO_TRY(stored(ctx, id));
    CRETO_TRY(may_touch(ctx, record));
    return record.sandbox;
  }

  Result<std::vector<Sandbox>> list(const Context& ctx, const SandboxFilter& filter) override {
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

  Result<OutputChunk> output(const Context& ctx, const SandboxId& id, OutputStream stream,
                             std::uint64_t offset) override {
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

  Result<std::size_t> sweep(const Context&) override {
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

  Result<> when_terminated(const Context& ctx, const SandboxId& id,
                           std::function<void(const Sandbox&)> on_end) override {
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

  Result<> verify_attestation(const Context& ctx, const Attestation& attestation) override {
    const auto failed = [](std::string why) {
      return Error(Product::runtime, ErrorKind::attestation_failed, std::move(why));
    };
    if (attestation.document.size() > 64 << 10) return failed("the document is larger than 64 KiB");
    const auto signed_text = "sandbox_attestation\n" + attestation.document;
    auto verified = services_.nhi.verify(events_.service_context(ctx.org), events_.service(), as_bytes(signed_text),
                                         attestation.signature);
    if (!verified) return failed("the signature is not the runtime's").with_cause(std::move(verified).error());
    const auto document = parse_json(attestation.document);
    if (!document || !document->is_object()) return failed("the document is no JSON object");
    for (const char* field : {"sandbox_id", "agent", "image_digest", "config_hash", "runtime_class", "runtime_version",
                              "sandbox_key", "nonce", "timestamp_ns"})
      if (!document->contains(field)) return failed(fmt::format("the document lacks `{}`", field));
    return {};
  }

  Result<std::vector<ImageInfo>> list_images(const Context&) override { return images_.list(); }

  Result<RuntimeStatus> status(const Context&) override {
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

  HealthStatus health() override {
    const std::lock_guard lock(mutex_);
    if (!pool_problem_.empty())
      return {Health::degraded, fmt::format("the warm pool cannot be filled: {}", pool_problem_)};
    return {};
  }

 private:
  struct Principal {
    Identity agent;
    DelegationChain chain;
  };

  std::string directory_of(const SandboxId& id) const {
    return fmt::format("{}/sandboxes/{}", options_.state_directory, id.to_string());
  }

  std::vector<std::filesystem::path> sandbox_directories() const {
    std::vector<std::filesystem::path> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(options_.state_directory + "/sandboxes", ignored))
      if (SandboxId::parse(entry.path().filename().string())) found.push_back(entry.path());
    return found;
  }

  static Error not_here(const SandboxId& id) {
    return Error(Product::runtime, ErrorKind::not_found, fmt::format("no running sandbox `{}`", id.to_string()));
  }

  /// Agents see and touch what acts for them. Humans and services were authorised for the method by the dispatcher.
  static Result<> may_touch(const Context& ctx, const SandboxRecord& record) {
    const auto& chain = record.sandbox.delegation_chain;
    if (ctx.caller && (!ctx.caller->is_agent() || std::find(chain.begin(), chain.end(), *ctx.caller) != chain.end()))
      return {};
    return Error(Product::runtime, ErrorKind::not_found,
                 fmt::format("there is no sandbox `{}`", record.sandbox.id.to_string()));
  }

  Live find_live(const std::string& org, const SandboxId& id) {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(id);
    return it != live_.end() && it->second->record->org == org ? it->second : nullptr;
  }

  std::vector<Live> all_live() {
    const std::lock_guard lock(mutex_);
    std::vector<Live> all;
    for (const auto& [id, live] : live_) all.push_back(live);
    return all;
  }

  Result<SandboxRecord> stored(const Context& ctx, const SandboxId& id) {
    auto record =
        CRETO_TRY(sql::read(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::find(tx, ctx.org, id); }));
    if (!record)
      return Error(Product::runtime, ErrorKind::not_found, fmt::format("there is no sandbox `{}`", id.to_string()));
    return std::move(*record);
  }

  Result<Sandbox> wait_terminated(const Context& ctx, const SandboxId& id) {
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

  Result<SandboxDriver*> driver_for(const std::string& runtime_class) {
    const std::lock_guard lock(drivers_mutex_);
    if (const auto it = drivers_.find(runtime_class); it != drivers_.end()) return it->second.get();
    auto driver = CRETO_TRY(SandboxDriver::create(
        {.runtime = runtime_class, .state_directory = options_.state_directory + "/" + runtime_class},
        services_.telemetry));
    return drivers_.emplace(runtime_class, std::move(driver)).first->second.get();
  }

  // --- making and claiming
  // --------------------------------------------------------------------------------------------

  Context agent_context(const Context& ctx, const Principal& principal) const {
    auto own = Context::of(principal.agent, principal.chain);
    own.org = ctx.org;
    own.deadline = ctx.deadline;
    own.trace = ctx.trace;
    own.idempotency_key = ctx.idempotency_key;
    own.request_hash = ctx.request_hash;
    return own;
  }

  Result<Principal> make_child(const Context& ctx, const Principal& parent) {
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

  Result<SpawnResult> spawn_for(const Context& ctx, const Principal& asking, const std::optional<SandboxId>& parent,
                                const SandboxSpec& spec, const std::function<Result<Principal>()>& resident_of) {
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

  /// What `concurrent` quotas count for as long as a sandbox lives: a hold named after it, which outlives no process by
  /// more than `RuntimeOptions::running_hold`.
  contracts::SpendRequest running_hold(const SandboxId& id, const Identity& agent, const DelegationChain& chain) const {
    return {ReservationId::from_bytes(id.bytes()),
            agent,
            chain,
            "sandbox_running",
            Decimal(1),
            Money{},
            options_.running_hold,
            {{"sandbox_id", id.to_string()}}};
  }

  /// Renews it in time, for as long as the sandbox lives.
  void keep_holding(const Live& live, Nanos after) {
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

  void release(const Context& ctx, const ReservationId& hold) {
    if (!services_.limits) return;
    if (auto released = services_.limits->release(ctx, hold); !released)
      services_.telemetry.warn("runtime", "release_failed", {{"error", released.error().to_string()}});
  }

  /// The sandbox of an earlier call with this key; none where none became ready.
  Result<std::optional<Sandbox>> earlier_spawn(const Context& ctx) {
    const auto found = CRETO_TRY(
        sql::read(services_.database, ctx, [&](sql::Tx& tx) { return io::earlier(tx, ctx, spawn_operation); }));
    if (!found) return std::nullopt;
    const auto id = CRETO_TRY(SandboxId::parse(*found));
    const auto record = CRETO_TRY(stored(ctx, id));
    return std::optional(record.sandbox);
  }

  template <class F>
  Result<SandboxId> once_spawn(sql::Tx& tx, const Context& ctx, F&& fn) {
    return io::once(
        tx, ctx, spawn_operation, idempotency_window, std::forward<F>(fn),
        [](const SandboxId& id) { return id.to_string(); },
        [](std::string_view text) { return SandboxId::parse(text); });
  }

  Result<Sandbox> bring_up(const Context& ctx, const Context& own, SandboxDriver& driver,
                           const ImageStore::Image& image, const SandboxSpec& spec, const authz::CheckRequest& check,
                           const std::optional<SandboxId>& parent,
                           const std::function<Result<Principal>()>& resident_of, const ReservationId& hold,
                           Monotonic started) {
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

  /// A sandbox that is nobody's yet: network, file system and init, waiting to be told who it is.
  Result<Live> make_sandbox(SandboxDriver& driver, const ImageStore::Image& image, const ResourceLimits& limits,
                            Monotonic deadline) {
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
      CRETO_TRY(
          write_text_file(live->directory + "/resolv.conf",
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

  void watch(SandboxDriver& driver, const Live& live) {
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

  /// Removes every trace of a sandbox on this machine. Idempotent.
  void discard(const Live& live) {
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

  /// One that was never claimed for good.
  void drop(const Live& live) {
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

  Live take_warm(const ImageStore::Image& image, const std::string& runtime_class, const ResourceLimits& limits) {
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

  void keep_pool() {
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

  Result<Live> make_warm() {
    const auto image = CRETO_TRY(images_.get(options_.pool_image));
    auto* driver = CRETO_TRY(driver_for(options_.runtime_class));
    return make_sandbox(*driver, image, ResourceLimits{}, services_.clock.monotonic() + options_.ready_timeout);
  }

  Result<Sandbox> claim(const Context& ctx, const Context& own, const Live& live, const ImageStore::Image& image,
                        const SandboxSpec& spec, const authz::CheckRequest& check,
                        const std::optional<SandboxId>& parent, const std::function<Result<Principal>()>& resident_of,
                        const ReservationId& hold, bool warm, Monotonic deadline) {
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

  Result<Sandbox> claim_held(const Context& ctx, const Context& own, const Live& live, const ImageStore::Image& image,
                             const SandboxSpec& spec, const authz::CheckRequest& check,
                             const std::optional<SandboxId>& parent, const Principal& resident,
                             const ReservationId& hold, bool warm, Monotonic deadline, Instant now) {
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

  /// An error is one that may pass; what stands in the way for good is logged, and their time ends them.
  Result<> revoke_secrets(const SandboxRecord& record) {
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

  /// The sandbox that the caller's key stands for: another one, where a parallel call was quicker. Key, approval and
  /// quota are used up in the transaction that makes it real: what fails before leaves them for the next try.
  Result<SandboxId> make_ready(const Context& ctx, const Context& agent_ctx, const Live& live, SandboxRecord& record,
                               vault::DelegatedSecrets& secrets, const ReservationId& hold,
                               const std::function<Result<>(sql::Tx&)>& use_approval, Monotonic deadline) {
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

  Result<> send_claim(const Live& live, const SandboxRecord& record, const vault::DelegatedSecrets& secrets,
                      const crypto::SigningKey& sandbox_key) {
    std::map<std::string, std::string> plain = {
        {"PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}, {"HOME", "/home/agent"}, {"LANG", "C.UTF-8"}};
    for (const auto& [name, value] : record.environment) plain[name] = value;
    plain["CRETO_GATEWAY"] = "/run/creto/gateway.sock";
    plain["CRETO_SANDBOX_ID"] = record.sandbox.id.to_string();
    plain["CRETO_AGENT"] = record.sandbox.agent.text();
    std::vector<Secret> environment;
    for (const auto& [name, value] : plain)
      environment.push_back(Secret::copy_of(std::string_view(name + "=" + value)));
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

  Result<std::string> usage_properties(const Sandbox& sandbox, Json more) {
    more["sandbox_id"] = sandbox.id.to_string();
    more["runtime_class"] = sandbox.runtime_class;
    more["cpu_millicores"] = sandbox.limits.cpu_millicores;
    more["memory_bytes"] = std::to_string(sandbox.limits.memory_bytes);
    return canonical_json(more);
  }

  Result<Attestation> attest(const SandboxRecord& record, const crypto::SigningKey& sandbox_key) {
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

  Result<> open_gateway(const Live& live) {
    live->gateway_directory.reset(::open(live->run_directory().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!live->gateway_directory.valid()) return system_error("cannot open the sandbox' directory");
    const auto& record = *live->record;
    const Principal principal{record.sandbox.agent, record.sandbox.delegation_chain};
    GatewayHooks hooks;
    hooks.context = [this, org = record.org, principal] {
      auto ctx = Context::of(principal.agent, principal.chain);
      ctx.org = org;
      ctx.deadline = services_.clock.monotonic() + std::chrono::minutes(5);
      return ctx;
    };
    hooks.spawn_child = [this, id = live->id](const Context& ctx, SandboxSpec spec) {
      return spawn_child(ctx, id, std::move(spec));
    };
    const auto own_child = [this, id = live->id](const Context& ctx, const SandboxId& child) -> Result<Sandbox> {
      auto sandbox = CRETO_TRY(get(ctx, child));
      if (sandbox.parent != id)
        return Error(Product::runtime, ErrorKind::not_found,
                     fmt::format("there is no sandbox `{}`", child.to_string()));
      return sandbox;
    };
    hooks.child = own_child;
    hooks.end_child = [this, own_child](const Context& ctx, const SandboxId& child) -> Result<Sandbox> {
      CRETO_TRY(own_child(ctx, child));
      return terminate(ctx, child);
    };
    http::ServerOptions server;
    // Through a descriptor: the path itself may be longer than a unix socket's address.
    server.unix_path = fmt::format("/proc/self/fd/{}/gateway.sock", live->gateway_directory.get());
    server.unix_mode = 0666;
    server.io_threads = 1;
    server.workers = 1;
    server.connections_max = 64;
    server.body_bytes_max = 2 << 20;
    live->gateway =
        CRETO_TRY(http::Server::start_async(server,
                                            gateway_handler({record.org, live->id, principal.agent, principal.chain},
                                                            *doors_, services_, gateway_tasks_, std::move(hooks)),
                                            services_.telemetry));
    return {};
  }

  /// Before its init can tell anything: an end that nobody listens to would be lost.
  void arm(const Live& live) {
    live->on_command_end = [this, weak = std::weak_ptr(live)](int status) {
      tasks_.post([this, weak, status] {
        const auto sandbox = weak.lock();
        if (!sandbox) return;
        const int code = exit_code_of(status);
        finish(sandbox, code == 0 ? TerminationReason::completed : TerminationReason::failed,
               code == 0 ? "" : fmt::format("exit code {}", code), code);
      });
    };
  }

  /// Starts the command and the clock. After a restart too: init says so where the command runs already.
  void begin(const Live& live) {
    const auto& record = *live->record;
    if (!record.sandbox.command.empty()) start_command(live);
    if (record.sandbox.limits.time > Nanos(0)) {
      const auto left = *record.sandbox.ready_at + record.sandbox.limits.time - services_.clock.now();
      tasks_.post_after(std::max<Nanos>(left, Nanos(0)), [this, weak = std::weak_ptr(live)] {
        if (const auto sandbox = weak.lock())
          finish(sandbox, TerminationReason::timeout, "over its time limit", std::nullopt);
      });
    }
  }

  /// As soon as its init is there to start it.
  void start_command(const Live& live) {
    live->when_connected([this, weak = std::weak_ptr(live)] {
      tasks_.post([this, weak] {
        const auto sandbox = weak.lock();
        if (!sandbox || sandbox->finishing) return;
        const auto& record = *sandbox->record;
        auto started = hub_->start(sandbox->id, command_stream, record.working_directory, record.sandbox.command, {});
        if (started) started = hub_->input(sandbox->id, command_stream, {});
        if (started) return;
        if (started.error().kind() == ErrorKind::unavailable) return start_command(sandbox);  // lost it meanwhile
        finish(sandbox, TerminationReason::failed, started.error().to_string(), std::nullopt);
      });
    });
  }

  // --- the end
  // ---------------------------------------------------------------------------------------------------------

  void finish(const Live& live, TerminationReason reason, const std::string& detail, std::optional<int> exit_code) {
    if (live->finishing.exchange(true)) return;
    tasks_.post([this, live, reason, detail, exit_code] { take_down(live, reason, detail, exit_code); });
  }

  /// Children do not outlive who answers for them.
  void end_without_parent(const Live& live) {
    const auto& parent = live->record->sandbox.parent;
    if (!parent) return;
    {
      const std::lock_guard lock(mutex_);
      const auto it = live_.find(*parent);
      if (it != live_.end() && !it->second->finishing) return;
    }
    finish(live, TerminationReason::manual, "its parent ended", std::nullopt);
  }

  void take_down(const Live& live, TerminationReason reason, const std::string& detail, std::optional<int> exit_code) {
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

  /// What init told is gone with the sandbox: a process that dies while it takes it down leaves this to the next one.
  void note_ending(const SandboxRecord& record) {
    auto ctx = events_.service_context(record.org);
    ctx.deadline = services_.clock.monotonic() + std::chrono::seconds(5);  // it ends without a database too
    auto noted = sql::write(services_.database, ctx, [&](sql::Tx& tx) { return RuntimeStore::update(tx, record); });
    if (!noted)
      services_.telemetry.warn("runtime", "ending_not_noted",
                               {{"sandbox", record.sandbox.id.to_string()}, {"error", noted.error().to_string()}});
  }

  /// What happened is recorded, however long the database takes to come back. Only what holds no secret any more has
  /// ended: what is not yet recorded as ended a later process takes up.
  void record_end(const Live& live, const SandboxRecord& record, const SandboxUsage& usage, Nanos pause) {
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

  /// Nobody was billed or told of it: there is nothing to take back.
  Result<> try_record_failed_spawn(SandboxRecord record, const SandboxUsage& usage) {
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

  Result<> try_record_end(const SandboxRecord& record, const SandboxUsage& usage) {
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

  // --- egress
  // -----------------------------------------------------------------------------------------------------------

  Result<> decide_egress(const EgressTarget& target) {
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
      const auto rule =
          std::find_if(rules.begin(), rules.end(), [&](const EgressRule& r) { return matches(r, target); });
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
      const auto decision =
          services_.authz.admit(ctx, {record.sandbox.agent,
                                      record.sandbox.delegation_chain,
                                      "network.egress",
                                      {"Host", target.text()},
                                      {{"host", target.host}, {"port", static_cast<std::int64_t>(target.port)}},
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

  void record_egress(const EgressClosed& closed) {
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

  // --- after a restart
  // ------------------------------------------------------------------------------------------------

  /// Takes over what runs, records the end of what does not, and removes what belongs to nobody.
  Result<> take_over() {
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

  /// Waits for nobody: its init comes back when it finds us, at the latest after `ready_timeout`.
  Result<> resume(const Live& live) {
    proxy_->admit(live->lease->guest_address, live->id);
    arm(live);
    tasks_.post_after(options_.ready_timeout, [this, weak = std::weak_ptr(live)] {
      const auto sandbox = weak.lock();
      if (sandbox && !sandbox->was_connected())
        finish(sandbox, TerminationReason::failed, "cannot be taken over: its init did not connect again",
               std::nullopt);
    });
    CRETO_TRY(live->open_output());
    CRETO_TRY(hub_->listen(live->id, live->run_directory(), live));
    CRETO_TRY(open_gateway(live));
    watch(**driver_for(live->runtime_class), live);
    begin(live);
    keep_holding(live, Nanos(0));
    return {};
  }

  RuntimeServices services_;
  const RuntimeOptions options_;
  Events events_;
  Approvals approvals_;
  ImageStore images_;
  std::string init_program_;
  Tasks tasks_;  ///< beginnings and ends of sandboxes
  Backlog backlog_{tasks_, services_.telemetry};
  Tasks gateway_tasks_;  ///< what agents ask; may wait for models, upstreams and humans' databases
  std::unique_ptr<AgentDoors> doors_;
  std::unique_ptr<ControlHub> hub_;
  std::unique_ptr<EgressProxy> proxy_;
  std::unique_ptr<SandboxNetwork> network_;
  std::mutex drivers_mutex_;
  std::map<std::string, std::unique_ptr<SandboxDriver>> drivers_;

  std::mutex mutex_;
  std::condition_variable pool_changed_;
  bool stopping_ = false;
  std::string pool_problem_;
  std::vector<Live> pool_;          ///< warm, nobody's
  std::map<SandboxId, Live> live_;  ///< claimed and not yet recorded as ended
  std::map<SandboxId, std::vector<std::function<void(const Sandbox&)>>> waiting_;
  std::thread pool_thread_;
};

}  // namespace

Result<std::unique_ptr<Runtime>> create_runtime(RuntimeServices services, RuntimeOptions options) {
  auto runtime = std::make_unique<RuntimeService>(services, std::move(options));
  CRETO_TRY(runtime->open());
  return runtime;
}

}  // namespace creto::runtime
