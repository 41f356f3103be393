#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/time.h"

namespace creto::authz {

/// `@rate("100/1m")` of a permit: it permits at most `limit` in any span of `window`.
struct Rate {
  static constexpr std::uint32_t limit_max = 10'000;

  std::uint32_t limit = 1;
  Nanos window{};
  bool by_root = false;  ///< `@rate_by("root")`: whoever acts for one root shares it; else each principal has his own
  friend bool operator==(const Rate&, const Rate&) = default;
};

/// What all windows of a service may take together.
using RateMemory = std::atomic<std::int64_t>;  ///< bytes left

/// Who did how much under one permit within its last window. Exact: no span of the window's length, however it lies,
/// holds more than `limit`. Thread-safe; for somebody it knows already, lock-free.
class RateWindows {
 public:
  RateWindows(Rate rate, std::shared_ptr<RateMemory> memory);
  ~RateWindows();
  RateWindows(const RateWindows&) = delete;
  RateWindows& operator=(const RateWindows&) = delete;

  struct Verdict {
    enum Kind : std::uint8_t {
      room,
      limited,  ///< until `retry_after` from now
      no_memory,
    };
    Kind kind = room;
    Nanos retry_after{};
  };
  /// Whether `who` may once more at `now`.
  Verdict look(std::string_view who, Monotonic now);
  /// As `look`; where there is room, one less of it.
  Verdict take(std::string_view who, Monotonic now);

  const Rate& rate() const { return rate_; }
  std::uint64_t number() const { return number_; }  ///< unique in this process, never 0

 private:
  struct Window;
  struct Table;
  class Reading;
  static constexpr std::size_t stripes = 8;
  struct alignas(64) Stripe {
    std::atomic<std::uint32_t> readers{0};
  };
  /// Tables and windows that nobody finds any more, but that somebody may still be looking at.
  struct Grave {
    std::vector<std::unique_ptr<Table>> tables;
    std::vector<std::unique_ptr<Window>> windows;
    std::array<bool, stripes> left{};  ///< which stripes were empty at some time since
  };

  Verdict ask(std::string_view who, Monotonic now, bool take);
  /// Null where nobody of that name did anything yet.
  static Window* find(const Table& table, std::string_view who, std::uint64_t hash);
  /// Null where there is no memory. Requires: `mutex_` is held.
  Window* make(std::string_view who, std::uint64_t hash, std::uint64_t tick);
  void sweep(std::uint64_t tick);
  void bury();
  std::int64_t bytes_of(std::string_view who) const;

  const Rate rate_;
  const std::uint64_t number_;
  const std::uint64_t window_ticks_;
  const std::shared_ptr<RateMemory> memory_;
  std::atomic<Table*> table_;
  std::array<Stripe, stripes> stripes_;
  std::mutex mutex_;  ///< guards all below, and the making of windows and tables
  std::unique_ptr<Table> owned_table_;
  std::vector<std::unique_ptr<Window>> windows_;
  Grave grave_;
  std::uint64_t swept_at_ = 0;
};

}  // namespace creto::authz
