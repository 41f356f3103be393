#include "counters.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "creto/common/assert.h"
#include "published_map.h"
#include "window.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;
using contracts::ThresholdAction;

constexpr std::size_t quotas_per_subject_max = 256;
constexpr std::size_t thresholds_per_subject_max = 64;
constexpr std::size_t event_types_max = 4096;
constexpr std::int64_t rolling_steps = 60;
/// Agent, nine ancestors and a subscription, twice: a settlement may touch those of its hold and those of the use.
constexpr std::size_t accounts_at_once_max = 2 * (delegation_chain_max_depth + 2);

const Decimal billion = Decimal(1'000'000'000);
const Decimal billionth = Decimal::literal("0.000000001");

std::int64_t add_saturating(std::int64_t a, std::int64_t b) {
  std::int64_t sum = 0;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b > 0 ? INT64_MAX : INT64_MIN;
}

std::uint64_t hash_of(std::string_view org, std::string_view name) {
  const std::uint64_t a = std::hash<std::string_view>()(org);
  const std::uint64_t b = std::hash<std::string_view>()(name);
  return b ^ (a + 0x9E3779B97F4A7C15ull + (b << 6) + (b >> 2));
}

/// A value that one thread writes under the account's lock and others read without. Acquire and release on every access
/// keep the version of the seqlock around them in its place, without fences.
template <class T>
class Cell {
 public:
  explicit Cell(T value = {}) : value_(value) {}
  T get() const { return value_.load(std::memory_order_acquire); }
  void set(T value) { value_.store(value, std::memory_order_release); }

 private:
  std::atomic<T> value_;
};

/// A name that quotas count, as a number.
struct EventType {
  std::uint64_t hash;
  std::string name;
  std::uint32_t number;  ///< from 1
};

/// One quota and its counters. Never freed before the account, so that readers need no care.
struct Slot {
  Slot(const Quota& quota, std::uint32_t type_number)
      : id(quota.id),
        subject(quota.subject),
        event_type(quota.event_type),
        type(type_number),
        kind(quota.window),
        length(quota.rolling_length),
        definition(quota) {}

  const std::string id;
  const std::string subject;
  const std::string event_type;
  const std::uint32_t type;
  const WindowKind kind;
  const Nanos length;
  std::atomic<Slot*> next{nullptr};

  Cell<bool> active;
  Cell<std::int64_t> limit;
  Cell<Overflow> overflow;
  Cell<std::int64_t> window_begin{INT64_MAX};  ///< of the step, in a rolling window
  Cell<std::int64_t> window_end{INT64_MIN};
  Cell<std::int64_t> used;
  Cell<std::int64_t> held;

  // Under the account's lock.
  Quota definition;
  std::vector<std::int64_t> steps;           ///< rolling only: use by step number modulo size
  std::optional<std::int64_t> soft_noticed;  ///< the window it was noticed in
  std::optional<std::int64_t> hard_noticed;

  Nanos step() const { return length / rolling_steps; }

  /// Brings the window to `now`; an older `now` changes nothing.
  void roll(Instant now) {
    const std::int64_t ns = unix_ns(now);
    CRETO_ASSERT(ns >= 0);
    if (ns < window_end.get()) return;
    if (kind != WindowKind::rolling) {
      const Period window = calendar_window(kind, now);
      window_begin.set(unix_ns(window.begin));
      window_end.set(unix_ns(window.end));
      used.set(0);
      return;
    }
    const std::int64_t size = rolling_steps + 1;
    const std::int64_t width = step().count();
    const std::int64_t current = ns / width;
    if (steps.empty()) {
      steps.assign(static_cast<std::size_t>(size), 0);
    } else {
      const std::int64_t last = window_begin.get() / width;
      std::int64_t sum = used.get();
      for (std::int64_t gone = last + 1; gone <= std::min(current, last + size); ++gone) {
        std::int64_t& cell = steps[static_cast<std::size_t>(gone % size)];
        sum -= cell;
        cell = 0;
      }
      used.set(sum);
    }
    window_begin.set(current * width);
    window_end.set((current + 1) * width);
  }

  void add_used(std::int64_t units) {
    used.set(add_saturating(used.get(), units));
    if (kind == WindowKind::rolling) {
      const std::int64_t number = window_begin.get() / step().count();
      std::int64_t& cell = steps[static_cast<std::size_t>(number % (rolling_steps + 1))];
      cell = add_saturating(cell, units);
    }
  }

  /// Adds what was used at `when`, if the present window still holds it.
  void replay(std::int64_t units, Instant when) {
    const std::int64_t ns = unix_ns(when);
    if (kind == WindowKind::rolling) {
      const std::int64_t number = ns / step().count();
      const std::int64_t current = window_begin.get() / step().count();
      if (number > current || current - number > rolling_steps) return;
      steps[static_cast<std::size_t>(number % (rolling_steps + 1))] += units;
    } else if (ns < window_begin.get()) {
      return;
    }
    used.set(add_saturating(used.get(), units));
  }

  std::optional<Instant> reset_at() const {
    if (kind == WindowKind::lifetime) return std::nullopt;
    if (kind != WindowKind::rolling || steps.empty()) return from_unix_ns(window_end.get());
    const std::int64_t size = rolling_steps + 1;
    const std::int64_t current = window_begin.get() / step().count();
    for (std::int64_t number = current - rolling_steps; number <= current; ++number) {
      if (steps[static_cast<std::size_t>(number % size)] != 0) return from_unix_ns((number + size) * step().count());
    }
    return from_unix_ns(window_end.get());
  }

  /// Names the window for the once-per-window rule of notices.
  std::int64_t notice_window() const {
    if (kind != WindowKind::rolling) return window_begin.get();
    return window_begin.get() / length.count() * length.count();
  }
};

/// One cost threshold.
struct ThresholdSlot {
  ThresholdSlot(std::string i, std::string s, BillingPeriod p) : id(std::move(i)), subject(std::move(s)), period(p) {}
  const std::string id;
  const std::string subject;
  const BillingPeriod period;
  std::atomic<ThresholdSlot*> next{nullptr};

  Cell<bool> active;
  Cell<NanoMoney> limit;
  Cell<ThresholdAction> action;

  // Under the account's lock.
  std::vector<std::string> approvers;
  std::optional<std::int64_t> noticed;
};

constexpr std::array meter_kinds{WindowKind::hour, WindowKind::day, WindowKind::month, WindowKind::lifetime};
constexpr std::size_t hour_meter = 0;
using MeterValues = std::array<NanoMoney, meter_kinds.size()>;

std::size_t meter_of(BillingPeriod period) {
  switch (period) {
    case BillingPeriod::transaction:
      break;
    case BillingPeriod::hour:
      return 0;
    case BillingPeriod::day:
      return 1;
    case BillingPeriod::month:
      return 2;
    case BillingPeriod::lifetime:
      return 3;
  }
  CRETO_ASSERT(!"a transaction is no window");
  return 0;
}

struct Meter {
  Cell<std::int64_t> begin{INT64_MAX};
  Cell<std::int64_t> end{INT64_MIN};
  Cell<NanoMoney> used;
};

/// What an account's hours usually cost: mean and variance, fading after a week.
struct Rhythm {
  static constexpr double hours_remembered = 168;
  double hours = 0;
  double mean = 0;
  double variance = 0;

  void learn(double value) {
    hours = std::min(hours + 1, hours_remembered);
    const double delta = value - mean;
    mean += delta / hours;
    variance += (delta * (value - mean) - variance) / hours;
  }
};

struct Account {
  Account(std::uint64_t h, std::string_view o, std::string_view s) : hash(h), org(o), subject(s) {}
  ~Account() {
    // tidy(delete): a list that readers walk without a lock owns its nodes itself
    for (Slot* slot = slots.load(); slot != nullptr;) delete std::exchange(slot, slot->next.load());
    // tidy(delete): as above
    for (ThresholdSlot* slot = thresholds.load(); slot != nullptr;) delete std::exchange(slot, slot->next.load());
  }
  Account(const Account&) = delete;
  Account& operator=(const Account&) = delete;

  const std::uint64_t hash;
  const std::string org;
  const std::string subject;
  std::atomic<Account*> billed_to{nullptr};

  std::mutex mutex;
  std::atomic<std::uint32_t> version{0};  ///< odd while a writer is inside
  std::atomic<Slot*> slots{nullptr};
  std::atomic<ThresholdSlot*> thresholds{nullptr};
  std::array<Meter, meter_kinds.size()> meters;
  Cell<NanoMoney> cost_held;
  Cell<NanoMoney> unusual{INT64_MAX};  ///< an hour that costs more is one

  // Under the lock.
  std::size_t slot_count = 0;
  std::size_t threshold_count = 0;
  std::map<std::string, MeterValues, std::less<>> by_type;
  Rhythm rhythm;

  void roll_meters(Instant now, const LimitOptions& options) {
    for (std::size_t i = 0; i < meters.size(); ++i) {
      Meter& meter = meters[i];
      if (unix_ns(now) < meter.end.get()) continue;
      const Period window = calendar_window(meter_kinds[i], now);
      if (i == hour_meter && options.detect_anomalies && meter.end.get() != INT64_MIN) {
        rhythm.learn(static_cast<double>(meter.used.get()));
        const auto silent =
            std::min<std::int64_t>((unix_ns(window.begin) - meter.end.get()) / Nanos(std::chrono::hours(1)).count(),
                                   static_cast<std::int64_t>(Rhythm::hours_remembered));
        for (std::int64_t hour = 0; hour < silent; ++hour) rhythm.learn(0);
        const bool known = rhythm.hours >= options.anomaly_hours_min && rhythm.mean > 0;
        const double bound = std::max(rhythm.mean + options.anomaly_deviations * std::sqrt(rhythm.variance),
                                      options.anomaly_factor * rhythm.mean);
        unusual.set(known && bound < 9e18 ? static_cast<NanoMoney>(bound) : INT64_MAX);
      }
      meter.begin.set(unix_ns(window.begin));
      meter.end.set(unix_ns(window.end));
      meter.used.set(0);
      for (auto& [type, values] : by_type) values[i] = 0;
    }
  }
};

/// Locks accounts in the order of their addresses and marks them as being written.
class Locked {
 public:
  explicit Locked(std::span<Account* const> accounts) {
    CRETO_ASSERT(accounts.size() <= accounts_.size());
    std::ranges::copy(accounts, accounts_.begin());
    const auto filled = accounts_.begin() + static_cast<std::ptrdiff_t>(accounts.size());
    std::sort(accounts_.begin(), filled, std::less<>());
    count_ = static_cast<std::size_t>(std::unique(accounts_.begin(), filled) - accounts_.begin());
    for (std::size_t i = 0; i < count_; ++i) {
      accounts_[i]->mutex.lock();
      accounts_[i]->version.store(accounts_[i]->version.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
  }
  ~Locked() {
    for (std::size_t i = count_; i-- > 0;) {
      accounts_[i]->version.store(accounts_[i]->version.load(std::memory_order_relaxed) + 1, std::memory_order_release);
      accounts_[i]->mutex.unlock();
    }
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  std::array<Account*, accounts_at_once_max> accounts_{};
  std::size_t count_ = 0;
};

/// The accounts a use counts for, most specific first, and the names it counts under.
struct Targets {
  std::array<Account*, delegation_chain_max_depth + 2> accounts{};
  std::size_t count = 0;
  std::array<std::uint32_t, 2> types{};  ///< 0: no quota has that name

  std::span<Account* const> span() const { return {accounts.data(), count}; }
  void push(Account* account) {
    if (account == nullptr || std::ranges::find(span(), account) != span().end()) return;
    CRETO_ASSERT(count < accounts.size());
    accounts[count++] = account;
  }
  bool counts(const Slot& slot) const { return slot.type == types[0] || slot.type == types[1]; }
};

template <class Visit>
void each(const std::atomic<Slot*>& head, Visit visit) {
  for (Slot* slot = head.load(std::memory_order_acquire); slot != nullptr;
       slot = slot->next.load(std::memory_order_acquire)) {
    if (slot->active.get()) visit(*slot);
  }
}
template <class Visit>
void each(const std::atomic<ThresholdSlot*>& head, Visit visit) {
  for (ThresholdSlot* slot = head.load(std::memory_order_acquire); slot != nullptr;
       slot = slot->next.load(std::memory_order_acquire)) {
    if (slot->active.get()) visit(*slot);
  }
}
template <class S>
void append(std::atomic<S*>& head, S* slot) {
  std::atomic<S*>* end = &head;
  while (S* there = end->load(std::memory_order_acquire)) end = &there->next;
  end->store(slot, std::memory_order_release);
}

void describe(Verdict& verdict, const Slot& slot, std::int64_t used) {
  verdict.limited = true;
  verdict.id = slot.id;
  verdict.subject = slot.subject;
  verdict.event_type = slot.event_type;
  verdict.window = slot.kind;
  verdict.limit = slot.limit.get();
  verdict.used = used;
}

std::int64_t left(const Verdict& verdict) { return add_saturating(verdict.limit, -verdict.used); }

struct Reservation {
  std::string org, agent, event_type, action;
  std::int64_t units;
  NanoMoney cost;
  Instant expires_at;
  std::vector<std::pair<Account*, Slot*>> slots;
  std::vector<Account*> accounts;

  bool same(const Use& use) const {
    return org == use.org && agent == use.agent && event_type == use.event_type && action == use.action &&
           units == use.units && cost == use.cost;
  }
};

/// One of many tables of reservations. Its lock comes before those of accounts.
struct Shard {
  std::mutex mutex;
  std::unordered_map<ReservationId, Reservation> open;
  std::set<std::pair<Instant, ReservationId>> by_expiry;
  std::atomic<std::int64_t> earliest{INT64_MAX};

  void note_earliest() {
    earliest.store(by_expiry.empty() ? INT64_MAX : unix_ns(by_expiry.begin()->first), std::memory_order_release);
  }
};

}  // namespace

Result<NanoMoney> to_nano_money(const Decimal& amount) {
  const Decimal rounded = CRETO_TRY(amount.round(9, Decimal::Rounding::half_up));
  const Decimal nanos = CRETO_TRY(Decimal::multiply(rounded, billion));
  return nanos.to_integer();
}

Decimal from_nano_money(NanoMoney amount) { return Decimal::multiply(Decimal(amount), billionth).value(); }

Result<std::int64_t> to_whole_units(const Decimal& units) {
  if (!units.is_negative()) {
    const auto whole = units.round(0, Decimal::Rounding::up);
    if (whole) {
      const auto number = whole->to_integer();
      if (number && *number <= limit_max) return *number;
    }
  }
  return Error(Product::metering, ErrorKind::invalid_input,
               fmt::format("units `{}`: must be 0 to 10^18", units.to_string()));
}

struct Limits::Added {
  struct Counted {
    Account* account;
    Slot* slot;
    std::int64_t window_begin;
  };
  struct Spent {
    Account* account;
    std::array<std::int64_t, meter_kinds.size()> begins;
  };
  std::int64_t units;
  NanoMoney cost;
  std::string event_type;
  std::vector<Counted> counted;
  std::vector<Spent> spent;
};

struct Limits::Impl {
  LimitOptions options;
  PublishedMap<Account> accounts;
  PublishedMap<EventType> types;
  std::array<Shard, 64> shards;

  Account* find(std::string_view org, std::string_view subject) const {
    return accounts.find(hash_of(org, subject),
                         [&](const Account& account) { return account.subject == subject && account.org == org; });
  }
  Account* obtain(std::string_view org, std::string_view subject) {
    const std::uint64_t hash = hash_of(org, subject);
    return accounts.find_or_insert(
        hash, [&](const Account& account) { return account.subject == subject && account.org == org; },
        [&] { return std::make_unique<Account>(hash, org, subject); });
  }
  std::uint32_t type_number(std::string_view name) const {
    if (name.empty()) return 0;
    const EventType* type =
        types.find(std::hash<std::string_view>()(name), [&](const EventType& known) { return known.name == name; });
    return type == nullptr ? 0 : type->number;
  }
  std::array<std::uint32_t, 2> type_numbers(std::string_view event_type, std::string_view action) const {
    std::array<std::uint32_t, 2> numbers{type_number(event_type), type_number(action)};
    if (numbers[1] == numbers[0]) numbers[1] = 0;
    return numbers;
  }
  Shard& shard(const ReservationId& id) { return shards[std::hash<ReservationId>()(id) % shards.size()]; }

  template <class Lookup>
  Targets targets(const Use& use, Lookup lookup) const {
    CRETO_ASSERT(use.chain.size() <= delegation_chain_max_depth);
    Targets result;
    result.types = type_numbers(use.event_type, use.action);
    Account* billed_to = nullptr;
    const auto take = [&](std::string_view subject) {
      Account* account = lookup(subject);
      result.push(account);
      if (account != nullptr && billed_to == nullptr) billed_to = account->billed_to.load(std::memory_order_acquire);
    };
    take(use.agent);
    for (auto ancestor = use.chain.rbegin(); ancestor != use.chain.rend(); ++ancestor) take(ancestor->text());
    if (use.subscription) billed_to = use.subscription->empty() ? nullptr : lookup(*use.subscription);
    result.push(billed_to);
    return result;
  }
  Targets targets(const Use& use) const {
    return targets(use, [&](std::string_view subject) { return find(use.org, subject); });
  }

  /// True where it is certain, without a lock, that nothing in the account refuses. False says nothing.
  bool grants(const Account& account, const Targets& targets, const Use& use, std::int64_t now,
              Verdict& verdict) const {
    for (int attempt = 0; attempt < 4; ++attempt) {
      const std::uint32_t version = account.version.load(std::memory_order_acquire);
      if ((version & 1) != 0) continue;
      bool certain = true;
      Verdict seen = verdict;
      each(account.slots, [&](const Slot& slot) {
        if (!targets.counts(slot) || !certain) return;
        const std::int64_t end = slot.window_end.get();
        const std::int64_t used = add_saturating(slot.used.get(), slot.held.get());
        if (now >= end || add_saturating(used, use.units) > slot.limit.get()) {
          certain = false;
          return;
        }
        if (!seen.limited || slot.limit.get() - used < left(seen)) {
          describe(seen, slot, used);
          seen.reset_at = slot.kind == WindowKind::lifetime ? std::nullopt : std::optional(from_unix_ns(end));
        }
      });
      if (use.cost > 0) {
        each(account.thresholds, [&](const ThresholdSlot& slot) {
          if (slot.action.get() == ThresholdAction::block && exceeds(account, slot, use.cost, now)) certain = false;
        });
      }
      if (account.version.load(std::memory_order_relaxed) != version) continue;
      if (certain) verdict = seen;
      return certain;
    }
    return false;
  }

  /// Also true where the meter's window is over, which only somebody with the lock can tell.
  static bool exceeds(const Account& account, const ThresholdSlot& slot, NanoMoney cost, std::int64_t now) {
    if (slot.period == BillingPeriod::transaction) return cost > slot.limit.get();
    const Meter& meter = account.meters[meter_of(slot.period)];
    if (now >= meter.end.get()) return true;
    return add_saturating(add_saturating(meter.used.get(), account.cost_held.get()), cost) > slot.limit.get();
  }

  void roll(std::span<Account* const> all, Instant now) {
    for (Account* account : all) {
      each(account->slots, [&](Slot& slot) { slot.roll(now); });
      account->roll_meters(now, options);
    }
  }

  /// Requires: the accounts are locked and rolled.
  Verdict judge(const Targets& targets, const Use& use, Instant now) const {
    Verdict granted;
    std::optional<Verdict> refused;
    for (Account* account : targets.span()) {
      each(account->slots, [&](const Slot& slot) {
        if (!targets.counts(slot)) return;
        const std::int64_t used = add_saturating(slot.used.get(), slot.held.get());
        const bool over = add_saturating(used, use.units) > slot.limit.get();
        const Overflow overflow = slot.overflow.get();
        if (over && overflow != Overflow::allow_with_notification) {
          const auto kind =
              overflow == Overflow::block ? Verdict::Kind::quota_exceeded : Verdict::Kind::oversight_required;
          // What blocks goes before what a human might allow.
          if (!refused ||
              (refused->kind == Verdict::Kind::oversight_required && kind == Verdict::Kind::quota_exceeded)) {
            refused.emplace();
            refused->kind = kind;
            describe(*refused, slot, used);
            refused->reset_at = slot.reset_at();
          }
        } else if (!granted.limited || add_saturating(slot.limit.get(), -used) < left(granted)) {
          describe(granted, slot, used);
          granted.reset_at = slot.reset_at();
        }
      });
      if (use.cost <= 0) continue;
      each(account->thresholds, [&](const ThresholdSlot& slot) {
        if (slot.action.get() != ThresholdAction::block || !exceeds(*account, slot, use.cost, unix_ns(now))) return;
        if (refused && refused->kind != Verdict::Kind::oversight_required) return;
        refused.emplace();
        refused->kind = Verdict::Kind::budget_exceeded;
        refused->limited = true;
        refused->id = slot.id;
        refused->subject = slot.subject;
        refused->limit = slot.limit.get();
        refused->used = 0;
        if (slot.period != BillingPeriod::transaction) {
          const Meter& meter = account->meters[meter_of(slot.period)];
          refused->window = meter_kinds[meter_of(slot.period)];
          refused->used = add_saturating(meter.used.get(), account->cost_held.get());
          if (slot.period != BillingPeriod::lifetime) refused->reset_at = from_unix_ns(meter.end.get());
        }
      });
    }
    return refused ? *refused : granted;
  }

  void let_go(const Reservation& reservation) {
    for (const auto& [account, slot] : reservation.slots) slot->held.set(slot->held.get() - reservation.units);
    for (Account* account : reservation.accounts) account->cost_held.set(account->cost_held.get() - reservation.cost);
  }

  std::optional<Reservation> take(const ReservationId& id) {
    Shard& place = shard(id);
    const std::scoped_lock lock(place.mutex);
    auto node = place.open.extract(id);
    if (node.empty()) return std::nullopt;
    place.by_expiry.erase({node.mapped().expires_at, id});
    place.note_earliest();
    return std::move(node.mapped());
  }

  std::size_t expire(Shard& place, Instant now) {
    if (place.earliest.load(std::memory_order_acquire) > unix_ns(now)) return 0;
    const std::scoped_lock lock(place.mutex);
    std::size_t ended = 0;
    while (!place.by_expiry.empty() && place.by_expiry.begin()->first <= now) {
      const ReservationId id = place.by_expiry.begin()->second;
      place.by_expiry.erase(place.by_expiry.begin());
      const auto node = place.open.extract(id);
      const Locked locked(node.mapped().accounts);
      let_go(node.mapped());
      ++ended;
    }
    place.note_earliest();
    return ended;
  }
};

Limits::Limits(LimitOptions options) : impl_(std::make_unique<Impl>()) { impl_->options = options; }
Limits::~Limits() = default;

Result<> Limits::put_quota(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds) {
  const std::uint64_t hash = std::hash<std::string_view>()(quota.event_type);
  if (impl_->types.size() >= event_types_max && impl_->type_number(quota.event_type) == 0) {
    return Error(Product::metering, ErrorKind::resource_exhausted,
                 fmt::format("quotas already name {} event types", event_types_max));
  }
  const EventType* type = impl_->types.find_or_insert(
      hash, [&](const EventType& known) { return known.name == quota.event_type; },
      [&, number = static_cast<std::uint32_t>(impl_->types.size() + 1)] {
        return std::make_unique<EventType>(EventType{hash, quota.event_type, number});
      });

  Account* account = impl_->obtain(org, quota.subject);
  const Locked locked(std::array{account});
  Slot* slot = nullptr;
  for (Slot* known = account->slots.load(std::memory_order_acquire); known != nullptr;
       known = known->next.load(std::memory_order_acquire)) {
    if (known->id != quota.id) continue;
    const bool same =
        known->type == type->number && known->kind == quota.window && known->length == quota.rolling_length;
    if (same)
      slot = known;
    else
      known->active.set(false);
  }
  if (slot == nullptr) {
    if (account->slot_count >= quotas_per_subject_max) {
      return Error(Product::metering, ErrorKind::resource_exhausted,
                   fmt::format("`{}` already has {} quotas", quota.subject, quotas_per_subject_max));
    }
    slot = new Slot(quota, type->number);  // tidy(new): the list below owns it
    append(account->slots, slot);
    ++account->slot_count;
  }
  slot->definition = quota;
  slot->limit.set(quota.limit);
  slot->overflow.set(quota.overflow);
  if (!slot->active.get()) {  // new, or counted nothing while it was removed
    slot->window_end.set(INT64_MIN);
    slot->steps.clear();
    slot->used.set(0);
    slot->roll(now);
    for (const Seed& seed : seeds) slot->replay(seed.units, seed.when);
  }
  slot->roll(now);
  slot->soft_noticed.reset();  // a raised limit may be reached again
  slot->hard_noticed.reset();
  slot->active.set(true);
  return {};
}

void Limits::remove_quota(std::string_view org, const Quota& quota) {
  Account* account = impl_->find(org, quota.subject);
  if (account == nullptr) return;
  const Locked locked(std::array{account});
  each(account->slots, [&](Slot& slot) {
    if (slot.id == quota.id) slot.active.set(false);
  });
}

Result<> Limits::put_threshold(std::string_view org, const SubjectThreshold& threshold) {
  const contracts::CostThreshold& rule = threshold.threshold;
  const NanoMoney limit = CRETO_TRY(to_nano_money(rule.limit.amount));
  Account* account = impl_->obtain(org, threshold.subject);
  const Locked locked(std::array{account});
  ThresholdSlot* slot = nullptr;
  for (ThresholdSlot* known = account->thresholds.load(std::memory_order_acquire); known != nullptr;
       known = known->next.load(std::memory_order_acquire)) {
    if (known->id != rule.threshold_id) continue;
    if (known->period == rule.period)
      slot = known;
    else
      known->active.set(false);
  }
  if (slot == nullptr) {
    if (account->threshold_count >= thresholds_per_subject_max) {
      return Error(Product::metering, ErrorKind::resource_exhausted,
                   fmt::format("`{}` already has {} cost thresholds", threshold.subject, thresholds_per_subject_max));
    }
    slot = new ThresholdSlot(rule.threshold_id, threshold.subject, rule.period);  // tidy(new): the list below owns it
    append(account->thresholds, slot);
    ++account->threshold_count;
  }
  slot->limit.set(limit);
  slot->action.set(rule.action);
  slot->approvers = rule.approvers;
  slot->noticed.reset();
  slot->active.set(true);
  return {};
}

void Limits::remove_threshold(std::string_view org, const SubjectThreshold& threshold) {
  Account* account = impl_->find(org, threshold.subject);
  if (account == nullptr) return;
  const Locked locked(std::array{account});
  each(account->thresholds, [&](ThresholdSlot& slot) {
    if (slot.id == threshold.threshold.threshold_id) slot.active.set(false);
  });
}

void Limits::bind(std::string_view org, std::string_view agent, std::string_view subscription) {
  Account* billed_to = subscription.empty() ? nullptr : impl_->obtain(org, subscription);
  impl_->obtain(org, agent)->billed_to.store(billed_to, std::memory_order_release);
}

std::string_view Limits::subscription_of(std::string_view org, std::string_view agent,
                                         std::span<const Identity> chain) const {
  const auto of = [&](std::string_view subject) -> std::string_view {
    const Account* account = impl_->find(org, subject);
    const Account* billed_to = account == nullptr ? nullptr : account->billed_to.load(std::memory_order_acquire);
    return billed_to == nullptr ? std::string_view() : std::string_view(billed_to->subject);
  };
  std::string_view found = of(agent);
  for (auto ancestor = chain.rbegin(); found.empty() && ancestor != chain.rend(); ++ancestor)
    found = of(ancestor->text());
  return found;
}

Verdict Limits::check(const Use& use, Instant now) {
  const Targets targets = impl_->targets(use);
  Verdict verdict;
  const bool certain = std::ranges::all_of(targets.span(), [&](const Account* account) {
    return impl_->grants(*account, targets, use, unix_ns(now), verdict);
  });
  if (certain) return verdict;
  for (int attempt = 0;; ++attempt) {
    {
      const Locked locked(targets.span());
      impl_->roll(targets.span(), now);
      verdict = impl_->judge(targets, use, now);
    }
    if (verdict.kind == Verdict::Kind::granted || attempt > 0 || expire(now) == 0) return verdict;
  }
}

Verdict Limits::reserve(const ReservationId& id, const Use& use, Instant now, Instant expires_at) {
  const Targets targets =
      impl_->targets(use, [&](std::string_view subject) { return impl_->obtain(use.org, subject); });
  Shard& place = impl_->shard(id);
  Verdict verdict;
  for (int attempt = 0;; ++attempt) {
    {
      const std::scoped_lock lock(place.mutex);
      verdict = {};
      if (const auto known = place.open.find(id); known != place.open.end()) {
        if (!known->second.same(use)) verdict.kind = Verdict::Kind::conflict;
        return verdict;
      }
      const Locked locked(targets.span());
      impl_->roll(targets.span(), now);
      verdict = impl_->judge(targets, use, now);
      if (verdict.kind == Verdict::Kind::granted) {
        Reservation reservation{std::string(use.org),
                                std::string(use.agent),
                                std::string(use.event_type),
                                std::string(use.action),
                                use.units,
                                use.cost,
                                expires_at,
                                {},
                                {}};
        for (Account* account : targets.span()) {
          reservation.accounts.push_back(account);
          each(account->slots, [&](Slot& slot) {
            if (targets.counts(slot)) reservation.slots.emplace_back(account, &slot);
          });
        }
        for (const auto& [account, slot] : reservation.slots) {
          slot->held.set(slot->held.get() + use.units);
          // Pair of the check in judge(): what blocks is never held beyond its limit.
          CRETO_ASSERT(slot->overflow.get() != Overflow::block ||
                       slot->used.get() + slot->held.get() <= slot->limit.get());
        }
        for (Account* account : reservation.accounts) account->cost_held.set(account->cost_held.get() + use.cost);
        place.by_expiry.insert({expires_at, id});
        place.note_earliest();
        place.open.emplace(id, std::move(reservation));
        return verdict;
      }
    }
    if (attempt > 0 || expire(now) == 0) return verdict;
  }
}

bool Limits::release(const ReservationId& id) {
  const std::optional<Reservation> reservation = impl_->take(id);
  if (!reservation) return false;
  const Locked locked(reservation->accounts);
  impl_->let_go(*reservation);
  return true;
}

std::size_t Limits::expire(Instant now) {
  std::size_t ended = 0;
  for (Shard& place : impl_->shards) ended += impl_->expire(place, now);
  return ended;
}

std::shared_ptr<const Limits::Added> Limits::add(const Use& use, Instant now, std::optional<ReservationId> settles,
                                                 std::vector<Notice>& notices) {
  const Targets targets =
      impl_->targets(use, [&](std::string_view subject) { return impl_->obtain(use.org, subject); });
  auto added = std::make_shared<Added>();
  added->units = use.units;
  added->cost = use.cost;
  added->event_type = use.event_type;

  std::optional<Reservation> hold;
  if (settles) hold = impl_->take(*settles);
  std::vector<Account*> all(targets.span().begin(), targets.span().end());
  if (hold) all.insert(all.end(), hold->accounts.begin(), hold->accounts.end());
  const Locked locked(all);
  impl_->roll(targets.span(), now);
  if (hold) impl_->let_go(*hold);

  for (Account* account : targets.span()) {
    each(account->slots, [&](Slot& slot) {
      if (!targets.counts(slot)) return;
      slot.add_used(use.units);
      added->counted.push_back({account, &slot, slot.window_begin.get()});
      const std::int64_t used = slot.used.get();
      const std::int64_t limit = slot.limit.get();
      const std::int64_t window = slot.notice_window();
      const auto notice = [&](Notice::Kind kind) {
        const ThresholdAction action =
            kind == Notice::Kind::soft || slot.overflow.get() == Overflow::allow_with_notification
                ? ThresholdAction::notify_only
            : slot.overflow.get() == Overflow::block ? ThresholdAction::block
                                                     : ThresholdAction::require_approval;
        notices.push_back({kind, slot.id, slot.subject, used, limit, from_unix_ns(window),
                           std::string(to_string(slot.kind)), slot.event_type, action, slot.definition.approvers});
      };
      // used * 100 >= limit * percent, without overflow.
      __extension__ typedef __int128 Wide;
      if (limit > 0 && static_cast<Wide>(used) * 100 >= static_cast<Wide>(limit) * slot.definition.soft_percent &&
          slot.soft_noticed != window) {
        slot.soft_noticed = window;
        notice(Notice::Kind::soft);
      }
      if (used > limit && slot.hard_noticed != window) {
        slot.hard_noticed = window;
        notice(Notice::Kind::hard);
      }
    });

    Added::Spent spent{account, {}};
    auto type = account->by_type.find(use.event_type);
    if (type == account->by_type.end())
      type = account->by_type.emplace(std::string(use.event_type), MeterValues{}).first;
    for (std::size_t i = 0; i < account->meters.size(); ++i) {
      Meter& meter = account->meters[i];
      meter.used.set(add_saturating(meter.used.get(), use.cost));
      type->second[i] = add_saturating(type->second[i], use.cost);
      spent.begins[i] = meter.begin.get();
    }
    added->spent.push_back(spent);
    if (use.cost <= 0) continue;
    each(account->thresholds, [&](ThresholdSlot& slot) {
      NanoMoney used = use.cost;
      std::int64_t window = unix_ns(now);
      if (slot.period != BillingPeriod::transaction) {
        const Meter& meter = account->meters[meter_of(slot.period)];
        used = meter.used.get();
        window = meter.begin.get();
      }
      if (used <= slot.limit.get()) return;
      // Every transaction over its limit is told; a window only once.
      if (slot.period != BillingPeriod::transaction && slot.noticed == window) return;
      slot.noticed = window;
      notices.push_back({Notice::Kind::cost,
                         slot.id,
                         slot.subject,
                         used,
                         slot.limit.get(),
                         from_unix_ns(window),
                         std::string(contracts::to_string(slot.period)),
                         {},
                         slot.action.get(),
                         slot.approvers});
    });
  }
  return added;
}

void Limits::take_back(const Added& added) {
  std::vector<Account*> all;
  for (const auto& spent : added.spent) all.push_back(spent.account);
  const Locked locked(all);
  for (const auto& counted : added.counted) {
    Slot& slot = *counted.slot;
    slot.soft_noticed.reset();
    slot.hard_noticed.reset();
    if (slot.window_begin.get() == counted.window_begin) {
      slot.add_used(-added.units);
    } else if (slot.kind == WindowKind::rolling) {
      const std::int64_t width = slot.step().count();
      const std::int64_t number = counted.window_begin / width;
      if (slot.window_begin.get() / width - number > rolling_steps) continue;
      slot.steps[static_cast<std::size_t>(number % (rolling_steps + 1))] -= added.units;
      slot.used.set(slot.used.get() - added.units);
    }
  }
  for (const auto& spent : added.spent) {
    each(spent.account->thresholds, [](ThresholdSlot& slot) { slot.noticed.reset(); });
    const auto type = spent.account->by_type.find(added.event_type);
    for (std::size_t i = 0; i < spent.begins.size(); ++i) {
      Meter& meter = spent.account->meters[i];
      if (meter.begin.get() != spent.begins[i]) continue;
      meter.used.set(meter.used.get() - added.cost);
      if (type != spent.account->by_type.end()) type->second[i] -= added.cost;
    }
  }
}

void Limits::replay(std::string_view org, std::string_view subject, std::string_view event_type,
                    std::string_view action, std::int64_t units, NanoMoney cost, Instant when) {
  Account* account = impl_->obtain(org, subject);
  Targets targets;
  targets.types = impl_->type_numbers(event_type, action);
  const Locked locked(std::array{account});
  each(account->slots, [&](Slot& slot) {
    if (!targets.counts(slot)) return;
    slot.replay(units, when);
  });
  account->roll_meters(when, impl_->options);
  auto type = account->by_type.try_emplace(std::string(event_type), MeterValues{}).first;
  for (std::size_t i = 0; i < account->meters.size(); ++i) {
    Meter& meter = account->meters[i];
    if (unix_ns(when) < meter.begin.get()) continue;
    meter.used.set(add_saturating(meter.used.get(), cost));
    type->second[i] = add_saturating(type->second[i], cost);
  }
}

std::optional<CostFinding> Limits::check_cost(const Use& use, BillingPeriod period, Instant now) {
  const Targets targets = impl_->targets(use);
  const std::int64_t ns = unix_ns(now);
  const auto wanted = [&](const ThresholdSlot& slot) {
    return slot.period == period || slot.period == BillingPeriod::transaction;
  };
  const auto unusual = [&](const Account& account) {
    const Meter& hour = account.meters[hour_meter];
    return ns < hour.end.get() && add_saturating(hour.used.get(), use.cost) > account.unusual.get();
  };
  const auto within = [&](const Account& account, bool own) {
    for (int attempt = 0; attempt < 4; ++attempt) {
      const std::uint32_t version = account.version.load(std::memory_order_acquire);
      if ((version & 1) != 0) continue;
      // An hour that is over has to be learnt from first.
      const std::int64_t hour_end = account.meters[hour_meter].end.get();
      bool certain = !(own && ((ns >= hour_end && hour_end != INT64_MIN) || unusual(account)));
      each(account.thresholds, [&](const ThresholdSlot& slot) {
        if (wanted(slot) && Impl::exceeds(account, slot, use.cost, ns)) certain = false;
      });
      if (account.version.load(std::memory_order_relaxed) == version) return certain;
    }
    return false;
  };

  for (std::size_t i = 0; i < targets.count; ++i) {
    Account* account = targets.accounts[i];
    if (within(*account, i == 0)) continue;
    const Locked locked(std::array{account});
    account->roll_meters(now, impl_->options);
    std::optional<CostFinding> finding;
    each(account->thresholds, [&](const ThresholdSlot& slot) {
      if (finding || !wanted(slot) || !Impl::exceeds(*account, slot, use.cost, ns)) return;
      NanoMoney with_use = use.cost;
      if (slot.period != BillingPeriod::transaction) {
        const NanoMoney before =
            add_saturating(account->meters[meter_of(slot.period)].used.get(), account->cost_held.get());
        with_use = add_saturating(before, use.cost);
      }
      finding = CostFinding{slot.id,          slot.subject,      slot.period,    with_use,
                            slot.limit.get(), slot.action.get(), slot.approvers, {}};
    });
    if (!finding && i == 0 && unusual(*account)) {
      const NanoMoney hour = add_saturating(account->meters[hour_meter].used.get(), use.cost);
      const double deviation = std::sqrt(account->rhythm.variance);
      const double distance = static_cast<double>(hour) - account->rhythm.mean;
      // Cantelli's inequality: no assumption about how costs are distributed.
      const double square = deviation > 0 ? distance / deviation * (distance / deviation) : 1e6;
      finding = CostFinding{
          "anomaly",
          account->subject,
          BillingPeriod::hour,
          hour,
          account->unusual.get(),
          ThresholdAction::require_approval,
          {},
          CostFinding::Anomaly{account->rhythm.mean / 1e9, static_cast<double>(hour) / 1e9, square / (1 + square)}};
    }
    if (finding) return finding;
  }
  return std::nullopt;
}

NanoMoney Limits::cost_with(const Use& use, BillingPeriod period, Instant now) {
  Account* account = impl_->find(use.org, use.agent);
  if (account == nullptr || period == BillingPeriod::transaction) return use.cost;
  const Locked locked(std::array{account});
  account->roll_meters(now, impl_->options);
  return add_saturating(add_saturating(account->meters[meter_of(period)].used.get(), account->cost_held.get()),
                        use.cost);
}

std::optional<CostTotals> Limits::costs(std::string_view org, std::string_view subject, BillingPeriod period,
                                        Instant now) {
  Account* account = impl_->find(org, subject);
  if (account == nullptr || period == BillingPeriod::transaction) return std::nullopt;
  const Locked locked(std::array{account});
  account->roll_meters(now, impl_->options);
  CostTotals totals;
  totals.total = account->meters[meter_of(period)].used.get();
  for (const auto& [type, values] : account->by_type) {
    if (values[meter_of(period)] != 0) totals.by_event_type.emplace_back(type, values[meter_of(period)]);
  }
  return totals;
}

std::optional<QuotaState> Limits::state(std::string_view org, const Quota& quota, Instant now) {
  Account* account = impl_->find(org, quota.subject);
  if (account == nullptr) return std::nullopt;
  const Locked locked(std::array{account});
  std::optional<QuotaState> found;
  each(account->slots, [&](Slot& slot) {
    if (slot.id != quota.id) return;
    slot.roll(now);
    found = QuotaState{slot.id,          slot.subject,    slot.event_type, slot.kind,      slot.overflow.get(),
                       slot.limit.get(), slot.used.get(), slot.held.get(), slot.reset_at()};
  });
  return found;
}

std::size_t Limits::accounts() const { return impl_->accounts.size(); }

std::size_t Limits::holds() const {
  std::size_t count = 0;
  for (Shard& place : impl_->shards) {
    const std::scoped_lock lock(place.mutex);
    count += place.open.size();
  }
  return count;
}

}  // namespace creto::metering
