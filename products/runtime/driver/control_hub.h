#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/id.h"
#include "creto/common/result.h"
#include "creto/common/secret.h"
#include "creto/common/telemetry.h"

namespace creto::runtime {

/// What the init process of one sandbox tells. Called from the hub's thread,
/// one at a time; must not block, and may call the hub back.
class ControlListener {
 public:
  virtual ~ControlListener() = default;
  virtual void connected() = 0;  ///< its first words were right; again after a
                                 ///< lost connection
  virtual void disconnected() = 0;
  virtual void claimed(int error,
                       std::string_view what) = 0;  ///< 0: the claim took hold
  virtual void started(std::uint32_t stream) = 0;
  virtual void failed(std::uint32_t stream, int error, std::string_view what) = 0;
  /// Whether anybody still waits for this command of an earlier connection: else it is killed. Called for each before
  /// `connected`.
  virtual bool awaits(std::uint32_t stream) = 0;
  /// `offset` counts from the start of this output. After a lost connection it begins again with what was not
  /// acknowledged, so that part of it may be known. Returns up to where it is kept now: that is acknowledged, and what
  /// is beyond comes again over a new connection.
  virtual std::uint64_t output(std::uint32_t stream, bool is_stderr, std::uint64_t offset, std::string_view bytes) = 0;
  /// Behind all output; `status` as of wait(2). Comes again after every lost connection until true was returned: then
  /// nobody needs to hear it any more.
  virtual bool ended(std::uint32_t stream, int status) = 0;
  virtual void pong() {}
};

/// A file that a claim puts into the sandbox' memory.
struct ClaimFile {
  std::string path;
  Secret content;
};

/// The runtime's end of the control channels of all its sandboxes: one thread,
/// no waiting. Thread-safe.
///
/// Sends are queued, 8 MiB a sandbox at most. Errors of every send: not_found,
/// unavailable (not connected), resource_exhausted (queue full), too_large
/// (over 1 MiB).
class ControlHub {
 public:
  static Result<std::unique_ptr<ControlHub>> create(Telemetry& telemetry);
  virtual ~ControlHub() = default;

  /// Makes `run_directory`/control.sock, for root alone, and waits for the
  /// sandbox' init there.
  virtual Result<> listen(const SandboxId& id, const std::string& run_directory,
                          std::shared_ptr<ControlListener> listener) = 0;
  /// After it returned, the listener is not called any more (unless it is what
  /// calls).
  virtual void close(const SandboxId& id) = 0;

  /// `environment` as "K=V", wiped once sent.
  virtual Result<> claim(const SandboxId& id, const std::vector<Secret>& environment,
                         const std::vector<ClaimFile>& files) = 0;
  virtual Result<> start(const SandboxId& id, std::uint32_t stream, const std::string& cwd,
                         const std::vector<std::string>& argv, const std::vector<std::string>& environment) = 0;
  virtual Result<> input(const SandboxId& id, std::uint32_t stream,
                         std::string_view bytes) = 0;  ///< empty: end of input
  virtual Result<> signal(const SandboxId& id, std::uint32_t stream, int number) = 0;
  virtual Result<> ping(const SandboxId& id) = 0;
};

namespace control {

/// Takes frames out of a byte stream. Pure; for the hub and its fuzzer.
class FrameParser {
 public:
  struct Frame {
    std::uint8_t type;
    std::uint32_t stream;
    std::string payload;
  };
  /// False where what came can be no frame: the connection is of no use any
  /// more.
  bool feed(std::string_view bytes, std::vector<Frame>& frames);

 private:
  std::string pending_;
};

}  // namespace control
}  // namespace creto::runtime
