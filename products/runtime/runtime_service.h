#pragma once

#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "actions.h"
#include "backlog.h"
#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/contracts/spending.h"
#include "creto/crypto/signing.h"
#include "creto/io/idempotency.h"
#include "creto/nhi/nhi.h"
#include "creto/vault/vault.h"
#include "errors.h"
#include "events.h"
#include "gateway/agent_doors.h"
#include "images.h"
#include "live_sandbox.h"
#include "net/egress_proxy.h"
#include "tasks.h"

/// The runtime: one class, whose stories are told in files of their own, each named below with what it tells.
namespace creto::runtime {

using Live = std::shared_ptr<LiveSandbox>;

inline std::string sandbox_uri(const SandboxId& id) { return "runtime:sandbox:" + id.to_string(); }

struct Principal {
  Identity agent;
  DelegationChain chain;
};

class RuntimeService final : public Runtime {
 public:
  RuntimeService(RuntimeServices services, RuntimeOptions options)
      : services_(services),
        options_(std::move(options)),
        events_(services_),
        approvals_(services_, events_),
        images_(options_.image_directory, options_.state_directory + "/rootfs") {}
  ~RuntimeService() override;
  Result<> open();

  Result<SpawnResult> spawn(const Context& ctx, const SandboxSpec& spec) override;
  Result<SpawnResult> spawn_child(const Context& ctx, const SandboxId& parent, SandboxSpec spec) override;
  Result<ExecResult> exec(const Context& ctx, const SandboxId& id, const ExecRequest& request) override;
  Result<Sandbox> terminate(const Context& ctx, const SandboxId& id) override;
  Result<Sandbox> get(const Context& ctx, const SandboxId& id) override;
  Result<std::vector<Sandbox>> list(const Context& ctx, const SandboxFilter& filter) override;
  Result<OutputChunk> output(const Context& ctx, const SandboxId& id, OutputStream stream,
                             std::uint64_t offset) override;
  Result<std::size_t> sweep(const Context&) override;
  Result<> when_terminated(const Context& ctx, const SandboxId& id,
                           std::function<void(const Sandbox&)> on_end) override;
  Result<> verify_attestation(const Context& ctx, const Attestation& attestation) override;
  Result<std::vector<ImageInfo>> list_images(const Context&) override { return images_.list(); }
  Result<RuntimeStatus> status(const Context&) override;
  HealthStatus health() override;

 private:
  // --- service.cc: what every story asks
  std::string directory_of(const SandboxId& id) const;
  std::vector<std::filesystem::path> sandbox_directories() const;
  static Error not_here(const SandboxId& id);
  /// Agents see and touch what acts for them. Humans and services were authorised for the method by the dispatcher.
  static Result<> may_touch(const Context& ctx, const SandboxRecord& record);
  Live find_live(const std::string& org, const SandboxId& id);
  std::vector<Live> all_live();
  Result<SandboxRecord> stored(const Context& ctx, const SandboxId& id);
  Result<Sandbox> wait_terminated(const Context& ctx, const SandboxId& id);
  Result<SandboxDriver*> driver_for(const std::string& runtime_class);

  // --- spawn.cc: from a request to a sandbox that is somebody's
  Context agent_context(const Context& ctx, const Principal& principal) const;
  Result<Principal> make_child(const Context& ctx, const Principal& parent);
  Result<SpawnResult> spawn_for(const Context& ctx, const Principal& asking, const std::optional<SandboxId>& parent,
                                const SandboxSpec& spec, const std::function<Result<Principal>()>& resident_of);
  /// What `concurrent` quotas count for as long as a sandbox lives: a hold named after it, which outlives no process by
  /// more than `RuntimeOptions::running_hold`.
  contracts::SpendRequest running_hold(const SandboxId& id, const Identity& agent, const DelegationChain& chain) const;
  /// Renews it in time, for as long as the sandbox lives.
  void keep_holding(const Live& live, Nanos after);
  void release(const Context& ctx, const ReservationId& hold);
  /// The sandbox of an earlier call with this key; none where none became ready.
  Result<std::optional<Sandbox>> earlier_spawn(const Context& ctx);
  template <class F>
  Result<SandboxId> once_spawn(sql::Tx& tx, const Context& ctx, F&& fn);
  Result<Sandbox> bring_up(const Context& ctx, const Context& own, SandboxDriver& driver,
                           const ImageStore::Image& image, const SandboxSpec& spec, const authz::CheckRequest& check,
                           const std::optional<SandboxId>& parent,
                           const std::function<Result<Principal>()>& resident_of, const ReservationId& hold,
                           Monotonic started);
  Result<Sandbox> claim(const Context& ctx, const Context& own, const Live& live, const ImageStore::Image& image,
                        const SandboxSpec& spec, const authz::CheckRequest& check,
                        const std::optional<SandboxId>& parent, const std::function<Result<Principal>()>& resident_of,
                        const ReservationId& hold, bool warm, Monotonic deadline);
  Result<Sandbox> claim_held(const Context& ctx, const Context& own, const Live& live, const ImageStore::Image& image,
                             const SandboxSpec& spec, const authz::CheckRequest& check,
                             const std::optional<SandboxId>& parent, const Principal& resident,
                             const ReservationId& hold, bool warm, Monotonic deadline, Instant now);
  /// An error is one that may pass; what stands in the way for good is logged, and their time ends them.
  Result<> revoke_secrets(const SandboxRecord& record);
  /// The sandbox that the caller's key stands for: another one, where a parallel call was quicker. Key, approval and
  /// quota are used up in the transaction that makes it real: what fails before leaves them for the next try.
  Result<SandboxId> make_ready(const Context& ctx, const Context& agent_ctx, const Live& live, SandboxRecord& record,
                               vault::DelegatedSecrets& secrets, const ReservationId& hold,
                               const std::function<Result<>(sql::Tx&)>& use_approval, Monotonic deadline);
  Result<> send_claim(const Live& live, const SandboxRecord& record, const vault::DelegatedSecrets& secrets,
                      const crypto::SigningKey& sandbox_key);
  Result<std::string> usage_properties(const Sandbox& sandbox, Json more);
  Result<Attestation> attest(const SandboxRecord& record, const crypto::SigningKey& sandbox_key);

  // --- pool.cc: sandboxes that are nobody's yet
  /// A sandbox that is nobody's yet: network, file system and init, waiting to be told who it is.
  Result<Live> make_sandbox(SandboxDriver& driver, const ImageStore::Image& image, const ResourceLimits& limits,
                            Monotonic deadline);
  void watch(SandboxDriver& driver, const Live& live);
  /// Removes every trace of a sandbox on this machine. Idempotent.
  void discard(const Live& live);
  /// One that was never claimed for good.
  void drop(const Live& live);
  Live take_warm(const ImageStore::Image& image, const std::string& runtime_class, const ResourceLimits& limits);
  void keep_pool();
  Result<Live> make_warm();

  // --- running.cc: what goes on in one
  Result<> open_gateway(const Live& live);
  /// Before its init can tell anything: an end that nobody listens to would be lost.
  void arm(const Live& live);
  /// Starts the command and the clock. After a restart too: init says so where the command runs already.
  void begin(const Live& live);
  /// As soon as its init is there to start it.
  void start_command(const Live& live);

  // --- ending.cc: its end, however it comes
  void finish(const Live& live, TerminationReason reason, const std::string& detail, std::optional<int> exit_code);
  /// Children do not outlive who answers for them.
  void end_without_parent(const Live& live);
  void take_down(const Live& live, TerminationReason reason, const std::string& detail, std::optional<int> exit_code);
  /// What init told is gone with the sandbox: a process that dies while it takes it down leaves this to the next one.
  void note_ending(const SandboxRecord& record);
  /// What happened is recorded, however long the database takes to come back. Only what holds no secret any more has
  /// ended: what is not yet recorded as ended a later process takes up.
  void record_end(const Live& live, const SandboxRecord& record, const SandboxUsage& usage, Nanos pause);
  /// Nobody was billed or told of it: there is nothing to take back.
  Result<> try_record_failed_spawn(SandboxRecord record, const SandboxUsage& usage);
  Result<> try_record_end(const SandboxRecord& record, const SandboxUsage& usage);

  // --- egress_decisions.cc: where it may connect to
  Result<> decide_egress(const EgressTarget& target);
  void record_egress(const EgressClosed& closed);

  // --- adoption.cc: what the process before has left
  /// Takes over what runs, records the end of what does not, and removes what belongs to nobody.
  Result<> take_over();
  /// Waits for nobody: its init comes back when it finds us, at the latest after `ready_timeout`.
  Result<> resume(const Live& live);

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

}  // namespace creto::runtime
