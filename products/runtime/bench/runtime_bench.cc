// Spawn from the pool, cold spawn, exec: p50 and p99 over real sandboxes. Prints one JSON array of figures.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "driver/control_hub.h"
#include "tests/sandbox_fixture.h"

namespace creto::runtime {
namespace {

using Clock = std::chrono::steady_clock;

double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(share * static_cast<double>(values.size())))];
}

template <class F>
double milliseconds(F&& f) {
  const auto start = Clock::now();
  f();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void print(const char* figure, const std::vector<double>& values, double required, bool last = false) {
  fmt::print("  {{\"figure\":\"{} p50\",\"value\":{:.2f},\"unit\":\"ms\",\"required\":{},\"wanted\":{}}},\n", figure,
             percentile(values, 0.5), required, required / 2);
  fmt::print("  {{\"figure\":\"{} p99\",\"value\":{:.2f},\"unit\":\"ms\",\"required\":{},\"wanted\":{}}}{}\n", figure,
             percentile(values, 0.99), required, required / 2, last ? "" : ",");
}

int run() {
  auto made = SandboxFixture::create("runsc");
  if (!made) {
    fmt::print(stderr, "no sandboxes here: {}\n", made.error().to_string());
    return 1;
  }
  auto& fixture = **made;
  std::vector<double> cold, claim, exec;
  for (int i = 0; i < 20; ++i) {
    std::optional<SandboxFixture::Sandbox> sandbox;
    cold.push_back(milliseconds([&] {
      auto started = fixture.start();
      if (started) sandbox.emplace(std::move(*started));
    }));
    if (!sandbox) return 1;
    claim.push_back(milliseconds([&] {
      fixture.claim(*sandbox, {"TOKEN=secret"}, {{"/run/secrets/token", "secret"}});
      fixture.begin(*sandbox, {"true"});
    }));
    for (int k = 0; k < 10; ++k) exec.push_back(milliseconds([&] { fixture.run(*sandbox, {"true"}, ""); }));
    if (auto removed = fixture.driver().remove(sandbox->id); !removed) return 1;
  }
  fmt::print("[\n");
  print("claim of a warm sandbox: secrets in, command started", claim, 100);
  print("cold start of a sandbox", cold, 1000);
  print("exec of a command", exec, 100, true);
  fmt::print("]\n");
  return 0;
}

}  // namespace
}  // namespace creto::runtime

int main() { return creto::runtime::run(); }
