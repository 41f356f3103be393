#include "billing/facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "usage/intake.h"

namespace creto::metering {

FactSource::Key FactSource::key_of(const std::string& org, const FactRange& range) {
  std::string as;
  if (range.as) {
    as = fmt::format("{} {} {}", unix_ns(range.as->full.begin), unix_ns(range.as->full.end), range.as->ends);
    for (const Phase& phase : range.as->phases)
      as += fmt::format(" {} {} {} {}", fmt::ptr(phase.plan.get()), phase.quantity.to_string(),
                        unix_ns(phase.when.begin), unix_ns(phase.when.end));
  }
  return {org, range.subscription, range.when.begin, range.when.end, range.late_before, range.seen, std::move(as)};
}

Result<std::vector<const RatedUsage*>> FactSource::read(const std::string& org, std::span<const FactRange> ranges) {
  ask(org, ranges);
  if (pending()) return Error(Product::metering, ErrorKind::internal, "facts must be read before the transaction");
  std::vector<const RatedUsage*> answers;
  for (const FactRange& range : ranges) answers.push_back(&known_.at(key_of(org, range)).usage);
  return answers;
}

bool FactSource::holds(const std::string& org, const SubscriptionId& subscription, Instant begin) const {
  const auto held = ledger_.held();
  if (held->everything() || begin - ahead_max_ > held->until) return true;
  // What was cut off may be of other subscriptions alone.
  return ledger_.subjects().find(org, subscription.to_string()) > held->defined.subjects;
}

void FactSource::ask(const std::string& org, std::span<const FactRange> ranges) {
  for (const FactRange& range : ranges) {
    const auto known = known_.find(key_of(org, range));
    if (known == known_.end()) {
      pending_.emplace_back(org, range);
    } else {
      known->second.asked = true;
    }
  }
}

std::size_t FactSource::kept() const {
  std::size_t kept = 0;
  for (const auto& [key, known] : known_) kept += known.usage.rating ? known.usage.rating->kept() : 0;
  return kept;
}

void FactSource::add(OfSubscription& to, Known& known) const {
  const SubjectNumber number = ledger_.subjects().find(known.org, known.range.subscription.to_string());
  if (number != 0) to[number].push_back(&known);  // else nothing was ever used
}

Result<> FactSource::fetch() {
  OfSubscription of_subscription;
  std::vector<std::map<Key, Known>::iterator> read;
  for (auto& [org, range] : std::exchange(pending_, {})) {
    Key key = key_of(org, range);
    const auto [known, anew] = known_.try_emplace(std::move(key), Known{org, std::move(range)});
    if (!anew) continue;  // asked for twice
    read.push_back(known);
    if (auto& as = known->second.range.as) known->second.usage.rating.emplace(*std::exchange(as, std::nullopt));
    add(of_subscription, known->second);
  }
  const auto scan_all = [&]() -> Result<> {
    const BlockAddress from = CRETO_TRY(begin_of(of_subscription));
    return scan(of_subscription, from);
  };
  auto scanned = scan_all();
  if (!scanned) {
    for (const auto& one : read) known_.erase(one);
  }
  return scanned;
}

Result<> FactSource::go_on() {
  const BlockAddress from = std::exchange(end_, ledger_.position().end);
  std::erase_if(known_, [](const auto& one) { return !one.second.asked; });
  OfSubscription of_subscription;
  for (auto& [key, known] : known_) {
    known.asked = known.changed = false;
    add(of_subscription, known);
  }
  auto scanned = scan(of_subscription, from);
  if (!scanned) known_.clear();
  std::erase_if(known_, [](const auto& one) { return one.second.changed; });
  return scanned;
}

/// A place in the log before all that these ranges may want.
Result<BlockAddress> FactSource::begin_of(const OfSubscription& of_subscription) const {
  Instant begin = Instant::max();
  BlockAddress seen = end_;
  for (const auto& [subscription, all] : of_subscription) {
    for (const Known* known : all) {
      begin = std::min(begin, known->range.when.begin);
      seen = std::min(seen, known->range.seen);
    }
  }
  if (of_subscription.empty()) return end_;
  BlockAddress first;
  if (begin > Instant::min() + ahead_max_) first = CRETO_TRY(ledger_.first_at(begin - ahead_max_));
  return std::min(seen, first);
}

Result<> FactSource::scan(const OfSubscription& of_subscription, BlockAddress from) const {
  if (of_subscription.empty() || from == end_) return {};
  const auto of = [&](AttributionNumber attribution) -> std::span<Known* const> {
    const auto found = of_subscription.find(ledger_.subjects().attribution(attribution).subscription);
    return found == of_subscription.end() ? std::span<Known* const>() : std::span<Known* const>(found->second);
  };
  // What is new for a time that was billed before.
  const auto note_late = [](std::span<Known* const> all, const RowPlace& place, Instant time) {
    for (Known* known : all) {
      if (place.block < known->range.seen || time >= known->range.late_before) continue;
      std::optional<Instant>& late = known->usage.late;
      late = late ? std::min(*late, time) : time;
    }
  };
  const auto taken_out = ledger_.corrections().taken_out(end_);
  RecordScratch scratch;
  return ledger_.scan(from, end_, [&](const StoredEvent& event) -> Result<> {
    if (event.corrects) {
      if (const auto all = of(event.corrects->attribution); !all.empty()) {
        scratch.clear();
        const RecordView out = CRETO_TRY(parse_record(event.corrects->record, scratch));
        note_late(all, event.place(), out.time);
        for (Known* known : all) known->changed = known->changed || event.corrects->place.block < from;
      }
    }
    const auto all = of(event.attribution);
    if (all.empty()) return {};
    const RecordView& record = event.record;
    if (taken_out && std::ranges::binary_search(*taken_out, event.place())) return {};
    note_late(all, event.place(), record.time);
    std::optional<Properties> properties;
    for (Known* known : all) {
      if (!known->usage.rating || !known->range.when.contains(record.time)) continue;
      if (!properties) properties = properties_of(record);
      // One event must not hold up an invoice, or who made it could evade being billed: the rating tells of it.
      static_cast<void>(known->usage.rating->add({event.id, record.time, record.type, &*properties}));
    }
    return {};
  });
}

}  // namespace creto::metering
