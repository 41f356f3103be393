#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace creto::testing {

/// How long a test is: what `./dev soak` says in the environment, and otherwise what every run of the tests can bear.
inline std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* given = std::getenv(variable);
  return given == nullptr ? otherwise : std::strtoull(given, nullptr, 10);
}

/// Tells on stderr, every ten seconds, how far a long test has come.
class Progress {
 public:
  /// `of` things, each called `what`.
  Progress(std::string_view what, std::uint64_t of) : what_(what), of_(of) {}
  void at(std::uint64_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (now - told_ < std::chrono::seconds(10)) return;
    told_ = now;
    const double minutes = std::chrono::duration<double, std::ratio<60>>(now - began_).count();
    std::fprintf(stderr, "%.*s %llu of %llu, %.1f a minute\n", static_cast<int>(what_.size()), what_.data(),
                 static_cast<unsigned long long>(done), static_cast<unsigned long long>(of_),
                 static_cast<double>(done) / minutes);
  }

 private:
  const std::string_view what_;
  const std::uint64_t of_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point told_ = began_;
};

}  // namespace creto::testing
