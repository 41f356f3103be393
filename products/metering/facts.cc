#include "facts.h"

#include <algorithm>
#include <unordered_map>

#include "intake.h"

namespace creto::metering {

Result<std::vector<std::optional<Instant>>> FactSource::read(const std::string& org, std::span<const FactRange> ranges,
                                                             const Visit& visit) {
  ask(org, ranges);
  if (pending()) return Error(Product::metering, ErrorKind::internal, "facts must be read before the transaction");
  std::vector<std::optional<Instant>> late;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const Known& known = known_.at(key_of(org, ranges[i]));
    for (const Fact& fact : known.facts) CRETO_TRY(visit(i, {fact.id, fact.time, fact.event_type, &fact.properties}));
    late.push_back(known.late);
  }
  return late;
}

void FactSource::ask(const std::string& org, std::span<const FactRange> ranges) {
  for (const FactRange& range : ranges) {
    if (!known_.contains(key_of(org, range))) pending_.emplace_back(org, range);
  }
}

Result<> FactSource::fetch() {
  struct Wanted {
    FactRange range;
    Known* known;
  };
  std::unordered_map<SubjectNumber, std::vector<Wanted>> of_subscription;
  Instant begin = Instant::max();
  BlockAddress from = end_;
  for (const auto& [org, range] : pending_) {
    Known& known = known_[key_of(org, range)];
    known = {};
    const SubjectNumber number = ledger_.subjects().find(org, range.subscription.to_string());
    if (number == 0) continue;  // nothing was ever used
    of_subscription[number].push_back({range, &known});
    begin = std::min(begin, range.when.begin);
    from = std::min(from, range.seen);
  }
  pending_.clear();
  if (of_subscription.empty()) return {};
  BlockAddress first;
  if (begin > Instant::min() + ahead_max_) first = CRETO_TRY(ledger_.first_at(begin - ahead_max_));
  from = std::min(from, first);

  const auto wanted_by = [&](AttributionNumber attribution) -> std::vector<Wanted>* {
    const auto found = of_subscription.find(ledger_.subjects().attribution(attribution).subscription);
    return found == of_subscription.end() ? nullptr : &found->second;
  };
  // What is new for a time that was billed before.
  const auto note_late = [](std::span<Wanted> wanted, const RowPlace& place, Instant time) {
    for (auto& [range, known] : wanted) {
      if (place.block < range.seen || time >= range.late_before) continue;
      known->late = known->late ? std::min(*known->late, time) : time;
    }
  };
  const auto taken_out = ledger_.corrections().taken_out(end_);
  RecordScratch scratch;
  return ledger_.scan(from, end_, [&](const StoredEvent& event) -> Result<> {
    if (event.corrects) {
      if (std::vector<Wanted>* wanted = wanted_by(event.corrects->attribution)) {
        scratch.clear();
        const RecordView out = CRETO_TRY(parse_record(event.corrects->record, scratch));
        note_late(*wanted, event.place(), out.time);
      }
    }
    std::vector<Wanted>* wanted = wanted_by(event.attribution);
    if (wanted == nullptr) return {};
    const RecordView& record = event.record;
    if (taken_out && std::ranges::binary_search(*taken_out, event.place())) return {};
    note_late(*wanted, event.place(), record.time);
    for (auto& [range, known] : *wanted) {
      if (!range.when.contains(record.time)) continue;
      known->facts.push_back({event.id, record.time, std::string(record.type), properties_of(record)});
      ++count_;
    }
    return {};
  });
}

}  // namespace creto::metering
