#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ledger/layout.h"
#include "limits/rhythm.h"
#include "limits/session_life.h"
#include "limits/terms.h"
#include "tables/cell.h"

namespace creto::metering {

/// The latest time that calendars are asked for: the end of 2260.
inline constexpr std::int64_t latest_ns = 9'183'110'400'000'000'000;

inline constexpr std::size_t hour_cost = 0;

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
  std::uint32_t first_type = 0;  ///< most accounts have one
  std::array<NanoMoney, cost_windows.size()> of_first{};
  std::unique_ptr<std::vector<OfType>> others{};

  std::array<NanoMoney, cost_windows.size()>& of(std::uint32_t type);
  /// As if nothing had been used; what is held stays.
  void clear();
  /// `visit(type, values)`.
  template <class Visit>
  void each_type(Visit visit) const {
    visit(first_type, of_first);
    if (others != nullptr) {
      for (const OfType& one : *others) visit(one.type, one.values);
    }
  }
};

/// Use of a rolling window, by step number modulo the steps.
struct Ring {
  static constexpr std::int64_t size = Terms::rolling_steps + 1;
  std::uint32_t position = 0;  ///< of the counter
  std::int64_t step = 0;       ///< the newest
  std::array<std::int64_t, size> steps{};

  std::int64_t& at(std::int64_t number) { return steps[static_cast<std::size_t>(number % size)]; }
  /// Makes `now` the newest step; returns what is forgotten by that.
  std::int64_t forget_before(std::int64_t now);
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
  std::array<Cell<std::uint32_t>, size> words{};
  std::atomic<MoreCounters*> next{nullptr};
};

/// What few accounts have.
struct Rare {
  std::vector<OwnId> own;
  std::vector<std::unique_ptr<Ring>> rings;
  std::unique_ptr<WeekRhythm> week;  ///< of those with a cost threshold of their own
};

/// What not every account has: what it costs, more counters. Never given up, since readers hold no lock.
struct alignas(64) Extra {
  ~Extra();
  std::atomic<MoreCounters*> more{nullptr};
  Costs costs;
  std::unique_ptr<Rare> rare;  ///< under the account's lock
  SessionLife life;            ///< of a session; likewise
};
static_assert(sizeof(Extra) == 128);

/// What accounts share.
struct Books {
  explicit Books(Currency accounting) : terms(std::move(accounting)) {}
  TermsTable terms;
  AnomalyRules anomalies;
  Chunks<Extra, 1 << 14> extras;
  std::mutex extras_mutex;
};

/// Terms of a copy, as this process knows them.
struct CopiedTerms {
  std::uint32_t what = 0;  ///< 0: nothing counts that any more
  bool each = false;
  std::string id{};  ///< of a default
};

/// The counters of one identity or subscription: two cache lines. Facts write the first one; questions are answered
/// from the second one wherever there is room enough, so that they do not wait for facts that another processor counts.
///
/// Writers hold the lock, which is `version` being odd. Readers take none: what they read between two reads of the same
/// even version belongs together. Zero everywhere is an account that used nothing. A counter's place is free again once
/// it is not active and nothing is held in it.
///
/// That of a session has an extra from the beginning, and may become another session's once it is over.
class alignas(128) Account {
 public:
  static constexpr std::size_t inside = 5;
  // A counter's word: flags above the number of its terms.
  static constexpr std::uint32_t active = 1u << 31;
  static constexpr std::uint32_t roomy = 1u << 30;  ///< at least the terms' margin is left
  static constexpr std::uint32_t soft_noticed = 1u << 29;
  static constexpr std::uint32_t hard_noticed = 1u << 28;
  static constexpr std::uint32_t number_mask = hard_noticed - 1;

  struct Counter {
    Cell<std::int64_t>& used;
    Cell<std::int64_t>& held;
    Cell<std::uint32_t>& word;
    std::uint32_t position;

    bool is_active() const { return (word.get() & active) != 0; }
    std::uint32_t number() const { return word.get() & number_mask; }
  };
  /// Visits all places until one is answered with false.
  template <class Visit>
  void each_place(const Books& books, Visit visit) {
    for (std::uint32_t i = 0; i < inside; ++i) {
      if (!visit(Counter{used_[i], i + 1 < inside ? held_[i] : held_last_, words_[i], i})) return;
    }
    if (beyond_.get() == 0) return;
    std::uint32_t position = inside;
    for (MoreCounters* more = extra(books)->more.load(std::memory_order_acquire); more != nullptr;
         more = more->next.load(std::memory_order_acquire)) {
      for (std::uint32_t i = 0; i < MoreCounters::size; ++i, ++position) {
        if (!visit(Counter{more->used[i], more->held[i], more->words[i], position})) return;
      }
    }
  }
  /// Whether every active counter satisfies `test(terms, roomy)`, which is told of each at one instant.
  template <class Test>
  bool all_of(const Books& books, Test test) {
    bool all = true;
    const auto visit = [&](std::uint32_t word) {
      if ((word & active) != 0) all = test(books.terms[word & number_mask], (word & roomy) != 0);
      return all;
    };
    for (const auto& word : words_) {
      if (!visit(word.get())) return false;
    }
    if (beyond_.get() != 0) each_place(books, [&](Counter counter) { return visit(counter.word.get()); });
    return all;
  }
  /// Visits active counters with their terms.
  template <class Visit>
  void each(const Books& books, Visit visit) {
    each_place(books, [&](Counter counter) {
      const std::uint32_t word = counter.word.get();
      if ((word & active) != 0) visit(counter, books.terms[word & number_mask]);
      return true;
    });
  }

  // --- without the lock
  std::int64_t stamp() const { return stamp_.get(); }
  Extra* extra(const Books& books) const {
    const std::uint32_t number = extra_.get();
    return number == 0 ? nullptr : &books.extras[number];
  }
  std::uint32_t defaults() const { return defaults_.get(); }
  AccountNumber billed_to() const { return billed_to_.get(); }
  void set_billed_to(AccountNumber subscription) { billed_to_.set(subscription); }
  /// What the counter holds of the window around `ns`, which is not before the stamp. Of a rolling one perhaps too
  /// much.
  std::int64_t used_in(const Counter& counter, const Terms& terms, std::int64_t ns) const {
    return terms.calendar() && stamp_.get() < terms.window_begin(ns) ? 0 : counter.used.get();
  }
  NanoMoney cost_in(const Books& books, std::size_t window, std::int64_t ns) const;
  std::uint32_t version() const { return version_.load(std::memory_order_acquire); }
  bool is_still(std::uint32_t version) const { return version_.load(std::memory_order_relaxed) == version; }
  void prefetch_to_ask() const { __builtin_prefetch(&held_); }
  void prefetch_to_count() const {
    __builtin_prefetch(this, 1);
    __builtin_prefetch(&held_);
  }

  void lock() {
    for (unsigned tries = 1;; ++tries) {
      std::uint32_t seen = version_.load(std::memory_order_relaxed);
      if ((seen & 1) == 0 && version_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return;
      if (tries % 64 == 0) std::this_thread::yield();  // who holds it may wait for this processor
    }
  }
  void unlock() { version_.store(version_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }

  // --- under the lock
  Counter place(const Books& books, std::uint32_t position);
  /// An empty place for a counter of `what`: the one where what reservations hold of the same is left, if there is one.
  Counter free_place(Books& books, std::uint32_t what);
  Extra& obtain_extra(Books& books);
  Rare& obtain_rare(Books& books);
  std::string own_id(const Books& books, std::uint32_t position) const;  ///< empty: the counter follows a default
  void set_own_id(Books& books, std::uint32_t position, std::string_view id);
  /// From now on the counter is counted by these terms, notices not given yet.
  void begin(const Books& books, Counter counter, std::uint32_t terms);
  void end(const Books& books, Counter counter);
  void set_used(Counter counter, const Terms& terms, std::int64_t used) const {
    set(counter, terms, used, counter.held.get());
  }
  void set_held(Counter counter, const Terms& terms, std::int64_t held) const {
    set(counter, terms, counter.used.get(), held);
  }

  /// Makes the defaults of `set` what this account's counters follow, where it has none of its own that count the same.
  void follow(Books& books, std::uint32_t set);
  /// Brings all windows to `ns`, and to the newest defaults; an older `ns` changes nothing.
  void bring_up(Books& books, std::int64_t ns) {
    if (books.terms.replaced(defaults_.get())) follow(books, books.terms.newest(defaults_.get()));
    if (ns > stamp_.get()) roll(books, ns);
  }
  /// Adds to a counter what was used at `ns`, if its present window holds that. Requires: brought up to the later of
  /// both.
  void adjust(Books& books, Counter counter, const Terms& terms, std::int64_t amount, std::int64_t ns) {
    if (terms->window == WindowKind::rolling) {
      if (!adjust_ring(books, counter.position, terms, amount, ns)) return;
    } else if (terms->window > WindowKind::lifetime || ns < terms.window_begin(stamp_.get())) {
      return;  // holds nothing that was used, or not this
    }
    set_used(counter, terms, add_saturating(counter.used.get(), amount));
  }
  void adjust_cost(Books& books, std::uint32_t type, NanoMoney cost, std::int64_t ns);
  /// Requires: it is a session's.
  SessionLife& life(const Books& books) { return extra(books)->life; }
  /// Whether a session leaves nothing behind at `ns`: it is over or was never used, holds nothing, and nothing is said
  /// of it by its name.
  bool may_go(const Books& books, std::int64_t ns);
  /// Makes it nobody's. Requires: `may_go`, and that nobody reads it.
  void clear(Books& books);
  void learn_weeks(Books& books);  ///< from now on
  /// Of the hour around `ns`.
  Expectation expect(const Books& books, std::int64_t ns) const;
  /// All but what is held (docs/formats.md, "Copy of counters"). False where there is nothing to say.
  bool write(const Books& books, Bytes& out);
  /// Takes what `write` wrote; counters that nothing counts any more are dropped. `types` are those of costs. Positions
  /// that were found are added to `found`. Requires: nothing was counted here yet.
  void read(Books& books, layout::Reader& reader, std::span<const CopiedTerms> terms,
            std::span<const std::uint32_t> types, std::vector<std::uint32_t>& found);
  std::optional<Instant> reset_at(const Books& books, const Counter& counter, const Terms& terms,
                                  std::int64_t ns) const;

 private:
  /// Who sees `roomy` may rely on it: it goes before there is less.
  static void set(const Counter& counter, const Terms& terms, std::int64_t used, std::int64_t held) {
    const std::uint32_t word = counter.word.get();
    const bool has_room = add_saturating(used, held) <= terms->limit - terms->margin;
    if (!has_room && (word & roomy) != 0) counter.word.set(word & ~roomy);
    counter.used.set(used);
    counter.held.set(held);
    if (has_room && (word & roomy) == 0) counter.word.set(word | roomy);
  }
  void roll(Books& books, std::int64_t ns);
  void begin_anew(Books& books);
  void roll_costs(Books& books, std::int64_t ns);
  Ring* find_ring(const Books& books, std::uint32_t position) const;
  bool adjust_ring(Books& books, std::uint32_t position, const Terms& terms, std::int64_t amount, std::int64_t ns);

  // The first line: what facts write.
  std::atomic<std::uint32_t> version_{0};
  Cell<std::uint32_t> extra_{};  ///< 0: none
  /// Of the latest use, in Unix nanoseconds. Counters of windows that begin later hold nothing.
  Cell<std::int64_t> stamp_{};
  std::array<Cell<std::int64_t>, inside> used_{};
  Cell<std::int64_t> held_last_{};
  // The second line: what questions read.
  std::array<Cell<std::int64_t>, inside - 1> held_{};
  std::array<Cell<std::uint32_t>, inside> words_{};
  Cell<std::uint32_t> defaults_{};  ///< the set of terms that the counters follow
  Cell<AccountNumber> billed_to_{};
  Cell<std::uint32_t> beyond_{};  ///< 1: the extra has more counters
};
static_assert(sizeof(Account) == 128);

}  // namespace creto::metering
