#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "creto/common/assert.h"
#include "creto/consensus/timestamp_source.h"

namespace creto::consensus {
namespace {

// A timestamp is one number: microseconds, then 12 bits that order what falls into the same microsecond. It overflows
// in the year 2041 if signed; unsigned in 2112.
constexpr int logical_bits = 12;
constexpr std::uint64_t logical_mask = (std::uint64_t{1} << logical_bits) - 1;
constexpr std::int64_t tick_ns = 1'000;
constexpr Nanos restart_gap = std::chrono::milliseconds(1);
// How long a renewal may be under way while timestamps fall behind the wall clock.
constexpr Nanos renewal_patience = std::chrono::milliseconds(250);
constexpr Nanos trouble_pause = std::chrono::seconds(1);

std::uint64_t packed(std::int64_t ns) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 0) / tick_ns) << logical_bits;
}
std::int64_t physical_ns(std::uint64_t packed) { return static_cast<std::int64_t>(packed >> logical_bits) * tick_ns; }

class Source final : public EmbeddedSource {
 public:
  Source(CeilingStore& store, const Clock& clock, Telemetry& telemetry, TimestampOptions options)
      : store_(store),
        clock_(clock),
        telemetry_(telemetry),
        options_(std::move(options)),
        degraded_total_(
            telemetry.counter("creto_consensus_degraded_total", "Timestamps taken without a saved ceiling")) {}

  ~Source() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (renewer_.joinable()) renewer_.join();
  }

  Result<> start() {
    saved_ = CRETO_TRY(store_.load());
    const std::int64_t first = std::max(unix_ns(clock_.now()), saved_ == 0 ? 0 : saved_ + restart_gap.count());
    last_ = packed(first);
    const std::int64_t ceiling = physical_ns(packed(first + options_.ahead.count()));
    CRETO_TRY(store_.save(saved_, ceiling));
    saved_ = ceiling;
    ceiling_ = packed(ceiling);
    if (options_.renew_in_background) renewer_ = std::thread([this] { keep_renewing(); });
    return {};
  }

  Timestamp now() override {
    const std::uint64_t wall = packed(unix_ns(clock_.now()));
    const std::uint64_t ceiling = ceiling_.load(std::memory_order_acquire);
    std::uint64_t last = last_.load(std::memory_order_relaxed);
    std::uint64_t next = 0;
    bool degraded = false;
    do {
      next = std::max(last + 1, wall);
      degraded = false;
      if (next >= ceiling) {
        ask_for_renewal();
        degraded = last + 1 >= ceiling || !renewal_is_near();
        // Behind the wall clock, but below the ceiling: right until the renewal that is under way.
        if (!degraded) next = last + 1;
      }
    } while (!last_.compare_exchange_weak(last, next, std::memory_order_acq_rel, std::memory_order_relaxed));
    if (degraded) degraded_total_.add();
    return Timestamp{next & logical_mask, physical_ns(next), options_.node, degraded};
  }

  Result<std::vector<std::size_t>> order(std::span<const Timestamp> events) override { return order_events(events); }

  ClusterStatus status() override {
    const bool failing = failing_.load();
    return {.node = options_.node,
            .mode = "embedded",
            .healthy = !failing,
            .reason = failing ? "the ceiling cannot be saved; timestamps are local" : "",
            .ceiling_ns = physical_ns(ceiling_.load())};
  }

  Result<> renew() override {
    std::lock_guard lock(renewal_);
    auto result = save();
    if (!result) result = save();
    failing_ = !result;
    if (!result) {
      telemetry_.error("consensus", "ceiling_not_saved", {{"error", result.error().to_string()}});
    } else {
      waiting_since_ = 0;
    }
    return result;
  }

 private:
  Result<> save() {
    const std::int64_t floor = std::max(unix_ns(clock_.now()), physical_ns(last_.load()) + tick_ns);
    const std::int64_t ceiling = std::max(saved_, physical_ns(packed(floor + options_.ahead.count())));
    auto saved = store_.save(saved_, ceiling);
    if (!saved) {
      if (saved.error().kind() != ErrorKind::conflict) return saved;
      // Another process of the same name has saved more: what lies below is its own. Go on above it.
      saved_ = CRETO_TRY(store_.load());
      const std::uint64_t above = packed(saved_ + restart_gap.count());
      std::uint64_t last = last_.load();
      while (last < above && !last_.compare_exchange_weak(last, above)) {
      }
      return saved;
    }
    saved_ = ceiling;
    ceiling_.store(packed(ceiling), std::memory_order_release);
    return {};
  }

  /// A hint, no more: the renewer also looks by itself.
  void ask_for_renewal() {
    std::int64_t none = 0;
    if (waiting_since_.compare_exchange_strong(none, clock_.monotonic().time_since_epoch().count())) wake_.notify_all();
  }

  bool renewal_is_near() const {
    if (failing_.load()) return false;
    const std::int64_t since = waiting_since_.load();
    return since == 0 || clock_.monotonic().time_since_epoch().count() - since < renewal_patience.count();
  }

  void keep_renewing() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const std::int64_t left =
          physical_ns(ceiling_.load()) - std::max(unix_ns(clock_.now()), physical_ns(last_.load()));
      const bool due = left < options_.ahead.count() / 2;
      bool failed = false;
      if (due) {
        lock.unlock();
        failed = !renew();
        lock.lock();
      }
      if (stopping_) return;
      if (failed) {
        wake_.wait_for(lock, trouble_pause, [&] { return stopping_; });
      } else {
        // A notification that comes between the look and the wait is caught by the short wait.
        wake_.wait_for(lock, std::min<Nanos>(options_.ahead / 10, std::chrono::milliseconds(100)));
      }
    }
  }

  CeilingStore& store_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const TimestampOptions options_;
  Counter& degraded_total_;

  std::atomic<std::uint64_t> last_ = 0;
  std::atomic<std::uint64_t> ceiling_ = 0;  // exclusive
  std::atomic<bool> failing_ = false;
  std::atomic<std::int64_t> waiting_since_ = 0;  // monotonic ns; 0: nobody waits

  std::mutex renewal_;
  std::int64_t saved_ = 0;  // guarded by renewal_

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread renewer_;
};

}  // namespace

Result<std::unique_ptr<EmbeddedSource>> create_timestamp_source(CeilingStore& store, const Clock& clock,
                                                                Telemetry& telemetry, TimestampOptions options) {
  if (options.node.empty() || options.node.size() > 15) {
    return Error(Product::platform, ErrorKind::invalid_input, "consensus node must have 1 to 15 characters");
  }
  CRETO_ASSERT(options.ahead > Nanos::zero());
  auto source = std::make_unique<Source>(store, clock, telemetry, std::move(options));
  CRETO_TRY(source->start());
  return std::unique_ptr<EmbeddedSource>(std::move(source));
}

}  // namespace creto::consensus
