#include "driver/sandbox_driver.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <unordered_map>

#include "creto/common/assert.h"
#include "creto/common/json.h"
#include "driver/init_program.h"
#include "driver/process.h"

namespace creto::runtime {
namespace {

constexpr long cgroup2_magic = 0x63677270;

CgroupMode detect_cgroups() {
  struct statfs root{};
  if (::statfs("/sys/fs/cgroup", &root) != 0) return CgroupMode::none;
  if (root.f_type == cgroup2_magic) return CgroupMode::v2;
  const bool memory = std::filesystem::exists("/sys/fs/cgroup/memory");
  if (!memory) return CgroupMode::none;
  return std::filesystem::exists("/sys/fs/cgroup/unified") ? CgroupMode::hybrid : CgroupMode::v1;
}

std::uint64_t number_in(const std::string& path, std::string_view key) {
  const auto text = read_text_file(path, 64 << 10);
  if (!text) return 0;
  if (key.empty()) return std::strtoull(text->c_str(), nullptr, 10);
  std::size_t at = 0;
  while (at < text->size()) {
    const auto end = std::min(text->find('\n', at), text->size());
    const auto line = std::string_view(*text).substr(at, end - at);
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ')
      return std::strtoull(line.data() + key.size() + 1, nullptr, 10);
    at = end + 1;
  }
  return 0;
}

/// What a runtime leaves to its nearest subreaper besides the main process:
/// gofers, exec clients' leftovers.
void reap_orphans() {
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    const auto children = read_text_file(task.path() / "children", 64 << 10);
    if (!children) continue;
    const char* at = children->c_str();
    for (;;) {
      char* end = nullptr;
      const auto pid = static_cast<pid_t>(std::strtol(at, &end, 10));
      if (end == at) break;
      at = end;
      const auto name = read_text_file(fmt::format("/proc/{}/comm", pid), 64).value_or("");
      // Only names that no child we started ourselves has: those belong to
      // whoever waits for them.
      const bool ours =
          name == "exe\n" || name.starts_with("runsc-") || name.starts_with("creto-init") || name.starts_with("runc:");
      if (ours && is_zombie(pid)) ::waitpid(pid, nullptr, WNOHANG);
    }
  }
}

class Driver final : public SandboxDriver {
 public:
  Driver(DriverOptions options, RuntimeTraits traits, Telemetry& telemetry)
      : options_(std::move(options)), traits_(std::move(traits)), telemetry_(telemetry) {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    CRETO_ASSERT(epoll_.valid() && wake_.valid());
    epoll_event event{.events = EPOLLIN, .data = {.u64 = 0}};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event);
    thread_ = std::thread([this] { run(); });
  }

  ~Driver() override {
    stopping_ = true;
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0) telemetry_.error("runtime", "driver_wake_failed");
    thread_.join();
    remove_cgroups("");  // stays where a sandbox lives in it
  }

  Result<> prepare() {
    CRETO_TRY(make_directory(options_.state_directory, 0700));
    CRETO_TRY(make_directory(runtime_root(), 0700));
    CRETO_TRY(make_directory(options_.state_directory + "/bundles", 0700));
    auto version = run_to_end({.argv = {traits_.name, "--version"}});
    if (!version || version->exit_code != 0)
      return Error(Product::runtime, ErrorKind::unavailable,
                   fmt::format("the OCI runtime `{}` is not installed; install "
                               "it or choose another runtime class",
                               traits_.name));
    probe_.runtime = traits_.name;
    probe_.isolation = traits_.isolation;
    probe_.version = version->output.substr(0, version->output.find('\n'));
    if (::geteuid() != 0)
      return Error(Product::runtime, ErrorKind::permission_denied,
                   "sandboxes need root: creating network namespaces and "
                   "cgroups is refused to this user");
    probe_.cgroups = detect_cgroups();
    if (probe_.cgroups == CgroupMode::none)
      return Error(Product::runtime, ErrorKind::unavailable,
                   "no memory cgroup is mounted below /sys/fs/cgroup: limits "
                   "could not be enforced");
    // Without it a dead sandbox whose parent died stays a zombie that still
    // reads as running.
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    return {};
  }

  Result<> try_once() {
    const auto id = SandboxId::fresh(system_clock().now());
    const auto directory = options_.state_directory + "/probe";
    CRETO_TRY(make_directory(directory, 0700));
    CRETO_TRY(make_directory(directory + "/rootfs"));
    CRETO_TRY(make_directory(directory + "/run"));
    for (const char* name : {"proc", "dev", "tmp", "run", "home", "home/agent", "sys"})
      CRETO_TRY(make_directory(fmt::format("{}/rootfs/{}", directory, name)));
    auto init = install_init_program(directory);
    if (!init) return std::move(init).error();
    const LaunchSpec spec{.id = id,
                          .rootfs = directory + "/rootfs",
                          .run_directory = directory + "/run",
                          .init_program = *init,
                          .files = {},
                          .network_namespace = {},
                          .limits = {}};
    auto launched = launch(spec);
    if (!launched) return std::move(launched).error();
    const auto cgroups = read_text_file(fmt::format("/proc/{}/cgroup", launched->pid)).value_or("");
    const bool limited = cgroups.find(id.to_string()) != std::string::npos;
    CRETO_TRY(remove(id));
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
    if (!limited)
      return Error(Product::runtime, ErrorKind::unavailable,
                   fmt::format("`{}` does not put sandboxes into cgroups here: "
                               "limits could not be enforced",
                               traits_.name));
    return {};
  }

  const Probe& probe() const override { return probe_; }
  const RuntimeTraits& traits() const override { return traits_; }

  Result<SandboxProcess> launch(const LaunchSpec& spec) override {
    const auto id = spec.id.to_string();
    const auto bundle = bundle_of(id);
    CRETO_TRY(make_directory(bundle, 0700));
    CRETO_TRY(write_text_file(bundle + "/config.json", oci_config(spec, traits_, cgroup_path(id)), 0600));
    auto launched = create_and_start(id, bundle);
    if (!launched) {
      if (auto removed = remove(spec.id); !removed)
        telemetry_.warn("runtime", "sandbox_remove_failed", {{"sandbox", id}, {"error", removed.error().to_string()}});
    }
    return launched;
  }

  void watch(const SandboxId& id, SandboxProcess process, std::function<void(bool)> on_end) override {
    Fd fd(open_process(process.pid));
    // The number may be another process' by now: checked after it is held.
    if (!fd.valid() || process_start_time(process.pid) != process.start_time || is_zombie(process.pid)) {
      if (fd.valid()) reap(fd);
      on_end(out_of_memory(id));
      return;
    }
    auto memory = memory_event(cgroup_path(id.to_string()));
    const std::lock_guard lock(mutex_);
    const auto key = next_watch_;
    next_watch_ += 2;
    epoll_event event{.events = EPOLLIN, .data = {.u64 = key}};
    CRETO_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) == 0);
    if (memory.valid()) {
      event.data.u64 = key + 1;
      CRETO_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, memory.get(), &event) == 0);
    }
    watched_.emplace(key, Watched{std::move(fd), std::move(memory), id, std::move(on_end), false});
  }

  Result<SandboxUsage> usage(const SandboxId& id) override {
    const auto path = cgroup_path(id.to_string());
    SandboxUsage usage;
    if (probe_.cgroups == CgroupMode::v2) {
      const auto base = "/sys/fs/cgroup" + path;
      usage.cpu = std::chrono::microseconds(number_in(base + "/cpu.stat", "usage_usec"));
      usage.memory_peak_bytes = number_in(base + "/memory.peak", "");
      usage.oom_kills = number_in(base + "/memory.events", "oom_kill");
    } else {
      usage.cpu = Nanos(static_cast<std::int64_t>(number_in("/sys/fs/cgroup/cpuacct" + path + "/cpuacct.usage", "")));
      usage.memory_peak_bytes = number_in("/sys/fs/cgroup/memory" + path + "/memory.max_usage_in_bytes", "");
      usage.oom_kills = number_in("/sys/fs/cgroup/memory" + path + "/memory.oom_control", "oom_kill");
    }
    return usage;
  }

  Result<> remove(const SandboxId& id) override {
    const auto name = id.to_string();
    const auto bundle = bundle_of(name);
    // The kernel's way first: the runtime's own kill polls for the end, and
    // waits long for what only we can reap.
    kill_processes_of(name);
    auto deleted = run_to_end(call({"delete", "--force", name}));
    if (!deleted) return std::move(deleted).error();
    reap_orphans();
    remove_cgroups(name);
    const bool gone = deleted->exit_code == 0 || !known(name);
    if (!gone)
      return Error(Product::runtime, ErrorKind::unavailable,
                   fmt::format("`{}` cannot delete `{}`: {}", traits_.name, name, deleted->output));
    std::error_code ignored;
    std::filesystem::remove_all(bundle, ignored);
    return {};
  }

  Result<std::vector<Found>> list() override {
    auto text = run_checked(call({"list", "-format=json"}));
    if (!text) return std::move(text).error();
    std::vector<Found> found;
    auto json = parse_json(*text);
    if (json && json->is_array()) {
      for (const auto& entry : *json) {
        auto id = SandboxId::parse(entry.value("id", ""));
        if (id) found.push_back({*id, entry.value("status", "") == "running"});
      }
    }
    // A crash between mkdir and create leaves a bundle that the runtime never
    // heard of.
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(options_.state_directory + "/bundles", ignored)) {
      auto id = SandboxId::parse(entry.path().filename().string());
      if (id && std::none_of(found.begin(), found.end(), [&](const Found& f) { return f.id == *id; }))
        found.push_back({*id, false});
    }
    return found;
  }

 private:
  struct Watched {
    Fd process;
    Fd memory;  ///< readable when the sandbox ran out of memory
    SandboxId id;
    std::function<void(bool)> on_end;
    bool out_of_memory;
  };

  std::string runtime_root() const { return options_.state_directory + "/oci"; }
  std::string bundle_of(const std::string& id) const {
    return fmt::format("{}/bundles/{}", options_.state_directory, id);
  }
  std::string cgroup_path(const std::string& id) const {
    return fmt::format("/{}/{}", cgroup_of(options_.state_directory), id);
  }

  Invocation call(std::vector<std::string> arguments) const {
    Invocation invocation;
    invocation.argv.push_back(traits_.name);
    invocation.argv.push_back("--root=" + runtime_root());
    invocation.argv.insert(invocation.argv.end(), traits_.flags.begin(), traits_.flags.end());
    invocation.argv.insert(invocation.argv.end(), arguments.begin(), arguments.end());
    invocation.timeout = options_.call_timeout;
    return invocation;
  }

  Result<SandboxProcess> create_and_start(const std::string& id, const std::string& bundle) {
    auto create = call({"create", "--bundle", bundle, "--pid-file", bundle + "/pid", id});
    create.output_file = bundle + "/console";  // the sandbox keeps it as its own stdout and stderr
    CRETO_TRY(run_checked(create));
    auto start = call({"start", id});
    if (traits_.hide_net_sysctls) {
      const std::vector<std::string> hidden = {"unshare",
                                               "-m",
                                               "--propagation",
                                               "private",
                                               "sh",
                                               "-c",
                                               "mount -t tmpfs tmpfs /proc/sys/net && exec \"$0\" \"$@\""};
      start.argv.insert(start.argv.begin(), hidden.begin(), hidden.end());
    }
    CRETO_TRY(run_checked(start));
    const auto text = CRETO_TRY(read_text_file(bundle + "/pid", 32));
    SandboxProcess process;
    process.pid = std::atoi(text.c_str());
    process.start_time = process_start_time(process.pid);
    if (process.start_time == 0)
      return Error(Product::runtime, ErrorKind::sandbox_spawn_failed,
                   fmt::format("sandbox `{}` ended at once: {}", id, read_text_file(bundle + "/console").value_or("")));
    return process;
  }

  bool known(const std::string& id) {
    auto state = run_to_end(call({"state", id}));
    return state && state->exit_code == 0;
  }

  void remove_cgroups(const std::string& id) {
    std::vector<std::string> roots;
    if (probe_.cgroups == CgroupMode::v2) {
      roots.emplace_back("/sys/fs/cgroup");
    } else {
      std::error_code ignored;
      for (const auto& entry : std::filesystem::directory_iterator("/sys/fs/cgroup", ignored))
        roots.push_back(entry.path());
    }
    for (const auto& root : roots) ::rmdir((root + cgroup_path(id)).c_str());
  }

  /// Collects the status where it is our child; else its parent does.
  static void reap(const Fd& process) {
    siginfo_t info{};
    while (::waitid(P_PIDFD, static_cast<id_t>(process.get()), &info, WEXITED) < 0 && errno == EINTR) {
    }
  }

  bool out_of_memory(const SandboxId& id) {
    const auto counted = usage(id);
    return counted && counted->oom_kills > 0;
  }

  /// A descriptor that becomes readable when the cgroup runs out of memory;
  /// invalid where the kernel offers none.
  Fd memory_event(const std::string& path) const {
    if (probe_.cgroups == CgroupMode::v2) {
      Fd watch(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
      if (::inotify_add_watch(watch.get(), ("/sys/fs/cgroup" + path + "/memory.events").c_str(), IN_MODIFY) < 0)
        watch.reset();
      return watch;
    }
    const auto base = "/sys/fs/cgroup/memory" + path;
    const Fd control(::open((base + "/memory.oom_control").c_str(), O_RDONLY | O_CLOEXEC));
    Fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!control.valid() || !event.valid()) return Fd();
    const auto registered =
        write_text_file(base + "/cgroup.event_control", fmt::format("{} {}", event.get(), control.get()));
    if (!registered) event.reset();
    return event;
  }

  /// Ends everything that belongs to the sandbox, the runtime's own helpers
  /// included, and collects what became ours to collect: a runtime's delete
  /// waits long for zombies, and a cgroup that holds one cannot be removed.
  void kill_processes_of(const std::string& id) {
    const auto path = cgroup_path(id);
    const auto procs =
        (probe_.cgroups == CgroupMode::v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + path + "/cgroup.procs";
    std::vector<int> pids;
    const auto listed = read_text_file(procs).value_or("");
    for (const char* at = listed.c_str(); *at;) {
      char* end = nullptr;
      const auto pid = static_cast<int>(std::strtol(at, &end, 10));
      if (end == at) break;
      at = end;
      if (pid > 1 && pid != ::getpid()) pids.push_back(pid);
    }
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
      const int pid = std::atoi(entry.path().filename().c_str());
      if (pid <= 1 || pid == ::getpid()) continue;
      const auto command = read_text_file(entry.path() / "cmdline", 64 << 10).value_or("");
      if (command.starts_with("runsc-") && command.find(id) != std::string::npos) pids.push_back(pid);
    }
    std::vector<Fd> processes;
    for (const int pid : pids) {
      Fd process(open_process(pid));
      if (process.valid()) processes.push_back(std::move(process));
    }
    for (const auto& process : processes) ::syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0);
    for (const auto& process : processes) {
      pollfd end{process.get(), POLLIN, 0};
      ::poll(&end, 1, 5000);
    }
    // Twice: the children of what is collected first become ours with it.
    for (int round = 0; round < 2; ++round) {
      for (const auto& process : processes) {
        siginfo_t info{};
        ::waitid(P_PIDFD, static_cast<id_t>(process.get()), &info, WEXITED | WNOHANG);
      }
    }
  }

  void run() {
    while (!stopping_) {
      epoll_event events[32];
      const int count = ::epoll_wait(epoll_.get(), events, 32, -1);
      for (int i = 0; i < count; ++i) {
        const auto key = events[i].data.u64;
        if (key == 0) continue;
        if (key % 2 == 0) {
          on_memory(key - 1);
        } else {
          on_process_end(key);
        }
      }
    }
  }

  void on_memory(std::uint64_t key) {
    const std::lock_guard lock(mutex_);
    const auto it = watched_.find(key);
    if (it == watched_.end()) return;
    char buffer[4096];
    while (::read(it->second.memory.get(), buffer, sizeof buffer) > 0) {
    }
    // memory.events changes for lesser reasons too; the v1 event means it.
    if (probe_.cgroups == CgroupMode::v2 && !out_of_memory(it->second.id)) return;
    it->second.out_of_memory = true;
    ::syscall(SYS_pidfd_send_signal, it->second.process.get(), SIGKILL, nullptr, 0);
  }

  void on_process_end(std::uint64_t key) {
    std::optional<Watched> ended;
    {
      const std::lock_guard lock(mutex_);
      const auto it = watched_.find(key);
      if (it == watched_.end()) return;
      ended = std::move(it->second);
      watched_.erase(it);
    }
    reap(ended->process);
    reap_orphans();
    ended->on_end(ended->out_of_memory || out_of_memory(ended->id));
  }

  const DriverOptions options_;
  const RuntimeTraits traits_;
  Telemetry& telemetry_;
  Probe probe_;

  Fd epoll_, wake_;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::uint64_t next_watch_ = 1;
  std::unordered_map<std::uint64_t, Watched> watched_;
  std::thread thread_;
};

}  // namespace

std::string_view to_string(CgroupMode mode) {
  switch (mode) {
    case CgroupMode::v1:
      return "v1";
    case CgroupMode::hybrid:
      return "hybrid";
    case CgroupMode::v2:
      return "v2";
    case CgroupMode::none:
      return "none";
  }
  return "none";
}

std::string cgroup_of(const std::string& state_directory) {
  return fmt::format("creto-{:08x}", static_cast<std::uint32_t>(std::hash<std::string>()(state_directory)));
}

Result<RuntimeTraits> runtime_traits(std::string_view name) {
  if (name == "runsc") {
    RuntimeTraits traits;
    traits.name = "runsc";
    traits.isolation = "gvisor";
    traits.flags = {"--platform=systrap", "--overlay2=root:memory", "--host-uds=open", "--network=sandbox"};
    traits.hide_net_sysctls = true;
    traits.pids_overhead = 96;
    traits.memory_overhead = 64ull << 20;
    return traits;
  }
  if (name == "runc") {
    RuntimeTraits traits;
    traits.name = "runc";
    traits.isolation = "container";
    traits.seccomp_in_config = true;
    traits.pids_overhead = 4;
    return traits;
  }
  return Error(Product::runtime, ErrorKind::not_found,
               fmt::format("unknown runtime class `{}`; known are runsc and runc", name));
}

Result<std::unique_ptr<SandboxDriver>> SandboxDriver::create(DriverOptions options, Telemetry& telemetry) {
  auto traits = CRETO_TRY(runtime_traits(options.runtime));
  auto driver = std::make_unique<Driver>(std::move(options), std::move(traits), telemetry);
  CRETO_TRY(driver->prepare());
  CRETO_TRY(driver->try_once());
  return driver;
}

}  // namespace creto::runtime
