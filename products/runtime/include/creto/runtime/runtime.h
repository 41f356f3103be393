#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/signature.h"
#include "creto/common/telemetry.h"
#include "creto/contracts/approval_gate.h"
#include "creto/contracts/sandbox_messenger.h"

namespace creto::sql {
class Database;
}
namespace creto::nhi {
class Nhi;
}
namespace creto::authz {
class Authz;
}
namespace creto::consensus {
class TimestampSource;
}
namespace creto::vault {
class Vault;
}
namespace creto::inference {
class Inference;
}
namespace creto::memory {
class Memory;
}
namespace creto::contracts {
class CostTrigger;
class SpendingLimits;
}  // namespace creto::contracts

/// Runs agents in sandboxes, and is their only way out (RT1-RT10).
namespace creto::runtime {

struct ResourceLimits {
  std::uint32_t cpu_millicores = 1000;        ///< 10 to 1 000 000
  std::uint64_t memory_bytes = 512ull << 20;  ///< 32 MiB to 1 TiB
  std::uint32_t pids = 256;                   ///< 8 to 32 768
  Nanos time{};                               ///< wall time from ready to forced end; 0: no limit
  friend bool operator==(const ResourceLimits&, const ResourceLimits&) = default;
};

enum class EgressVerdict : std::uint8_t { allow, deny, require_authz };
std::string_view to_string(EgressVerdict verdict);
Result<EgressVerdict> egress_verdict_from_string(std::string_view text);

/// Of a list the first rule that matches counts. A sandbox' own rules never widen what policy gives its agent: their
/// `deny` denies, their `allow` asks authorization (network.egress on Host::"name:port") as no rule does. Those of the
/// installation (`RuntimeOptions::egress`) stand above policy: `allow` permits, unless an own rule says otherwise.
struct EgressRule {
  std::string host;        ///< "api.example", "*.example" (any name below it), or "*"
  std::uint16_t port = 0;  ///< 0: any
  EgressVerdict verdict = EgressVerdict::require_authz;
  friend bool operator==(const EgressRule&, const EgressRule&) = default;
};

/// What to run for whom.
struct SandboxSpec {
  std::optional<Identity> agent;  ///< whom it runs as; default: the caller
  std::string image;
  std::vector<std::string> command;                ///< empty: the sandbox waits for `exec`
  std::map<std::string, std::string> environment;  ///< not for secrets: it is shown to who may see the sandbox
  std::string working_directory;                   ///< empty: "/"
  std::vector<std::string>
      secrets;  ///< of the vault, "path/NAME": environment variable NAME and file /run/secrets/NAME
  ResourceLimits limits;
  std::string runtime_class;  ///< "runsc", "runc"; empty: the installation's
  std::vector<EgressRule> egress;
  std::string reasoning;       ///< shown to whoever has to approve
  std::string override_token;  ///< of an approval for exactly this spawn
};

enum class SandboxState : std::uint8_t { starting, running, terminated };
std::string_view to_string(SandboxState state);
Result<SandboxState> sandbox_state_from_string(std::string_view text);
enum class TerminationReason : std::uint8_t { completed, failed, timeout, manual, resource_limit };
std::string_view to_string(TerminationReason reason);
Result<TerminationReason> termination_reason_from_string(std::string_view text);

/// What runs where, signed by `service:runtime` (docs/formats.md, "Attestation").
struct Attestation {
  std::string document;  ///< canonical JSON; what is signed is its type's name, a newline, and it
  Signature signature;   ///< hybrid
  friend bool operator==(const Attestation&, const Attestation&) = default;
};

struct Sandbox {
  SandboxId id;
  Identity agent;
  DelegationChain delegation_chain = {};
  std::optional<SandboxId> parent = {};
  SandboxState state = SandboxState::starting;
  std::optional<TerminationReason> reason = {};  ///< once terminated
  std::string detail = {};                       ///< of a failure
  std::optional<int> exit_code = {};             ///< of the command, 128 + signal where it was killed
  std::string image = {};
  std::string image_digest = {};   ///< "sha256:…"
  std::string runtime_class = {};  ///< "runsc"
  std::string isolation = {};      ///< "gvisor" or "container": what really separates it
  std::vector<std::string> command = {};
  ResourceLimits limits = {};
  bool warm = false;  ///< came from the pool
  Instant created_at{};
  std::optional<Instant> ready_at = {};
  std::optional<Instant> terminated_at = {};
  Attestation attestation = {};  ///< once ready
};

/// The sandbox, or the request a human has to answer first.
struct SpawnResult {
  std::optional<Sandbox> sandbox;
  std::optional<contracts::ApprovalStatus> approval;
};

struct ExecRequest {
  std::vector<std::string> command;
  std::map<std::string, std::string> environment = {};
  std::string working_directory = {};
  std::string input = {};                    ///< up to 1 MiB
  Nanos timeout = std::chrono::seconds(60);  ///< then it is killed
};
struct ExecResult {
  int exit_code = 0;
  std::string out, err;  ///< the last 1 MiB each
  bool timed_out = false;
};

enum class OutputStream : std::uint8_t { out, err };
struct OutputChunk {
  std::string bytes;
  std::uint64_t next_offset = 0;
  bool complete = false;  ///< the sandbox has ended and nothing follows
};

struct SandboxFilter {
  std::optional<Identity> agent = {};
  std::optional<SandboxState> state = {};
  std::optional<SandboxId> after = {};  ///< page begins behind it
  std::size_t limit = 100;              ///< 1 to 1 000
};

struct ImageInfo {
  std::string name;
  std::string digest;
};

struct RuntimeStatus {
  std::string runtime_class, isolation, version, cgroups;
  bool network = false;
  std::size_t pool_ready = 0, pool_size = 0, running = 0;
};

/// Thread-safe. Every change is audited in its transaction; usage and lifecycle events leave through the outbox in it
/// too.
///
/// Errors of every call: not_found, permission_denied, invalid_input naming the field, unavailable.
class Runtime {
 public:
  virtual ~Runtime() = default;

  /// Checks (sandbox.spawn on Image::"name", quota), claims a warm sandbox or makes one, binds identity and secrets,
  /// attests, starts the command.
  ///
  /// Repeating with the same idempotency key returns the sandbox that became ready first, as it is now: where it has
  /// ended since, its end. A spawn that did not get so far, because it failed or the process died, is no result: it is
  /// ended with the audit record `sandbox_spawn_failed`, uses up neither key nor approval, and the repeat spawns anew.
  ///
  /// The caller is the agent, somebody above it in its chain, or a service.
  /// Errors: quota_exceeded (RT-429 caused by MT-429); sandbox_spawn_failed; resource_exhausted; conflict.
  virtual Result<SpawnResult> spawn(const Context& ctx, const SandboxSpec& spec) = 0;

  /// A child of `parent`: a new agent whose chain is the parent's and one link more, with no more permissions than it.
  virtual Result<SpawnResult> spawn_child(const Context& ctx, const SandboxId& parent, SandboxSpec spec) = 0;

  virtual Result<ExecResult> exec(const Context& ctx, const SandboxId& id, const ExecRequest& request) = 0;
  /// Ends it and everything it was lent. Idempotent.
  virtual Result<Sandbox> terminate(const Context& ctx, const SandboxId& id) = 0;
  virtual Result<Sandbox> get(const Context& ctx, const SandboxId& id) = 0;
  virtual Result<std::vector<Sandbox>> list(const Context& ctx, const SandboxFilter& filter) = 0;
  /// What the command wrote, from `offset`; up to 1 MiB at once. 16 MiB of each stream are kept, after the end for as
  /// long as `RuntimeOptions::output_age` and `output_bytes_max` say.
  virtual Result<OutputChunk> output(const Context& ctx, const SandboxId& id, OutputStream stream,
                                     std::uint64_t offset) = 0;

  /// Calls `on_end` once when it has terminated, at once where it has. Must not block.
  virtual Result<> when_terminated(const Context& ctx, const SandboxId& id,
                                   std::function<void(const Sandbox&)> on_end) = 0;

  /// That the signature is the runtime's and the document well-formed. Errors: attestation_failed saying why.
  virtual Result<> verify_attestation(const Context& ctx, const Attestation& attestation) = 0;

  virtual Result<std::vector<ImageInfo>> list_images(const Context& ctx) = 0;
  virtual Result<RuntimeStatus> status(const Context& ctx) = 0;

  /// Removes what ended sandboxes wrote, where it is too old or too much, the oldest first, and messages that waited
  /// for an approval until their time was over. Returns of how many sandboxes. For a periodic task.
  virtual Result<std::size_t> sweep(const Context& ctx) = 0;

  virtual HealthStatus health() = 0;
};

/// A message as an agent reads it.
struct OpenedMessage {
  MessageId id;
  Identity sender;
  std::string topic;
  std::string body;
  bool verified = false;  ///< the sender's signature holds
  Instant sent_at{};
};

/// The agent's end of messages: seals and opens in its name, because its keys never enter the sandbox. Thread-safe.
class MessageEndpoint {
 public:
  virtual ~MessageEndpoint() = default;
  virtual Result<contracts::SealedMessage> seal(const Context& ctx, const Identity& agent, const Identity& recipient,
                                                std::string_view body) = 0;
  /// For everybody who is subscribed to `topic` at this moment. Errors: topic_not_found; recipient_not_found where
  /// nobody is; delivery_denied.
  virtual Result<contracts::SealedMessage> seal_for_topic(const Context& ctx, const Identity& agent,
                                                          const std::string& topic, std::string_view body) = 0;
  virtual Result<OpenedMessage> open(const Context& ctx, const Identity& agent,
                                     const contracts::ReceivedMessage& message) = 0;
  /// The agent has dealt with it: what is kept of its content is forgotten. Unknown messages are fine.
  virtual Result<> acknowledge(const Context& ctx, const Identity& agent, const MessageId& message) = 0;
};

/// What the runtime works with. References must outlive it; a null pointer turns the part off: its doors answer
/// `unavailable`.
struct RuntimeServices {
  sql::Database& database;
  nhi::Nhi& nhi;
  authz::Authz& authz;
  consensus::TimestampSource& timestamps;
  const Clock& clock;
  Telemetry& telemetry;
  contracts::ApprovalGate* approvals = nullptr;
  contracts::SpendingLimits* limits = nullptr;
  contracts::CostTrigger* costs = nullptr;
  contracts::SandboxMessenger* messenger = nullptr;
  MessageEndpoint* endpoint = nullptr;
  vault::Vault* vault = nullptr;
  inference::Inference* inference = nullptr;
  memory::Memory* memory = nullptr;
};

struct RuntimeOptions {
  std::string state_directory;  ///< of sandboxes: ours alone; short-lived files, but kept over a restart
  std::string image_directory;  ///< one OCI layout per image name (what umoci and skopeo write)
  std::string runtime_class = "runsc";
  std::vector<std::string> more_runtime_classes;  ///< a spec may ask for; each is probed when first used
  std::string pool_image;                         ///< empty: no pool
  std::size_t pool_size = 2;                      ///< warm sandboxes of `pool_image` with default limits
  std::size_t sandboxes_max = 256;
  std::vector<EgressRule> egress;                   ///< of the installation, for every sandbox
  std::map<std::string, std::string> static_hosts;  ///< "rates.example" to "127.0.0.1:8123", see EgressOptions
  std::string actions_file;                         ///< YAML or JSON of declared actions; empty: none
  std::map<std::string, std::string> variables;     ///< for ${NAME} in it
  Nanos ready_timeout = std::chrono::seconds(30);
  Nanos secret_ttl = std::chrono::hours(24);
  /// Of the hold on "sandbox_running" that a sandbox has while it lives, for quotas of the window `concurrent`. Renewed
  /// in time: it is how long such a quota still counts the sandboxes of a process that is gone for good.
  Nanos running_hold = std::chrono::minutes(10);
  Nanos output_age = std::chrono::days(7);      ///< of ended sandboxes' output, then `sweep` removes it
  std::uint64_t output_bytes_max = 1ull << 30;  ///< of all of it together; the oldest goes first
  /// Whether running sandboxes live on when the runtime is destroyed, for the next one to take over; else they end
  /// with it.
  bool keep_sandboxes = true;
};

/// Probes the machine, migrates, takes over the sandboxes of an earlier process or cleans up after them, finishes the
/// actions that it had begun, and fills the pool. Errors: permission_denied or unavailable naming the missing
/// privilege; invalid_input for the actions file.
Result<std::unique_ptr<Runtime>> create_runtime(RuntimeServices services, RuntimeOptions options);

}  // namespace creto::runtime
