#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver/control_hub.h"
#include "driver/sandbox_driver.h"

namespace creto::runtime {

/// Makes, once per test process, a small root file system of this machine's own
/// programs: sh, cat, id, python3's absence is no loss here. Removed at exit.
Result<std::string> test_rootfs();

/// What one command did.
struct CommandResult {
  std::string out, err, failure;
  int exit_code = -1;  ///< 128 + signal where it was killed
  bool over = false;
  int ends = 0;                                               ///< how often its end was told
  std::vector<std::pair<std::uint64_t, std::string>> pieces;  ///< of both outputs, as they came, with their offsets
};

/// Real sandboxes for tests, removed with everything that belongs to them when
/// it is destroyed.
class SandboxFixture {
 public:
  struct Sandbox {
    SandboxId id;
    SandboxProcess process;
    class Listener;
    std::shared_ptr<Listener> listener;
    std::string run_directory;
  };

  /// Errors: why sandboxes cannot run here; for GTEST_SKIP.
  static Result<std::unique_ptr<SandboxFixture>> create(const std::string& runtime);
  ~SandboxFixture();

  Result<Sandbox> start(ResourceLimits limits = {}, const std::string& network_namespace = {},
                        const std::vector<std::pair<std::string, std::string>>& files = {});
  std::string claim(
      Sandbox& sandbox, const std::vector<std::string>& environment,
      const std::vector<std::pair<std::string, std::string>>& files);  ///< what went wrong; empty: nothing
  CommandResult run(Sandbox& sandbox, const std::vector<std::string>& argv, const std::string& input);
  std::uint32_t begin(Sandbox& sandbox, const std::vector<std::string>& argv);
  void input(Sandbox& sandbox, std::uint32_t stream, const std::string& bytes);
  CommandResult finish(Sandbox& sandbox, std::uint32_t stream);
  /// From now on it keeps three bytes of whatever it is told, and no end.
  void be_forgetful(Sandbox& sandbox);
  CommandResult wait_for_output(Sandbox& sandbox, std::uint32_t stream, const std::string& out);

  /// As if this process had died and another come.
  void restart_supervisor();
  Result<> take_over(Sandbox& sandbox);

  SandboxDriver& driver() { return *driver_; }
  ControlHub& hub() { return *hub_; }
  const std::string& directory() const { return directory_; }

 private:
  SandboxFixture() = default;
  std::string runtime_, directory_, init_;
  std::unique_ptr<SandboxDriver> driver_;
  std::unique_ptr<ControlHub> hub_;
  std::uint32_t next_stream_ = 1;
};

}  // namespace creto::runtime
