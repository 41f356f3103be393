#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/id.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "creto/runtime/runtime.h"

namespace creto::runtime {

/// What one OCI runtime does differently from another. The rest of the driver
/// treats all alike.
struct RuntimeTraits {
  std::string name;                ///< "runsc": the program, and what a runtime class names
  std::string isolation;           ///< "gvisor" (a kernel of its own) or "container" (the
                                   ///< host's kernel, filtered)
  std::vector<std::string> flags;  ///< global flags of every call
  /// gVisor's network stack refuses a network namespace in which net.core
  /// sysctls show; newer kernels show them everywhere. So `start` runs where
  /// /proc/sys/net is hidden.
  bool hide_net_sysctls = false;
  bool seccomp_in_config = false;   ///< the sentry filters itself; others need
                                    ///< the profile in config.json
  std::uint32_t pids_overhead = 0;  ///< tasks of the runtime itself, counted against the cgroup
  std::uint64_t memory_overhead = 0;
};

/// The known ones: runsc, runc. Errors: not_found naming those that are known.
Result<RuntimeTraits> runtime_traits(std::string_view name);

enum class CgroupMode : std::uint8_t { v1, hybrid, v2, none };
std::string_view to_string(CgroupMode mode);

/// What this machine can do, found by trying at start.
struct Probe {
  std::string runtime;  ///< "runsc"
  std::string isolation;
  std::string version;  ///< first line of --version
  CgroupMode cgroups = CgroupMode::none;
  bool network = false;  ///< namespaces, veth and nftables work
};

/// One sandbox to be: directories and files exist already.
struct LaunchSpec {
  SandboxId id;
  std::string rootfs;                                      ///< read-only
  std::string run_directory;                               ///< appears as /run/creto
  std::string init_program;                                ///< appears as /run/creto-init
  std::vector<std::pair<std::string, std::string>> files;  ///< (host path, path inside), read-only
  std::string network_namespace;                           ///< path; empty: a fresh one without any
                                                           ///< interface but lo
  ResourceLimits limits;
  std::uint32_t uid = 1000, gid = 1000;    ///< whom the agent's commands run as
  std::uint64_t tmp_bytes = 256ull << 20;  ///< of /tmp and /home/agent together
};

/// A sandbox' main process. The pair is never used twice on a machine that
/// stays up.
struct SandboxProcess {
  int pid = 0;
  std::uint64_t start_time = 0;
};

/// What the kernel counted for a sandbox, the runtime's own share included.
struct SandboxUsage {
  Nanos cpu{};
  std::uint64_t memory_peak_bytes = 0;
  std::uint64_t oom_kills = 0;
};

struct DriverOptions {
  std::string runtime = "runsc";
  std::string state_directory;  ///< ours alone: bundles and the runtime's own
                                ///< state live below
  Nanos call_timeout = std::chrono::seconds(30);
};

/// The cgroup below which a driver puts its sandboxes, "creto-…": tells installations on one machine apart.
std::string cgroup_of(const std::string& state_directory);

/// config.json of the OCI runtime specification. Pure.
std::string oci_config(const LaunchSpec& spec, const RuntimeTraits& traits, std::string_view cgroup_path);

/// Drives an OCI runtime: makes, watches and removes sandboxes; knows nothing
/// about agents. Thread-safe.
///
/// Sandboxes live on when this process dies; `list` and `watch` of a later one
/// take them over.
///
/// Errors of every call: unavailable (the runtime failed; the message quotes
/// it), timeout.
class SandboxDriver {
 public:
  /// Tries the whole way once: create, start, kill and delete of an empty
  /// sandbox in a cgroup. Errors: permission_denied or unavailable, naming what
  /// is missing (root, the runtime, cgroups).
  static Result<std::unique_ptr<SandboxDriver>> create(DriverOptions options, Telemetry& telemetry);
  virtual ~SandboxDriver() = default;  ///< stops watching; sandboxes stay

  virtual const Probe& probe() const = 0;
  virtual const RuntimeTraits& traits() const = 0;

  /// Creates and starts; the init process runs when it returns. On an error
  /// nothing is left behind.
  virtual Result<SandboxProcess> launch(const LaunchSpec& spec) = 0;

  /// Calls `on_end` once, from the driver's thread, when that process is no
  /// more; at once where it already is not. `on_end` must not block. A sandbox
  /// that runs out of memory is ended whole, and `on_end` is told so: what the
  /// kernel kills by itself may be any part of it, also one whose loss goes
  /// unnoticed.
  virtual void watch(const SandboxId& id, SandboxProcess process, std::function<void(bool out_of_memory)> on_end) = 0;

  virtual Result<SandboxUsage> usage(const SandboxId& id) = 0;  ///< also after its end, until `remove`

  /// Kills everything in it and removes every trace. Idempotent.
  virtual Result<> remove(const SandboxId& id) = 0;

  struct Found {
    SandboxId id;
    bool running = false;
  };
  /// What the runtime knows below our state directory.
  virtual Result<std::vector<Found>> list() = 0;
};

}  // namespace creto::runtime
