#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "driver/sandbox_driver.h"

namespace creto::runtime {
namespace {

using Json = nlohmann::ordered_json;

/// What a runtime without a kernel of its own must not let a sandbox ask the
/// host's kernel for. Everything that gains privileges, reaches other processes
/// or namespaces, loads code into the kernel, or has a record of holes in it.
constexpr const char* refused_syscalls[] = {"acct",
                                            "add_key",
                                            "bpf",
                                            "chroot",
                                            "clock_adjtime",
                                            "clock_settime",
                                            "create_module",
                                            "delete_module",
                                            "fanotify_init",
                                            "finit_module",
                                            "fsconfig",
                                            "fsmount",
                                            "fsopen",
                                            "fspick",
                                            "get_kernel_syms",
                                            "init_module",
                                            "io_uring_enter",
                                            "io_uring_register",
                                            "io_uring_setup",
                                            "ioperm",
                                            "iopl",
                                            "kcmp",
                                            "kexec_file_load",
                                            "kexec_load",
                                            "keyctl",
                                            "lookup_dcookie",
                                            "mbind",
                                            "mount",
                                            "mount_setattr",
                                            "move_mount",
                                            "move_pages",
                                            "name_to_handle_at",
                                            "nfsservctl",
                                            "open_by_handle_at",
                                            "open_tree",
                                            "perf_event_open",
                                            "pidfd_getfd",
                                            "pivot_root",
                                            "process_madvise",
                                            "process_vm_readv",
                                            "process_vm_writev",
                                            "ptrace",
                                            "query_module",
                                            "quotactl",
                                            "quotactl_fd",
                                            "reboot",
                                            "request_key",
                                            "set_mempolicy",
                                            "setdomainname",
                                            "sethostname",
                                            "setns",
                                            "settimeofday",
                                            "swapoff",
                                            "swapon",
                                            "syslog",
                                            "umount",
                                            "umount2",
                                            "unshare",
                                            "uselib",
                                            "userfaultfd",
                                            "ustat",
                                            "vhangup"};

Json seccomp_profile() {
  Json refused = Json::array();
  for (const char* name : refused_syscalls) refused.push_back(name);
  // clone3's flags lie behind a pointer that a filter cannot read: callers fall
  // back to clone on ENOSYS.
  Json rules = Json::array();
  rules.push_back({{"names", refused}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", 1}});
  rules.push_back({{"names", Json::array({"clone3"})}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", 38}});
  // AF_PACKET, AF_NETLINK and the rarer families are the host kernel's surface;
  // only unix, inet and inet6 remain.
  for (int family = 3; family < 46; ++family) {
    if (family == 10) continue;
    Json is_family = {{"index", 0}, {"value", family}, {"op", "SCMP_CMP_EQ"}};
    rules.push_back({{"names", Json::array({"socket"})},
                     {"action", "SCMP_ACT_ERRNO"},
                     {"errnoRet", 97},
                     {"args", Json::array({is_family})}});
  }
  for (const std::uint64_t flag :
       {0x00020000ull, 0x02000000ull, 0x04000000ull, 0x08000000ull, 0x10000000ull, 0x20000000ull, 0x40000000ull}) {
    Json has_flag = {{"index", 0}, {"value", flag}, {"valueTwo", flag}, {"op", "SCMP_CMP_MASKED_EQ"}};
    rules.push_back({{"names", Json::array({"clone"})},
                     {"action", "SCMP_ACT_ERRNO"},
                     {"errnoRet", 1},
                     {"args", Json::array({has_flag})}});
  }
  return {{"defaultAction", "SCMP_ACT_ALLOW"},
          {"architectures", Json::array({"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"})},
          {"syscalls", rules}};
}

Json mount(std::string destination, std::string type, std::string source, std::vector<std::string> options) {
  return {{"destination", std::move(destination)},
          {"type", std::move(type)},
          {"source", std::move(source)},
          {"options", std::move(options)}};
}

}  // namespace

std::string oci_config(const LaunchSpec& spec, const RuntimeTraits& traits, std::string_view cgroup_path) {
  // What init needs to become the agent's user and to end its commands; the
  // agent itself has none.
  const std::vector<std::string> capabilities = {"CAP_KILL", "CAP_SETGID", "CAP_SETUID"};
  const auto owner = std::vector<std::string>{fmt::format("uid={}", spec.uid), fmt::format("gid={}", spec.gid)};
  const auto tmpfs = [&](std::string destination, std::vector<std::string> options, bool owned) {
    options.insert(options.end(), {"nosuid", "nodev"});
    if (owned) options.insert(options.end(), owner.begin(), owner.end());
    return mount(std::move(destination), "tmpfs", "tmpfs", std::move(options));
  };
  const auto half = fmt::format("size={}", spec.tmp_bytes / 2);
  Json mounts = Json::array({
      mount("/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}),
      mount("/dev", "tmpfs", "tmpfs", {"nosuid", "noexec", "mode=755", "size=65536"}),
      tmpfs("/tmp", {"mode=1777", half}, false),
      tmpfs("/home/agent", {"mode=700", half}, true),
      tmpfs("/run", {"mode=755", "size=1m"}, false),
      tmpfs("/run/secrets", {"mode=700", "size=4m", "noexec"}, true),
      mount("/run/creto", "bind", spec.run_directory, {"bind", "ro", "nosuid", "nodev", "noexec"}),
      mount("/run/creto-init", "bind", spec.init_program, {"bind", "ro", "nosuid", "nodev"}),
  });
  for (const auto& [host, inside] : spec.files)
    mounts.push_back(mount(inside, "bind", host, {"bind", "ro", "nosuid", "nodev", "noexec"}));

  Json namespaces = Json::array();
  for (const char* type : {"pid", "ipc", "uts", "mount"}) namespaces.push_back({{"type", type}});
  Json network = {{"type", "network"}};
  if (!spec.network_namespace.empty()) network["path"] = spec.network_namespace;
  namespaces.push_back(std::move(network));

  const auto memory = spec.limits.memory_bytes + traits.memory_overhead;
  Json linux_part = {
      {"cgroupsPath", cgroup_path},
      {"namespaces", std::move(namespaces)},
      {"resources",
       {{"cpu", {{"quota", std::int64_t{spec.limits.cpu_millicores} * 100}, {"period", 100000}}},
        {"memory", {{"limit", memory}, {"swap", memory}}},
        {"pids", {{"limit", spec.limits.pids + traits.pids_overhead}}},
        {"devices", Json::array({{{"allow", false}, {"access", "rwm"}}})}}},
      {"maskedPaths",
       {"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
        "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"}},
      {"readonlyPaths", {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}},
  };
  if (traits.seccomp_in_config) linux_part["seccomp"] = seccomp_profile();

  Json caps;
  for (const char* set : {"bounding", "effective", "permitted"}) caps[set] = capabilities;
  Json rlimits = Json::array({{{"type", "RLIMIT_NOFILE"}, {"soft", 4096}, {"hard", 4096}},
                              {{"type", "RLIMIT_CORE"}, {"soft", 0}, {"hard", 0}}});
  const Json config = {
      {"ociVersion", "1.0.2"},
      {"process",
       {{"terminal", false},
        {"user", {{"uid", 0}, {"gid", 0}}},
        {"args",
         {"/run/creto-init", "/run/creto/control.sock", spec.id.to_string(), std::to_string(spec.uid),
          std::to_string(spec.gid)}},
        {"env", {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
        {"cwd", "/"},
        {"noNewPrivileges", true},
        {"capabilities", std::move(caps)},
        {"rlimits", std::move(rlimits)},
        {"oomScoreAdj", 500}}},
      {"root", {{"path", spec.rootfs}, {"readonly", true}}},
      {"hostname", "sandbox"},
      {"mounts", std::move(mounts)},
      {"linux", std::move(linux_part)},
  };
  return config.dump();
}

}  // namespace creto::runtime
