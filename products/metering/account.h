#pragma once

#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cell.h"
#include "terms.h"

namespace creto::metering {

/// Accumulated cost is told for these windows, all of UTC.
inline constexpr std::array cost_windows{WindowKind::hour, WindowKind::day, WindowKind::month, WindowKind::lifetime};
inline constexpr std::size_t hour_cost = 0;

/// When an account's hours are unusual, and by how much.
struct AnomalyRules {
  bool detect = true;
  std::uint32_t hours_min = 24;  ///< completed hours of history before anything counts as unusual
  double deviations = 6;         ///< how many standard deviations above the mean hour
  double factor = 3;             ///< and how many times the mean hour
};

/// What an account's hours usually cost: mean and variance, fading after a week.
struct Rhythm {
  static constexpr float hours_remembered = 168;
  float hours = 0;
  float mean = 0;
  float variance = 0;

  void learn(float value) {
    hours = std::min(hours + 1, hours_remembered);
    const float delta = value - mean;
    mean += delta / hours;
    variance += (delta * (value - mean) - variance) / hours;
  }
  NanoMoney unusual_above(const AnomalyRules& rules) const;
};

/// What an account has cost, by window and by type of event.
struct Costs {
  struct OfType {
    std::uint32_t type = 0;
    std::array<NanoMoney, cost_windows.size()> values{};
  };
  Cell<NanoMoney> held{};
  std::array<Cell<NanoMoney>, cost_windows.size()> totals{};
  Cell<NanoMoney> unusual{};  ///< an hour that costs more is one; 0: none is
  Rhythm rhythm{};
  OfType first{};  ///< most accounts have one type
  std::unique_ptr<std::vector<OfType>> others{};

  OfType& of(std::uint32_t type);
  template <class Visit>
  void each_type(Visit visit) const {
    visit(first);
    if (others != nullptr) {
      for (const OfType& one : *others) visit(one);
    }
  }
};

/// Use of a rolling window, by step number modulo the steps.
struct Ring {
  static constexpr std::int64_t size = Terms::rolling_steps + 1;
  std::uint32_t position = 0;  ///< of the counter
  std::int64_t step = -1;      ///< the newest
  std::array<std::int64_t, size> steps{};
};

/// A quota or threshold that is this account's own.
struct OwnId {
  std::uint32_t position;
  std::string id;
};

/// Counters beyond those that an account has inside.
struct MoreCounters {
  static constexpr std::size_t size = 5;
  std::array<Cell<std::int64_t>, size> used{};
  std::array<Cell<std::int64_t>, size> held{};
  std::array<Cell<std::uint32_t>, size> terms{};
  std::atomic<MoreCounters*> next{nullptr};
};

/// What most accounts do not have. The account owns it, and never gives it up, since readers hold no lock.
struct Extra {
  ~Extra();
  std::atomic<MoreCounters*> more{nullptr};
  Costs costs;
  // Under the lock.
  std::unique_ptr<std::vector<OwnId>> own;
  std::unique_ptr<std::vector<std::unique_ptr<Ring>>> rings;
};

/// The counters of one identity or subscription: two cache lines. Zero everywhere is an account that used nothing.
///
/// Writers hold the lock, which is `version` being odd. Readers take none: what they read between two reads of the same
/// even version belongs together. A counter's place is free again once it is not active and nothing is held in it.
class alignas(128) Account {
 public:
  static constexpr std::size_t inside = 5;
  static constexpr std::uint32_t active = 1u << 31;
  static constexpr std::uint32_t soft_noticed = 1u << 30;
  static constexpr std::uint32_t hard_noticed = 1u << 29;
  static constexpr std::uint32_t number_mask = hard_noticed - 1;

  std::atomic<std::uint32_t> version{0};
  std::atomic<AccountNumber> billed_to{AccountNumber::none};
  /// Of the latest use, in Unix nanoseconds. Counters of windows that begin later hold nothing.
  Cell<std::int64_t> stamp{};
  std::atomic<Extra*> extra{nullptr};
  std::array<Cell<std::int64_t>, inside> used{};
  std::array<Cell<std::int64_t>, inside> held{};
  std::array<Cell<std::uint32_t>, inside> terms{};
  Cell<std::uint32_t> defaults{};  ///< the set of terms that its counters follow

  ~Account() { delete extra.load(); }  // tidy(delete): readers hold no lock, so that a unique_ptr cannot be replaced

  struct Counter {
    Cell<std::int64_t>& used;
    Cell<std::int64_t>& held;
    Cell<std::uint32_t>& word;  ///< flags and terms
    std::uint32_t position;

    bool is_active() const { return (word.get() & active) != 0; }
    std::uint32_t number() const { return word.get() & number_mask; }
  };
  /// Visits all places until one is answered with false.
  template <class Visit>
  void each_place(Visit visit) {
    for (std::uint32_t i = 0; i < inside; ++i) {
      if (!visit(Counter{used[i], held[i], terms[i], i})) return;
    }
    const Extra* beyond = extra.load(std::memory_order_acquire);
    if (beyond == nullptr) return;
    std::uint32_t position = inside;
    for (MoreCounters* more = beyond->more.load(std::memory_order_acquire); more != nullptr;
         more = more->next.load(std::memory_order_acquire)) {
      for (std::uint32_t i = 0; i < MoreCounters::size; ++i, ++position) {
        if (!visit(Counter{more->used[i], more->held[i], more->terms[i], position})) return;
      }
    }
  }
  /// Visits active counters with their terms.
  template <class Visit>
  void each(const TermsTable& table, Visit visit) {
    each_place([&](Counter counter) {
      const std::uint32_t word = counter.word.get();
      if ((word & active) != 0) visit(counter, table[word & number_mask]);
      return true;
    });
  }

  // --- under the lock
  Counter place(std::uint32_t position);
  /// An empty place for a counter of `what`: the one where what reservations hold of the same is left, if there is one.
  Counter free_place(const TermsTable& table, std::uint32_t what);
  Extra& obtain_extra();
  Ring& ring(std::uint32_t position);
  std::string own_id(std::uint32_t position) const;  ///< empty: the counter follows a default
  void set_own_id(std::uint32_t position, std::string_view id);
  void end(Counter counter);

  /// Makes the defaults of `set` what this account's counters follow, where it has none of its own that count the same.
  void follow(const TermsTable& table, std::uint32_t set);
  /// Brings all windows to `ns`; an older `ns` changes nothing.
  void roll(const TermsTable& table, std::int64_t ns, const AnomalyRules& rules);
  /// Adds to a counter what was used at `ns`, if its present window holds that. Requires: rolled to the later of both.
  void adjust(Counter counter, const Terms& terms, std::int64_t amount, std::int64_t ns);
  void adjust_cost(std::uint32_t type, NanoMoney cost, std::int64_t ns);

  /// What the counter holds of the window around `ns`, which is not before `stamp`. Of a rolling one perhaps too much.
  std::int64_t used_in(const Counter& counter, const Terms& terms, std::int64_t ns) const {
    return terms.calendar() && stamp.get() < terms.window_begin(ns) ? 0 : counter.used.get();
  }
  std::optional<Instant> reset_at(const Counter& counter, const Terms& terms, std::int64_t ns) const;
  NanoMoney cost_in(std::size_t window, std::int64_t ns) const;

  void lock() {
    for (unsigned tries = 1;; ++tries) {
      std::uint32_t seen = version.load(std::memory_order_relaxed);
      if ((seen & 1) == 0 && version.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return;
      if (tries % 64 == 0) std::this_thread::yield();  // who holds it may wait for this processor
    }
  }
  void unlock() { version.store(version.load(std::memory_order_relaxed) + 1, std::memory_order_release); }

 private:
  const Ring* find_ring(std::uint32_t position) const;
};
static_assert(sizeof(Account) == 128);

}  // namespace creto::metering
