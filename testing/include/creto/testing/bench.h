#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace creto::testing {

/// How long each call of `fn` takes, in seconds, sorted; `prepare` runs before each and is not timed. The first tenth
/// again as many calls warm up and are not counted.
template <class P, class F>
std::vector<double> measure(std::size_t calls, P&& prepare, F&& fn) {
  std::vector<double> took;
  took.reserve(calls);
  const std::size_t warm = calls / 10 + 1;
  for (std::size_t i = 0; i < warm + calls; ++i) {
    prepare();
    auto began = std::chrono::steady_clock::now();
    fn();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
    if (i >= warm) took.push_back(spent.count());
  }
  std::sort(took.begin(), took.end());
  return took;
}

template <class F>
std::vector<double> measure(std::size_t calls, F&& fn) {
  return measure(calls, [] {}, std::forward<F>(fn));
}

inline double percentile(const std::vector<double>& sorted, double p) {
  return sorted.at(std::min(sorted.size() - 1, static_cast<std::size_t>(p * static_cast<double>(sorted.size()))));
}

/// Collects what a benchmark found and compares it with what is asked: prints a line each and writes
/// `[{"figure","value","unit","required","wanted"}…]` to the file given with `--out`.
class BenchReport {
 public:
  BenchReport(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; ++i)
      if (std::string_view(argv[i]) == "--out") out_ = argv[i + 1];
  }

  enum class Better { lower, higher };

  /// `required` is what the specification or the issue demands and decides the exit code; `wanted` is our own aim.
  void add(std::string_view figure, double value, std::string_view unit, double required, double wanted,
           Better better = Better::lower) {
    auto meets = [&](double limit) { return better == Better::lower ? value <= limit : value >= limit; };
    std::string_view verdict = meets(wanted) ? "ok" : meets(required) ? "required only" : "MISSED";
    missed_ = missed_ || !meets(required);
    fmt::print("{:<52} {:>12.3f} {:<8} required {:<10} wanted {:<10} {}\n", figure, value, unit, required, wanted,
               verdict);
    std::fflush(stdout);
    if (!json_.empty()) json_ += ",\n ";
    json_ += fmt::format(R"({{"figure":"{}","value":{},"unit":"{}","required":{},"wanted":{}}})", figure, value, unit,
                         required, wanted);
  }

  /// A figure to compare with, of which nothing is asked.
  void compare(std::string_view figure, double value, std::string_view unit) {
    fmt::print("{:<52} {:>12.3f} {:<8} for comparison\n", figure, value, unit);
    std::fflush(stdout);
    if (!json_.empty()) json_ += ",\n ";
    json_ += fmt::format(R"({{"figure":"{}","value":{},"unit":"{}"}})", figure, value, unit);
  }

  /// The program's exit code: 0 where everything required is met and the file could be written.
  int finish() {
    if (!out_.empty()) {
      std::ofstream file(out_);
      file << "[" << json_ << "]\n";
      if (!file.flush()) {
        fmt::print(stderr, "cannot write {}\n", out_);
        return 1;
      }
    }
    return missed_ ? 1 : 0;
  }

 private:
  std::string out_;
  std::string json_;
  bool missed_ = false;
};

}  // namespace creto::testing
