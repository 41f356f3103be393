#include "rate.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "hash.h"

namespace creto::authz {
namespace {

// A slot of a window is one word: when it was last taken, in ticks of 16 ns, and in which lap around the window, which
// tells a slot that a slower thread has just taken from one that is free to take.
constexpr std::uint64_t tick_ns = 16;
constexpr unsigned lap_bits = 8;
constexpr std::uint64_t lap_mask = (1u << lap_bits) - 1;
constexpr std::uint64_t never = ~std::uint64_t{0};  ///< its lap is the one before the first
constexpr std::uint64_t closed = ~std::uint64_t{0};
constexpr std::size_t table_min = 16;

std::uint64_t ticks(Monotonic now) { return static_cast<std::uint64_t>(now.time_since_epoch().count()) / tick_ns; }

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

std::size_t stripe_of_this_thread() {
  static std::atomic<std::size_t> last{0};
  thread_local const std::size_t mine = last.fetch_add(1, std::memory_order_relaxed);
  return mine;
}

}  // namespace

/// The last `limit` times of somebody, in a ring. `head` counts all of them; the slot it points to holds the time
/// `limit` before the next, so there is room exactly where that is a window ago.
struct RateWindows::Window {
  Window(std::string_view who_, std::uint64_t hash_, std::uint32_t limit)
      : who(who_), hash(hash_), slots(std::make_unique<std::atomic<std::uint64_t>[]>(limit)) {
    for (std::uint32_t i = 0; i < limit; ++i) slots[i].store(never, std::memory_order_relaxed);
  }

  struct Answer {
    enum Kind : std::uint8_t { room, limited, gone } kind;
    std::uint64_t ticks = 0;  ///< to wait
  };

  Answer ask(std::uint64_t now, std::uint64_t span, std::uint64_t limit, bool take) {
    while (true) {
      std::uint64_t at = head.load(std::memory_order_acquire);
      if (at == closed) return {Answer::gone};
      auto& slot = slots[at % limit];
      std::uint64_t seen = slot.load(std::memory_order_acquire);
      const std::uint64_t lap = at / limit & lap_mask;
      if ((seen & lap_mask) == lap) {
        // Taken by a thread that has not moved the head yet: do it for that thread.
        head.compare_exchange_strong(at, at + 1, std::memory_order_acq_rel);
        continue;
      }
      if ((seen & lap_mask) != ((lap - 1) & lap_mask)) continue;  // `at` is of long ago
      const std::uint64_t then = seen >> lap_bits;
      if (seen != never && then + span > now) {
        if (head.load(std::memory_order_acquire) != at) continue;
        return {Answer::limited, then + span - now};
      }
      if (!take) return {Answer::room};
      // Times in the ring never go back, also where threads come here in another order than they read the clock.
      const std::uint64_t before = slots[(at + limit - 1) % limit].load(std::memory_order_acquire);
      const std::uint64_t time = before == never ? now : std::max(now, before >> lap_bits);
      if (!slot.compare_exchange_strong(seen, time << lap_bits | lap, std::memory_order_acq_rel)) continue;
      const std::uint64_t taken = at;
      if (!head.compare_exchange_strong(at, taken + 1, std::memory_order_acq_rel) && at == closed) {
        return {Answer::gone};  // swept away just now; it counts where it is asked again
      }
      return {Answer::room};
    }
  }

  /// Where nothing in it counts any more, ends it for good.
  bool close_idle(std::uint64_t now, std::uint64_t span, std::uint64_t limit) {
    std::uint64_t at = head.load(std::memory_order_acquire);
    const std::uint64_t newest = slots[(at + limit - 1) % limit].load(std::memory_order_acquire);
    if (newest != never && (newest >> lap_bits) + span > now) return false;
    return head.compare_exchange_strong(at, closed, std::memory_order_acq_rel);
  }

  const std::string who;
  const std::uint64_t hash;
  std::atomic<std::uint64_t> head{0};
  const std::unique_ptr<std::atomic<std::uint64_t>[]> slots;
};

/// Open addressing, at most half full; windows are only ever added.
struct RateWindows::Table {
  explicit Table(std::size_t size) : slots(size) {}
  void add(Window* window) {
    std::size_t at = window->hash & (slots.size() - 1);
    while (slots[at].load(std::memory_order_relaxed) != nullptr) at = (at + 1) & (slots.size() - 1);
    slots[at].store(window, std::memory_order_release);
  }
  std::vector<std::atomic<Window*>> slots;
};

/// While it lives, what its thread finds is not freed. Whoever reads is counted before he looks for the table, so a
/// stripe that is empty after a table was replaced has nobody left who knows the old one.
class RateWindows::Reading {
 public:
  explicit Reading(RateWindows& windows) : readers_(windows.stripes_[stripe_of_this_thread() % stripes].readers) {
    readers_.fetch_add(1);
  }
  ~Reading() { readers_.fetch_sub(1); }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

 private:
  std::atomic<std::uint32_t>& readers_;
};

RateWindows::RateWindows(Rate rate, std::shared_ptr<RateMemory> memory)
    : rate_(rate),
      number_(next_number()),
      window_ticks_((static_cast<std::uint64_t>(rate.window.count()) + tick_ns - 1) / tick_ns),
      memory_(std::move(memory)),
      owned_table_(std::make_unique<Table>(table_min)) {
  table_ = owned_table_.get();
}

RateWindows::~RateWindows() {
  for (const auto& window : windows_) *memory_ += bytes_of(window->who);
}

RateWindows::Verdict RateWindows::look(std::string_view who, Monotonic now) { return ask(who, now, false); }
RateWindows::Verdict RateWindows::take(std::string_view who, Monotonic now) { return ask(who, now, true); }

RateWindows::Verdict RateWindows::ask(std::string_view who, Monotonic now, bool take) {
  const std::uint64_t hash = hash_text(who);
  const std::uint64_t tick = ticks(now);
  const auto verdict = [](const Window::Answer& answer) -> Verdict {
    if (answer.kind == Window::Answer::room) return {};
    return {Verdict::limited, Nanos(static_cast<std::int64_t>(answer.ticks * tick_ns))};
  };
  {
    const Reading reading(*this);
    Window* known = find(*table_.load(), who, hash);
    if (known == nullptr && !take) return {};
    if (known != nullptr) {
      const Window::Answer answer = known->ask(tick, window_ticks_, rate_.limit, take);
      if (answer.kind != Window::Answer::gone) return verdict(answer);
      if (!take) return {};  // nothing in it counted any more
    }
  }
  const std::lock_guard lock(mutex_);
  Window* window = find(*owned_table_, who, hash);
  if (window == nullptr) window = make(who, hash, tick);
  if (window == nullptr) return {Verdict::no_memory, rate_.window};
  // Only who holds the mutex ends one.
  return verdict(window->ask(tick, window_ticks_, rate_.limit, take));
}

RateWindows::Window* RateWindows::find(const Table& table, std::string_view who, std::uint64_t hash) {
  const std::size_t mask = table.slots.size() - 1;
  for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
    Window* window = table.slots[at].load(std::memory_order_acquire);
    if (window == nullptr || (window->hash == hash && window->who == who)) return window;
  }
}

std::int64_t RateWindows::bytes_of(std::string_view who) const {
  return static_cast<std::int64_t>(sizeof(Window) + who.size() + rate_.limit * sizeof(std::uint64_t) + 64);
}

RateWindows::Window* RateWindows::make(std::string_view who, std::uint64_t hash, std::uint64_t tick) {
  bury();
  const std::int64_t bytes = bytes_of(who);
  const auto reserve = [&] {
    if (memory_->fetch_sub(bytes) >= bytes) return true;
    memory_->fetch_add(bytes);
    return false;
  };
  if ((windows_.size() + 1) * 2 > owned_table_->slots.size()) sweep(tick);
  if (!reserve()) {
    // Not for every newcomer: sweeping looks at everybody.
    if (tick < swept_at_ + window_ticks_ / 16) return nullptr;
    sweep(tick);
    if (!reserve()) return nullptr;
  }
  windows_.push_back(std::make_unique<Window>(who, hash, rate_.limit));
  owned_table_->add(windows_.back().get());
  return windows_.back().get();
}

/// Lets go of whoever did nothing for a window, and makes a table for the others and as many again as they are.
void RateWindows::sweep(std::uint64_t tick) {
  swept_at_ = tick;
  const auto idle = std::stable_partition(windows_.begin(), windows_.end(), [&](const auto& window) {
    return !window->close_idle(tick, window_ticks_, rate_.limit);
  });
  for (auto at = idle; at != windows_.end(); ++at) {
    *memory_ += bytes_of((*at)->who);
    grave_.windows.push_back(std::move(*at));
  }
  windows_.erase(idle, windows_.end());
  auto next = std::make_unique<Table>(std::bit_ceil(std::max(table_min, (windows_.size() + 1) * 4)));
  for (const auto& window : windows_) next->add(window.get());
  table_ = next.get();
  grave_.tables.push_back(std::exchange(owned_table_, std::move(next)));
  grave_.left = {};
  bury();
}

void RateWindows::bury() {
  if (grave_.tables.empty()) return;
  for (std::size_t i = 0; i < stripes; ++i)
    if (stripes_[i].readers.load() == 0) grave_.left[i] = true;
  if (std::find(grave_.left.begin(), grave_.left.end(), false) == grave_.left.end()) grave_ = Grave();
}

}  // namespace creto::authz
