#pragma once

#include <atomic>

#include "creto/common/clock.h"

namespace creto::testing {

/// A clock that moves only when told. Thread-safe. Starts at 2026-01-01T00:00:00Z.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(Instant start = from_unix_ns(1'767'225'600'000'000'000)) : wall_ns_(unix_ns(start)) {}

  Instant now() const override { return from_unix_ns(wall_ns_.load()); }
  Monotonic monotonic() const override { return Monotonic(Nanos(monotonic_ns_.load())); }

  /// Both clocks, as time does.
  void advance(Nanos duration) {
    wall_ns_ += duration.count();
    monotonic_ns_ += duration.count();
  }
  /// The wall clock alone, as an operator or NTP does; may go back.
  void jump(Nanos duration) { wall_ns_ += duration.count(); }
  void set(Instant instant) { wall_ns_ = unix_ns(instant); }

 private:
  std::atomic<std::int64_t> wall_ns_;
  std::atomic<std::int64_t> monotonic_ns_{1'000'000'000'000};
};

}  // namespace creto::testing
