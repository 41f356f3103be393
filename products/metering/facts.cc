#include "facts.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "intake.h"

namespace creto::metering {

Result<std::vector<std::optional<Instant>>> FactSource::read(const std::string& org, std::span<const FactRange> ranges,
                                                             const Visit& visit) {
  for (const FactRange& range : ranges) {
    if (!known_.contains(key_of(org, range))) pending_.emplace_back(org, range);
  }
  if (pending()) return Error(Product::metering, ErrorKind::internal, "facts must be read before the transaction");
  std::vector<std::optional<Instant>> late;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const Known& known = known_.at(key_of(org, ranges[i]));
    for (const Fact& fact : known.facts) CRETO_TRY(visit(i, {fact.id, fact.time, fact.event_type, &fact.properties}));
    late.push_back(known.late);
  }
  return late;
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

  const auto wanted_by = [&](const StoredEvent& event) -> std::vector<Wanted>* {
    const auto found = of_subscription.find(ledger_.subjects().attribution(event.attribution).subscription);
    return found == of_subscription.end() ? nullptr : &found->second;
  };
  // A correction arrives after what it corrects, so what is replaced has to be known before.
  std::unordered_set<std::string> replaced;
  CRETO_TRY(ledger_.scan(from, end_, [&](const StoredEvent& event) -> Result<> {
    if (!event.record.replaces.empty() && wanted_by(event) != nullptr) replaced.emplace(event.record.replaces);
    return {};
  }));
  return ledger_.scan(from, end_, [&](const StoredEvent& event) -> Result<> {
    std::vector<Wanted>* wanted = wanted_by(event);
    if (wanted == nullptr) return {};
    const RecordView& record = event.record;
    for (auto& [range, known] : *wanted) {
      if (event.block >= range.seen && (record.time < range.late_before || !record.replaces.empty())) {
        const Instant time = record.replaces.empty() ? record.time : Instant::min();
        known->late = known->late ? std::min(*known->late, time) : time;
      }
      if (!range.when.contains(record.time)) continue;
      if (!replaced.empty() && replaced.contains(event.id.to_string())) continue;
      known->facts.push_back({event.id, record.time, std::string(record.type), properties_of(record)});
    }
    return {};
  });
}

}  // namespace creto::metering
