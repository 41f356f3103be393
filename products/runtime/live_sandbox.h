#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "creto/common/clock.h"
#include "driver/control_hub.h"
#include "driver/process.h"
#include "net/sandbox_network.h"
#include "store.h"

namespace creto::http {
class Server;
}

namespace creto::runtime {

/// The stream of a sandbox' own command; those of `exec` count from 2.
inline constexpr std::uint32_t command_stream = 1;
inline constexpr std::size_t exec_output_max = 1 << 20;
inline constexpr std::uint64_t kept_output_max = 16u << 20;

/// A sandbox that exists, warm or claimed: what its init tells, and what belongs to it on this machine. Thread-safe.
class LiveSandbox final : public ControlListener {
 public:
  struct Command {
    bool started = false, over = false;
    std::string failure;  ///< why it was not started
    int error = 0;
    int status = 0;  ///< as of wait(2)
    std::string out, err;
    std::uint64_t out_seen = 0, err_seen = 0;  ///< bytes, also those that are not kept
  };

  LiveSandbox(SandboxId id, std::string directory);
  ~LiveSandbox() override;

  const SandboxId id;
  const std::string directory;  ///< of this sandbox on the host
  std::string run_directory() const { return directory + "/run"; }
  std::string output_path(OutputStream stream) const {
    return directory + (stream == OutputStream::out ? "/stdout" : "/stderr");
  }

  // Set before anybody else sees it.
  std::string runtime_class, image, image_digest, isolation;
  SandboxProcess process;
  std::optional<NetworkLease> lease;
  ResourceLimits limits;

  // Set by the one who claims it, before the gateway opens.
  std::optional<SandboxRecord> record;
  std::unique_ptr<http::Server> gateway;
  Fd gateway_directory;  ///< keeps the short path to the gateway's socket valid
  std::function<void(int status)> on_command_end;

  /// False where the deadline passed first.
  bool wait_connected(Monotonic deadline);
  bool was_connected() const;
  /// Calls `action` once: at once where it is connected, else from the hub's thread when it is. It must not block.
  void when_connected(std::function<void()> action);
  /// What went wrong with the claim; empty: nothing. None where the deadline passed first.
  std::optional<std::string> wait_claimed(Monotonic deadline);
  /// None where the deadline passed first; the sandbox' end ends the wait too.
  std::optional<Command> wait_over(std::uint32_t stream, Monotonic deadline);
  /// Until it runs or could not be started.
  std::optional<Command> wait_started(std::uint32_t stream, Monotonic deadline);
  std::uint32_t begin_stream();
  void forget_stream(std::uint32_t stream);
  Result<> open_output();
  /// What was written down is on disk when it returns.
  Result<> sync_output() const;
  /// Nothing more will come: wakes who waits.
  void gone();
  bool ended() const;

  void connected() override;
  void disconnected() override;
  void claimed(int error, std::string_view what) override;
  void started(std::uint32_t stream) override;
  void failed(std::uint32_t stream, int error, std::string_view what) override;
  bool awaits(std::uint32_t stream) override;
  std::uint64_t output(std::uint32_t stream, bool is_stderr, std::uint64_t offset, std::string_view bytes) override;
  bool ended(std::uint32_t stream, int status) override;

  /// Set once by whoever ends it.
  std::atomic<bool> finishing = false;

 private:
  template <class F>
  bool wait(std::unique_lock<std::mutex>& lock, Monotonic deadline, F done);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool connected_ = false, was_connected_ = false, gone_ = false;
  std::function<void()> when_connected_;
  std::optional<std::string> claim_;
  std::uint32_t next_stream_ = command_stream + 1;
  std::map<std::uint32_t, Command> commands_;
  struct OutputFile {
    Fd fd;
    std::uint64_t bytes = 0;  ///< written, or passed over beyond kept_output_max
  };
  /// Requires for both: mutex_ held. None for a command that nobody waits for.
  Command* find(std::uint32_t stream);
  std::uint64_t write_down(OutputFile& file, std::uint64_t offset, std::string_view bytes);
  OutputFile out_, err_;
};

}  // namespace creto::runtime
