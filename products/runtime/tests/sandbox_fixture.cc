#include "tests/sandbox_fixture.h"

#include <stdlib.h>
#include <sys/wait.h>

#include <gtest/gtest.h>
#include <cstring>
#include <filesystem>

#include "creto/common/clock.h"
#include "driver/init_program.h"
#include "driver/process.h"

namespace creto::runtime {
namespace {

std::string temporary_directory(const char* name) {
  auto pattern = std::filesystem::temp_directory_path() / (std::string("creto-") + name + "-XXXXXX");
  std::string path = pattern;
  if (!::mkdtemp(path.data())) ADD_FAILURE() << "mkdtemp: " << std::strerror(errno);
  return path;
}

// The programs with every library they map, found by the dynamic linker itself.
constexpr const char* copy_programs = R"sh(set -e
cd "$0"
for d in proc sys dev tmp run etc home/agent usr/bin usr/lib; do mkdir -p $d; done
chmod 1777 tmp; chown 1000:1000 home/agent; chmod 700 home/agent
ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib lib64
touch etc/resolv.conf etc/hosts
for p in sh bash cat echo id touch true mount grep tail head env sleep ls; do cp -L "$(which $p)" usr/bin/$p; done
for p in usr/bin/*; do ldd $p | grep -o '/[^ ]*' | while read l; do cp -Ln "$l" usr/lib/; done; done
)sh";

}  // namespace

Result<std::string> test_rootfs() {
  struct Made {
    std::string path;
    Result<> result;
    Made() : path(temporary_directory("rootfs")) {
      std::filesystem::permissions(path, std::filesystem::perms(0755));
      auto made = run_checked({.argv = {"sh", "-c", copy_programs, path}});
      if (!made) result = std::move(made).error();
    }
    ~Made() { std::filesystem::remove_all(path); }
  };
  static const Made made;
  if (!made.result) return Error(made.result.error());
  return made.path;
}

class SandboxFixture::Sandbox::Listener final : public ControlListener {
 public:
  void connected() override {
    change([&] { is_connected = true; });
  }
  void disconnected() override {
    change([&] { is_connected = false; });
  }
  void claimed(int error, std::string_view what) override {
    change([&] {
      claim_over = true;
      claim_failure = error == 0 ? "" : std::string(what) + ": " + std::strerror(error);
    });
  }
  void started(std::uint32_t) override {}
  void failed(std::uint32_t stream, int error, std::string_view what) override {
    change([&] {
      results[stream].failure = std::string(what) + ": " + std::strerror(error);
      results[stream].over = true;
    });
  }
  bool awaits(std::uint32_t) override { return true; }
  std::uint64_t output(std::uint32_t stream, bool is_stderr, std::uint64_t offset, std::string_view bytes) override {
    const auto kept = std::min<std::size_t>(bytes.size(), forgetful ? 3 : bytes.size());
    change([&] {
      auto& result = results[stream];
      (is_stderr ? result.err : result.out) += bytes.substr(0, kept);
      result.pieces.emplace_back(offset, bytes);
    });
    return offset + kept;
  }
  bool ended(std::uint32_t stream, int status) override {
    change([&] {
      results[stream].exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      results[stream].over = true;
      ++results[stream].ends;
    });
    return !forgetful;
  }
  template <class F>
  bool wait(F done) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(30), done);
  }

  std::mutex mutex;
  std::condition_variable changed;
  bool is_connected = false, claim_over = false;
  std::string claim_failure;
  std::map<std::uint32_t, CommandResult> results;
  std::atomic<bool> forgetful = false;

 private:
  template <class F>
  void change(F apply) {
    const std::lock_guard lock(mutex);
    apply();
    changed.notify_all();
  }
};

Result<std::unique_ptr<SandboxFixture>> SandboxFixture::create(const std::string& runtime) {
  std::unique_ptr<SandboxFixture> fixture(new SandboxFixture);
  fixture->runtime_ = runtime;
  fixture->directory_ = temporary_directory("sandboxes");
  fixture->driver_ =
      CRETO_TRY(SandboxDriver::create({.runtime = runtime, .state_directory = fixture->directory_}, no_telemetry()));
  fixture->hub_ = CRETO_TRY(ControlHub::create(no_telemetry()));
  fixture->init_ = CRETO_TRY(install_init_program(fixture->directory_));
  return fixture;
}

SandboxFixture::~SandboxFixture() {
  hub_.reset();
  if (driver_) {
    auto found = driver_->list();
    if (found)
      for (const auto& sandbox : *found)
        if (auto removed = driver_->remove(sandbox.id); !removed) ADD_FAILURE() << removed.error().to_string();
  }
  driver_.reset();
  std::filesystem::remove_all(directory_);
}

Result<SandboxFixture::Sandbox> SandboxFixture::start(ResourceLimits limits, const std::string& network_namespace,
                                                      const std::vector<std::pair<std::string, std::string>>& files) {
  const auto id = SandboxId::fresh(system_clock().now());
  Sandbox sandbox{id, {}, std::make_shared<Sandbox::Listener>(), directory_ + "/" + id.to_string()};
  auto rootfs = CRETO_TRY(test_rootfs());
  CRETO_TRY(make_directory(sandbox.run_directory));
  CRETO_TRY(hub_->listen(id, sandbox.run_directory, sandbox.listener));
  const LaunchSpec spec{.id = id,
                        .rootfs = rootfs,
                        .run_directory = sandbox.run_directory,
                        .init_program = init_,
                        .files = files,
                        .network_namespace = network_namespace,
                        .limits = limits};
  sandbox.process = CRETO_TRY(driver_->launch(spec));
  if (!sandbox.listener->wait([&] { return sandbox.listener->is_connected; }))
    return Error(Product::runtime, ErrorKind::timeout, "init did not connect");
  return sandbox;
}

std::string SandboxFixture::claim(Sandbox& sandbox, const std::vector<std::string>& environment,
                                  const std::vector<std::pair<std::string, std::string>>& files) {
  std::vector<Secret> secrets;
  for (const auto& variable : environment) secrets.push_back(Secret::copy_of(std::string_view(variable)));
  std::vector<ClaimFile> claim_files;
  for (const auto& [path, content] : files) claim_files.push_back({path, Secret::copy_of(std::string_view(content))});
  auto sent = hub_->claim(sandbox.id, secrets, claim_files);
  if (!sent) return sent.error().to_string();
  if (!sandbox.listener->wait([&] { return sandbox.listener->claim_over; })) return "no answer";
  return sandbox.listener->claim_failure;
}

std::uint32_t SandboxFixture::begin(Sandbox& sandbox, const std::vector<std::string>& argv) {
  const auto stream = next_stream_++;
  auto sent = hub_->start(sandbox.id, stream, "/", argv, {"PATH=/usr/bin:/bin"});
  EXPECT_TRUE(sent) << sent.error().to_string();
  return stream;
}

void SandboxFixture::input(Sandbox& sandbox, std::uint32_t stream, const std::string& bytes) {
  auto sent = hub_->input(sandbox.id, stream, bytes);
  EXPECT_TRUE(sent) << sent.error().to_string();
}

CommandResult SandboxFixture::finish(Sandbox& sandbox, std::uint32_t stream) {
  auto& listener = *sandbox.listener;
  EXPECT_TRUE(listener.wait([&] { return listener.results[stream].over; })) << "the command did not end";
  const std::lock_guard lock(listener.mutex);
  return listener.results[stream];
}

CommandResult SandboxFixture::run(Sandbox& sandbox, const std::vector<std::string>& argv, const std::string& given) {
  const auto stream = begin(sandbox, argv);
  if (!given.empty()) input(sandbox, stream, given);
  input(sandbox, stream, "");
  auto result = finish(sandbox, stream);
  return result;
}

void SandboxFixture::restart_supervisor() {
  hub_.reset();
  driver_.reset();
  auto driver = SandboxDriver::create({.runtime = runtime_, .state_directory = directory_}, no_telemetry());
  ASSERT_TRUE(driver) << driver.error().to_string();
  driver_ = std::move(*driver);
  auto hub = ControlHub::create(no_telemetry());
  ASSERT_TRUE(hub);
  hub_ = std::move(*hub);
}

void SandboxFixture::be_forgetful(Sandbox& sandbox) { sandbox.listener->forgetful = true; }

CommandResult SandboxFixture::wait_for_output(Sandbox& sandbox, std::uint32_t stream, const std::string& out) {
  auto& listener = *sandbox.listener;
  EXPECT_TRUE(listener.wait([&] { return listener.results[stream].out == out; })) << listener.results[stream].out;
  const std::lock_guard lock(listener.mutex);
  return listener.results[stream];
}

Result<> SandboxFixture::take_over(Sandbox& sandbox) {
  sandbox.listener = std::make_shared<Sandbox::Listener>();
  CRETO_TRY(hub_->listen(sandbox.id, sandbox.run_directory, sandbox.listener));
  if (!sandbox.listener->wait([&] { return sandbox.listener->is_connected; }))
    return Error(Product::runtime, ErrorKind::timeout, "init did not connect again");
  return {};
}

}  // namespace creto::runtime
