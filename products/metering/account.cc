#include "account.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {
namespace {

constexpr std::int64_t hour_ns = Nanos(std::chrono::hours(1)).count();

}  // namespace

NanoMoney Rhythm::unusual_above(const AnomalyRules& rules) const {
  if (hours < static_cast<float>(rules.hours_min) || mean <= 0) return 0;
  const double bound =
      std::max(mean + rules.deviations * std::sqrt(static_cast<double>(variance)), rules.factor * mean);
  return bound < 9e18 ? static_cast<NanoMoney>(bound) : 0;
}

Costs::OfType& Costs::of(std::uint32_t type) {
  const auto empty = [](const OfType& one) {
    return std::ranges::all_of(one.values, [](NanoMoney value) { return value == 0; });
  };
  if (first.type == type) return first;
  if (others == nullptr) {
    if (empty(first)) {
      first.type = type;
      return first;
    }
    others = std::make_unique<std::vector<OfType>>();
  }
  const auto known = std::ranges::find(*others, type, &OfType::type);
  if (known != others->end()) return *known;
  return others->emplace_back(OfType{type, {}});
}

Extra::~Extra() {
  for (MoreCounters* one = more.load(); one != nullptr;) {
    delete std::exchange(one, one->next.load());  // tidy(delete): a list that readers walk without a lock
  }
}

Extra& Account::obtain_extra() {
  if (Extra* known = extra.load(std::memory_order_acquire)) return *known;
  auto* made = new Extra();  // tidy(new): the account owns it
  extra.store(made, std::memory_order_release);
  return *made;
}

Account::Counter Account::place(std::uint32_t position) {
  if (position < inside) return {used[position], held[position], terms[position], position};
  std::optional<Counter> found;
  each_place([&](Counter counter) {
    if (counter.position == position) found.emplace(counter);
    return !found;
  });
  CRETO_ASSERT(found.has_value());
  return *found;
}

Account::Counter Account::free_place(const TermsTable& table, std::uint32_t what) {
  std::optional<Counter> found;
  std::uint32_t taken = 0;
  each_place([&](Counter counter) {
    ++taken;
    if (counter.is_active()) return true;
    const bool holds = counter.held.get() != 0;
    const bool same = holds && table[counter.number()].what == what;
    if (same || (!holds && !found)) found.emplace(counter);
    return !same;
  });
  if (!found) {
    std::atomic<MoreCounters*>* end = &obtain_extra().more;
    while (MoreCounters* there = end->load(std::memory_order_acquire)) end = &there->next;
    auto* made = new MoreCounters();  // tidy(new): the list owns it
    end->store(made, std::memory_order_release);
    found.emplace(Counter{made->used[0], made->held[0], made->terms[0], taken});
  }
  found->used.set(0);
  found->word.set(0);
  return *found;
}

const Ring* Account::find_ring(std::uint32_t position) const {
  const Extra* beyond = extra.load(std::memory_order_acquire);
  if (beyond == nullptr || beyond->rings == nullptr) return nullptr;
  const auto found = std::ranges::find(*beyond->rings, position, [](const auto& ring) { return ring->position; });
  return found == beyond->rings->end() ? nullptr : found->get();
}

Ring& Account::ring(std::uint32_t position) {
  if (const Ring* known = find_ring(position)) return const_cast<Ring&>(*known);
  Extra& beyond = obtain_extra();
  if (beyond.rings == nullptr) beyond.rings = std::make_unique<std::vector<std::unique_ptr<Ring>>>();
  beyond.rings->push_back(std::make_unique<Ring>());
  beyond.rings->back()->position = position;
  return *beyond.rings->back();
}

std::string Account::own_id(std::uint32_t position) const {
  const Extra* beyond = extra.load(std::memory_order_acquire);
  if (beyond == nullptr || beyond->own == nullptr) return {};
  const auto found = std::ranges::find(*beyond->own, position, &OwnId::position);
  return found == beyond->own->end() ? std::string() : found->id;
}

void Account::set_own_id(std::uint32_t position, std::string_view id) {
  Extra& beyond = obtain_extra();
  if (beyond.own == nullptr) beyond.own = std::make_unique<std::vector<OwnId>>();
  const auto known = std::ranges::find(*beyond.own, position, &OwnId::position);
  if (known == beyond.own->end()) {
    beyond.own->push_back({position, std::string(id)});
  } else {
    known->id = id;
  }
}

void Account::end(Counter counter) {
  counter.word.set(counter.word.get() & ~active);
  counter.used.set(0);
  if (Extra* beyond = extra.load(std::memory_order_acquire)) {
    if (beyond->own != nullptr)
      std::erase_if(*beyond->own, [&](const OwnId& one) { return one.position == counter.position; });
    if (beyond->rings != nullptr)
      std::erase_if(*beyond->rings, [&](const auto& one) { return one->position == counter.position; });
  }
}

void Account::follow(const TermsTable& table, std::uint32_t set) {
  if (defaults.get() == set) return;
  const auto wanted = table.set(set);
  each(table, [&](Counter counter, const Terms& now) {
    if (!now.each || std::ranges::find(wanted, counter.number()) != wanted.end()) return;
    const auto same = std::ranges::find_if(
        wanted, [&](std::uint32_t one) { return table[one].what == now.what && table[one].id == now.id; });
    if (same == wanted.end()) return end(counter);
    counter.word.set(active | *same);  // a limit that was changed may be reached again
  });
  for (const std::uint32_t one : wanted) {
    bool there = false;
    each(table, [&](Counter counter, const Terms& known) {
      there = there || counter.number() == one || (!known.each && known.what == table[one].what);
    });
    if (there) continue;
    free_place(table, table[one].what).word.set(active | one);
  }
  defaults.set(set);
}

void Account::roll(const TermsTable& table, std::int64_t ns, const AnomalyRules& rules) {
  CRETO_ASSERT(ns >= 0);
  const std::int64_t before = stamp.get();
  if (ns <= before) return;
  each(table, [&](Counter counter, const Terms& terms) {
    if (terms.window == WindowKind::rolling) {
      const std::int64_t now = ns / terms.step().count();
      Ring* known = const_cast<Ring*>(find_ring(counter.position));
      if (known == nullptr || known->step >= now) return;
      std::int64_t sum = counter.used.get();
      for (std::int64_t gone = known->step + 1; gone <= std::min(now, known->step + Ring::size); ++gone) {
        sum -= std::exchange(known->steps[static_cast<std::size_t>(gone % Ring::size)], 0);
      }
      known->step = now;
      counter.used.set(sum);
      // Named by the stretch of its length that the window ends in, so that a notice is given once in each.
      if (before / terms.rolling_length.count() != ns / terms.rolling_length.count())
        counter.word.set(counter.word.get() & ~(soft_noticed | hard_noticed));
    } else if (terms.calendar() && before < terms.window_begin(ns)) {
      counter.used.set(0);
      counter.word.set(counter.word.get() & ~(soft_noticed | hard_noticed));
    }
  });
  Extra* beyond = extra.load(std::memory_order_acquire);
  if (beyond != nullptr && before / hour_ns != ns / hour_ns) {
    Costs& costs = beyond->costs;
    if (rules.detect && before > 0) {
      costs.rhythm.learn(static_cast<float>(costs.totals[hour_cost].get()));
      const std::int64_t silent = ns / hour_ns - before / hour_ns - 1;
      for (std::int64_t hour = 0; hour < std::min<std::int64_t>(silent, 168); ++hour) costs.rhythm.learn(0);
      costs.unusual.set(costs.rhythm.unusual_above(rules));
    }
    for (std::size_t i = 0; i < cost_windows.size(); ++i) {
      if (cost_windows[i] == WindowKind::lifetime ||
          before >= unix_ns(calendar_window(cost_windows[i], from_unix_ns(ns)).begin))
        continue;
      costs.totals[i].set(0);
      costs.first.values[i] = 0;
      if (costs.others != nullptr) {
        for (Costs::OfType& one : *costs.others) one.values[i] = 0;
      }
    }
  }
  stamp.set(ns);
}

void Account::adjust(Counter counter, const Terms& terms, std::int64_t amount, std::int64_t ns) {
  if (terms.window == WindowKind::rolling) {
    Ring& steps = ring(counter.position);
    const std::int64_t width = terms.step().count();
    if (steps.step < 0) steps.step = stamp.get() / width;
    const std::int64_t number = ns / width;
    if (number > steps.step || steps.step - number > Terms::rolling_steps) return;
    std::int64_t& cell = steps.steps[static_cast<std::size_t>(number % Ring::size)];
    cell = add_saturating(cell, amount);
  } else if (terms.window == WindowKind::transaction || terms.window == WindowKind::concurrent ||
             terms.window == WindowKind::session || ns < terms.window_begin(stamp.get())) {
    return;
  }
  counter.used.set(add_saturating(counter.used.get(), amount));
}

void Account::adjust_cost(std::uint32_t type, NanoMoney cost, std::int64_t ns) {
  Costs& costs = obtain_extra().costs;
  Costs::OfType& of_type = costs.of(type);
  for (std::size_t i = 0; i < cost_windows.size(); ++i) {
    if (cost_windows[i] != WindowKind::lifetime && ns / hour_ns != stamp.get() / hour_ns &&
        ns < unix_ns(calendar_window(cost_windows[i], from_unix_ns(stamp.get())).begin))
      continue;
    costs.totals[i].set(add_saturating(costs.totals[i].get(), cost));
    of_type.values[i] = add_saturating(of_type.values[i], cost);
  }
}

std::optional<Instant> Account::reset_at(const Counter& counter, const Terms& terms, std::int64_t ns) const {
  if (terms.calendar()) return from_unix_ns(terms.window_end(ns));
  if (terms.window != WindowKind::rolling) return std::nullopt;
  const std::int64_t width = terms.step().count();
  const Ring* steps = find_ring(counter.position);
  if (steps != nullptr && steps->step >= 0) {
    for (std::int64_t number = std::max<std::int64_t>(0, steps->step - Terms::rolling_steps); number <= steps->step;
         ++number) {
      if (steps->steps[static_cast<std::size_t>(number % Ring::size)] != 0)
        return from_unix_ns((number + Ring::size) * width);
    }
  }
  return from_unix_ns((ns / width + 1) * width);
}

NanoMoney Account::cost_in(std::size_t window, std::int64_t ns) const {
  const Extra* beyond = extra.load(std::memory_order_acquire);
  if (beyond == nullptr) return 0;
  const bool over = cost_windows[window] != WindowKind::lifetime && stamp.get() / hour_ns != ns / hour_ns &&
                    stamp.get() < unix_ns(calendar_window(cost_windows[window], from_unix_ns(ns)).begin);
  return over ? 0 : beyond->costs.totals[window].get();
}

}  // namespace creto::metering
