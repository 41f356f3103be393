#include "limits/account.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {
namespace {

constexpr std::int64_t hour_ns = Nanos(std::chrono::hours(1)).count();
constexpr std::int64_t minute_ns = Nanos(std::chrono::minutes(1)).count();

/// Whether what was added up until `stamp` belongs to the cost window around `ns`, which is not earlier.
bool same_cost_window(WindowKind window, std::int64_t stamp, std::int64_t ns) {
  if (window == WindowKind::lifetime || stamp / hour_ns == ns / hour_ns) return true;
  return stamp >= unix_ns(calendar_window(window, from_unix_ns(ns)).begin);
}

}  // namespace

std::array<NanoMoney, cost_windows.size()>& Costs::of(std::uint32_t type) {
  if (first_type == type) return of_first;
  if (others == nullptr) {
    if (std::ranges::all_of(of_first, [](NanoMoney value) { return value == 0; })) {
      first_type = type;
      return of_first;
    }
    others = std::make_unique<std::vector<OfType>>();
  }
  const auto known = std::ranges::find(*others, type, &OfType::type);
  if (known != others->end()) return known->values;
  return others->emplace_back(OfType{type, {}}).values;
}

void Costs::clear() {
  for (auto& total : totals) total.set(0);
  unusual.set(0);
  rhythm = {};
  first_type = 0;
  of_first = {};
  others.reset();
}

Extra::~Extra() {
  for (MoreCounters* one = more.load(); one != nullptr;) {
    delete std::exchange(one, one->next.load());  // tidy(delete): a list that readers walk without a lock
  }
}

Extra& Account::obtain_extra(Books& books) {
  if (Extra* known = extra(books)) return *known;
  const std::scoped_lock lock(books.extras_mutex);
  const std::size_t number = books.extras.size();
  Extra& made = books.extras.make();
  extra_.set(static_cast<std::uint32_t>(number));
  return made;
}

Account::Counter Account::place(const Books& books, std::uint32_t position) {
  if (position + 1 < inside) return {used_[position], held_[position], words_[position], position};
  std::optional<Counter> found;
  each_place(books, [&](Counter counter) {
    if (counter.position == position) found.emplace(counter);
    return !found;
  });
  CRETO_ASSERT(found.has_value());
  return *found;
}

Account::Counter Account::free_place(Books& books, std::uint32_t what) {
  std::optional<Counter> found;
  std::uint32_t taken = 0;
  each_place(books, [&](Counter counter) {
    ++taken;
    if (counter.is_active()) return true;
    const bool holds = counter.held.get() != 0;
    const bool same = holds && books.terms[counter.number()]->what == what;
    if (same || (!holds && !found)) found.emplace(counter);
    return !same;
  });
  if (!found) {
    std::atomic<MoreCounters*>* end = &obtain_extra(books).more;
    while (MoreCounters* there = end->load(std::memory_order_acquire)) end = &there->next;
    auto* made = new MoreCounters();  // tidy(new): the list owns it
    end->store(made, std::memory_order_release);
    beyond_.set(1);
    found.emplace(Counter{made->used[0], made->held[0], made->words[0], taken});
  }
  found->used.set(0);
  return *found;
}

void Account::begin(const Books& books, Counter counter, std::uint32_t terms) {
  counter.word.set(active | terms);
  set_used(counter, books.terms[terms], counter.used.get());
}

void Account::end(const Books& books, Counter counter) {
  counter.word.set(counter.number());
  counter.used.set(0);
  const Extra* beyond = extra(books);
  if (beyond == nullptr || beyond->rare == nullptr) return;
  std::erase_if(beyond->rare->own, [&](const OwnId& one) { return one.position == counter.position; });
  std::erase_if(beyond->rare->rings, [&](const auto& one) { return one->position == counter.position; });
}

std::string Account::own_id(const Books& books, std::uint32_t position) const {
  const Extra* beyond = extra(books);
  if (beyond == nullptr || beyond->rare == nullptr) return {};
  const auto found = std::ranges::find(beyond->rare->own, position, &OwnId::position);
  return found == beyond->rare->own.end() ? std::string() : found->id;
}

void Account::set_own_id(Books& books, std::uint32_t position, std::string_view id) {
  obtain_rare(books).own.push_back({position, std::string(id)});
}

Rare& Account::obtain_rare(Books& books) {
  Extra& beyond = obtain_extra(books);
  if (beyond.rare == nullptr) beyond.rare = std::make_unique<Rare>();
  return *beyond.rare;
}

void Account::learn_weeks(Books& books) {
  Rare& rare = obtain_rare(books);
  if (rare.week == nullptr) rare.week = std::make_unique<WeekRhythm>();
}

Expectation Account::expect(const Books& books, std::int64_t ns) const {
  const Extra* beyond = extra(books);
  if (beyond == nullptr) return {};
  const WeekRhythm* week = beyond->rare == nullptr ? nullptr : beyond->rare->week.get();
  return week != nullptr && week->knows(ns / hour_ns) ? week->expect(ns / hour_ns) : beyond->costs.rhythm.expect();
}

void Account::follow(Books& books, std::uint32_t set) {
  if (defaults_.get() == set) return;
  const TermsTable& table = books.terms;
  const auto wanted = table.set(set);
  each(books, [&](Counter counter, const Terms& now) {
    if (!now->each || std::ranges::find(wanted, counter.number()) != wanted.end()) return;
    const auto same = std::ranges::find_if(
        wanted, [&](std::uint32_t one) { return table[one]->what == now->what && table[one]->id == now->id; });
    if (same == wanted.end()) {
      end(books, counter);
    } else {
      begin(books, counter, *same);
    }
  });
  for (const std::uint32_t one : wanted) {
    bool there = false;
    each(books, [&](Counter counter, const Terms& known) {
      there = there || counter.number() == one || (!known->each && known->what == table[one]->what);
    });
    if (!there) begin(books, free_place(books, table[one]->what), one);
  }
  defaults_.set(set);
}

void Account::roll(Books& books, std::int64_t ns) {
  const std::int64_t before = stamp_.get();
  if (before / minute_ns != ns / minute_ns) {
    if (const Extra* beyond = extra(books); beyond != nullptr && beyond->life.is_over(ns)) begin_anew(books);
  }
  each(books, [&](Counter counter, const Terms& terms) {
    std::int64_t used = counter.used.get();
    bool next_window = false;
    if (terms.calendar()) {
      next_window = before < terms.window_begin(ns);
      if (next_window) used = 0;
    } else if (terms->window == WindowKind::rolling) {
      // Named by the stretch of its length that the window ends in, so that a notice is given once in each.
      next_window = before / terms->rolling_length.count() != ns / terms->rolling_length.count();
      if (Ring* ring = find_ring(books, counter.position))
        used = subtract_saturating(used, ring->forget_before(ns / terms.step().count()));
    }
    if (next_window) counter.word.set(counter.word.get() & ~(soft_noticed | hard_noticed));
    if (used != counter.used.get()) set_used(counter, terms, used);
  });
  if (before / hour_ns != ns / hour_ns) roll_costs(books, ns);
  stamp_.set(ns);
}

/// The session is over: what comes now is of another one that has its name.
void Account::begin_anew(Books& books) {
  Extra& beyond = *extra(books);
  beyond.life = {};
  beyond.costs.clear();
  if (beyond.rare != nullptr) {
    beyond.rare->rings.clear();
    if (beyond.rare->week != nullptr) *beyond.rare->week = {};
  }
  each(books, [&](Counter counter, const Terms& terms) {
    counter.word.set(counter.word.get() & ~(soft_noticed | hard_noticed));
    set_used(counter, terms, 0);
  });
}

bool Account::may_go(const Books& books, std::int64_t ns) {
  const Extra& beyond = *extra(books);
  if (beyond.life.is_free() || (beyond.life.is_used() && !beyond.life.is_over(ns))) return false;
  if (beyond.rare != nullptr && !beyond.rare->own.empty()) return false;
  bool holds = beyond.costs.held.get() != 0;
  each_place(books, [&](Counter counter) {
    holds = holds || counter.held.get() != 0;
    return !holds;
  });
  return !holds;
}

void Account::clear(Books& books) {
  Extra& beyond = *extra(books);
  each_place(books, [&](Counter counter) {
    counter.word.set(0);
    counter.used.set(0);
    return true;
  });
  beyond.costs.clear();
  beyond.rare.reset();
  beyond.life.set_free();
  defaults_.set(0);
  stamp_.set(0);
}

void Account::roll_costs(Books& books, std::int64_t ns) {
  Extra* beyond = extra(books);
  if (beyond == nullptr) return;
  const std::int64_t before = stamp_.get();
  Costs& costs = beyond->costs;
  if (books.anomalies.detect && before > 0) {
    WeekRhythm* week = beyond->rare == nullptr ? nullptr : beyond->rare->week.get();
    // Hours without use are hours, too; more than a rhythm remembers of them say nothing new.
    const std::int64_t now = ns / hour_ns;
    std::int64_t hour = before / hour_ns;
    double cost = static_cast<double>(costs.totals[hour_cost].get());
    for (hour = std::max(hour, now - 8 * WeekRhythm::hours); hour < now; ++hour, cost = 0) {
      if (now - hour <= Rhythm::hours_remembered || hour == before / hour_ns) costs.rhythm.learn(cost);
      if (week != nullptr) week->learn(hour, cost);
    }
    costs.unusual.set(unusual_above(expect(books, ns), books.anomalies));
  }
  for (std::size_t i = 0; i < cost_windows.size(); ++i) {
    if (same_cost_window(cost_windows[i], before, ns)) continue;
    costs.totals[i].set(0);
    costs.of_first[i] = 0;
    if (costs.others == nullptr) continue;
    for (Costs::OfType& one : *costs.others) one.values[i] = 0;
  }
}

Ring* Account::find_ring(const Books& books, std::uint32_t position) const {
  const Extra* beyond = extra(books);
  if (beyond == nullptr || beyond->rare == nullptr) return nullptr;
  const auto& rings = beyond->rare->rings;
  const auto found = std::ranges::find(rings, position, [](const auto& ring) { return ring->position; });
  return found == rings.end() ? nullptr : found->get();
}

bool Account::adjust_ring(Books& books, std::uint32_t position, const Terms& terms, std::int64_t amount,
                          std::int64_t ns) {
  const std::int64_t width = terms.step().count();
  Ring* ring = find_ring(books, position);
  if (ring == nullptr) {
    ring = obtain_rare(books).rings.emplace_back(std::make_unique<Ring>()).get();
    ring->position = position;
    ring->step = stamp_.get() / width;
  }
  const std::int64_t number = ns / width;
  if (number > ring->step || ring->step - number > Terms::rolling_steps) return false;
  std::int64_t& step = ring->at(number);
  step = add_saturating(step, amount);
  return true;
}

std::int64_t Ring::forget_before(std::int64_t now) {
  std::int64_t gone = 0;
  for (std::int64_t old = step + 1; old <= std::min(now, step + size); ++old)
    gone = add_saturating(gone, std::exchange(at(old), 0));
  step = std::max(step, now);
  return gone;
}

void Account::adjust_cost(Books& books, std::uint32_t type, NanoMoney cost, std::int64_t ns) {
  Costs& costs = obtain_extra(books).costs;
  auto& of_type = costs.of(type);
  for (std::size_t i = 0; i < cost_windows.size(); ++i) {
    if (ns < stamp_.get() && !same_cost_window(cost_windows[i], ns, stamp_.get())) continue;
    costs.totals[i].set(add_saturating(costs.totals[i].get(), cost));
    of_type[i] = add_saturating(of_type[i], cost);
  }
}

std::optional<Instant> Account::reset_at(const Books& books, const Counter& counter, const Terms& terms,
                                         std::int64_t ns) const {
  if (terms.calendar()) return from_unix_ns(terms.window_end(ns));
  if (terms->window != WindowKind::rolling) return std::nullopt;
  const std::int64_t width = terms.step().count();
  if (Ring* ring = find_ring(books, counter.position)) {
    for (std::int64_t number = std::max<std::int64_t>(0, ring->step - Terms::rolling_steps); number <= ring->step;
         ++number) {
      if (ring->at(number) != 0) return from_unix_ns((number + Ring::size) * width);
    }
  }
  return from_unix_ns((ns / width + 1) * width);
}

NanoMoney Account::cost_in(const Books& books, std::size_t window, std::int64_t ns) const {
  const Extra* beyond = extra(books);
  if (beyond == nullptr || !same_cost_window(cost_windows[window], stamp_.get(), ns)) return 0;
  return beyond->costs.totals[window].get();
}

}  // namespace creto::metering
