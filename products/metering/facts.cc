#include "facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "intake.h"

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
  for (const FactRange& range : ranges) answers.push_back(&known_.at(key_of(org, range)));
  return answers;
}

void FactSource::ask(const std::string& org, std::span<const FactRange> ranges) {
  for (const FactRange& range : ranges) {
    if (!known_.contains(key_of(org, range))) pending_.emplace_back(org, range);
  }
}

struct FactSource::Wanted {
  FactRange range;
  RatedUsage* usage;
};

Result<> FactSource::fetch() {
  std::unordered_map<SubjectNumber, std::vector<Wanted>> of_subscription;
  std::vector<std::map<Key, RatedUsage>::iterator> read;
  for (auto& [org, range] : std::exchange(pending_, {})) {
    const auto [known, anew] = known_.try_emplace(key_of(org, range));
    if (!anew) continue;  // asked for twice
    read.push_back(known);
    if (range.as) known->second.rating.emplace(*range.as);
    const SubjectNumber number = ledger_.subjects().find(org, range.subscription.to_string());
    if (number != 0) of_subscription[number].push_back({std::move(range), &known->second});  // else nothing was used
  }
  auto scanned = scan(of_subscription);
  for (const auto& one : read) {
    if (!scanned) {
      known_.erase(one);
    } else if (one->second.rating) {
      kept_ += one->second.rating->kept();
    }
  }
  return scanned;
}

Result<> FactSource::scan(std::unordered_map<SubjectNumber, std::vector<Wanted>>& of_subscription) const {
  if (of_subscription.empty()) return {};
  Instant begin = Instant::max();
  BlockAddress from = end_;
  for (const auto& [subscription, wanted] : of_subscription) {
    for (const Wanted& one : wanted) {
      begin = std::min(begin, one.range.when.begin);
      from = std::min(from, one.range.seen);
    }
  }
  BlockAddress first;
  if (begin > Instant::min() + ahead_max_) first = CRETO_TRY(ledger_.first_at(begin - ahead_max_));
  from = std::min(from, first);

  const auto wanted_by = [&](AttributionNumber attribution) -> std::vector<Wanted>* {
    const auto found = of_subscription.find(ledger_.subjects().attribution(attribution).subscription);
    return found == of_subscription.end() ? nullptr : &found->second;
  };
  // What is new for a time that was billed before.
  const auto note_late = [](std::span<const Wanted> wanted, const RowPlace& place, Instant time) {
    for (const auto& [range, usage] : wanted) {
      if (place.block < range.seen || time >= range.late_before) continue;
      usage->late = usage->late ? std::min(*usage->late, time) : time;
    }
  };
  const auto taken_out = ledger_.corrections().taken_out(end_);
  RecordScratch scratch;
  return ledger_.scan(from, end_, [&](const StoredEvent& event) -> Result<> {
    if (event.corrects) {
      if (const std::vector<Wanted>* wanted = wanted_by(event.corrects->attribution)) {
        scratch.clear();
        const RecordView out = CRETO_TRY(parse_record(event.corrects->record, scratch));
        note_late(*wanted, event.place(), out.time);
      }
    }
    const std::vector<Wanted>* wanted = wanted_by(event.attribution);
    if (wanted == nullptr) return {};
    const RecordView& record = event.record;
    if (taken_out && std::ranges::binary_search(*taken_out, event.place())) return {};
    note_late(*wanted, event.place(), record.time);
    std::optional<Properties> properties;
    for (const auto& [range, usage] : *wanted) {
      if (!usage->rating || !range.when.contains(record.time)) continue;
      if (!properties) properties = properties_of(record);
      // One event must not hold up an invoice, or who made it could evade being billed: the rating tells of it.
      static_cast<void>(usage->rating->add({event.id, record.time, record.type, &*properties}));
    }
    return {};
  });
}

}  // namespace creto::metering
