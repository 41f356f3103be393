// 001 §3 and 000 §4: a warm sandbox is claimed within 100 ms, a cold one started within a second, over real sandboxes.

#include <optional>

#include "creto/testing/bench.h"
#include "driver/control_hub.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

constexpr int rounds = 30;

int run(int argc, char** argv) {
  creto::testing::BenchReport report(argc, argv);
  auto made = SandboxFixture::create("runsc");
  if (!made) {
    fmt::print(stderr, "no sandboxes here: {}\n", made.error().to_string());
    return 1;
  }
  auto& fixture = **made;
  const auto milliseconds = [](auto&& action) {
    const auto began = std::chrono::steady_clock::now();
    action();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
  };
  std::vector<double> cold, claim, exec;
  for (int i = 0; i < rounds; ++i) {
    std::optional<SandboxFixture::Sandbox> sandbox;
    cold.push_back(milliseconds([&] { sandbox.emplace(fixture.start().value()); }));
    claim.push_back(milliseconds([&] {
      fixture.claim(*sandbox, {"TOKEN=secret"}, {{"/run/secrets/token", "secret"}});
      fixture.begin(*sandbox, {"true"});
    }));
    for (int k = 0; k < 10; ++k) exec.push_back(milliseconds([&] { fixture.run(*sandbox, {"true"}, ""); }));
    if (auto removed = fixture.driver().remove(sandbox->id); !removed) return 1;
  }
  const auto add = [&](std::string_view figure, std::vector<double>& took, double required, double wanted) {
    std::ranges::sort(took);
    report.add(fmt::format("{}, p50", figure), creto::testing::percentile(took, 0.5), "ms", required, wanted);
    report.add(fmt::format("{}, p99", figure), creto::testing::percentile(took, 0.99), "ms", required, wanted);
  };
  add("claim of a warm sandbox: secrets in, command started", claim, 100, 50);
  add("cold start of a sandbox", cold, 1000, 500);
  add("exec of a command", exec, 100, 50);
  return report.finish();
}

}  // namespace
}  // namespace creto::runtime

int main(int argc, char** argv) { return creto::runtime::run(argc, argv); }
