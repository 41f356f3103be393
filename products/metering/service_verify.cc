#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "account_names.h"
#include "creto/crypto/hash.h"
#include "ledger/batch_proof.h"
#include "service.h"
#include "service_words.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;

constexpr std::size_t problems_max = 100;

void add_problem(UsageVerification& found, std::string problem) {
  if (found.problems.size() < problems_max) found.problems.push_back(std::move(problem));
}

/// Counters that should be equal, of one subject.
void compare(UsageVerification& found, Limits& counted, Limits& recounted, const Subjects::Subject& subject,
             std::span<const Quota> quotas, Instant now) {
  for (const BillingPeriod period :
       {BillingPeriod::hour, BillingPeriod::day, BillingPeriod::month, BillingPeriod::lifetime}) {
    const auto a = counted.costs(subject.org, subject.name, period, now);
    const auto b = recounted.costs(subject.org, subject.name, period, now);
    const NanoMoney is = a ? a->total : 0;
    const NanoMoney should = b ? b->total : 0;
    ++found.counters;
    if (is == should) continue;
    add_problem(found, fmt::format("cost of `{}` by {}: {} was counted, its events say {}", subject.name,
                                   contracts::to_string(period), from_nano_money(is).to_string(),
                                   from_nano_money(should).to_string()));
  }
  for (const Quota& quota : quotas) {
    const auto a = counted.state(subject.org, quota, now, subject.name);
    const auto b = recounted.state(subject.org, quota, now, subject.name);
    const std::int64_t is = a ? a->used : 0;
    const std::int64_t should = b ? b->used : 0;
    ++found.counters;
    if (is == should) continue;
    add_problem(found, fmt::format("quota `{}` of `{}`: {} was counted, its events say {}", quota.id, subject.name, is,
                                   should));
  }
}

/// Corrections as the log tells them.
class ReadCorrections {
 public:
  void note(const StoredEvent& event) {
    if (!event.corrects) return;
    entries_.push_back({event.place(), event.corrects->place, !event.record.voids.empty()});
    copies_.emplace(event.corrects->place, crypto::blake3(event.corrects->record));
  }
  /// What is known to be taken out must be what the log says, and the copy beside each correction the event itself.
  Result<> compare(const Ledger& ledger, BlockAddress until, UsageVerification& found) const {
    if (entries_ != ledger.corrections().before(until))
      add_problem(found, "corrections: what is taken out is not what the events say");
    std::vector<RowPlace> places;
    for (const auto& [place, copy] : copies_) places.push_back(place);
    return ledger.visit(places, [&](const StoredEvent& event) -> Result<> {
      Bytes record;
      encode_record(event.record, record);
      if (crypto::blake3(record) != copies_.at(event.place()))
        add_problem(found,
                    fmt::format("event `{}`: another one takes something else out in its place", event.id.to_string()));
      return {};
    });
  }

 private:
  std::vector<Corrections::Entry> entries_;
  std::map<RowPlace, Hash256> copies_;
};

}  // namespace

/// Signatures of batches, by who reported them, under the keys that were in force when they arrived.
Result<> MeteringService::verify_batches(BlockAddress until, UsageVerification& found) {
  return ledger_->scan_proofs(until, [&](const Ledger::StoredBatch& batch) -> Result<> {
    const auto& proof = batch.proof;
    if (proof.signature.empty()) return {};
    ++found.batches;
    Context ctx = own(Context::of_service(self_));
    ctx.org = batch.org;
    const Identity reporter = CRETO_TRY(Identity::parse(proof.reporter));
    const std::string bytes = batch_signed_bytes(batch.leaves.size(), merkle_root(batch.leaves));
    const Signature signature{std::string(proof.algorithm), to_bytes(proof.signature)};
    const auto verified =
        nhi_.verify_past(ctx, reporter, as_bytes(bytes), signature, batch_signature_context, batch.arrived);
    if (verified) return {};
    if (verified.error().category() == ErrorCategory::transient) return verified.error();
    add_problem(found, fmt::format("batch of `{}`: {}", proof.reporter, verified.error().message()));
    return {};
  });
}

/// No key may be there twice within its window.
Result<> MeteringService::verify_keys(BlockAddress until, UsageVerification& found) {
  struct Key {
    KeyHash hash;
    std::int64_t arrived_ns;
    auto operator<=>(const Key&) const = default;
  };
  std::vector<Key> keys;
  CRETO_TRY(ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
    const Subjects& subjects = ledger_->subjects();
    const Subjects::Subject agent = subjects.subject(subjects.attribution(event.attribution).agent);
    const std::string_view source = event.record.source.empty() ? event.record.agent : event.record.source;
    keys.push_back({ledger_->key_hash(agent.org, source, event.record.key), unix_ns(event.arrived)});
    return {};
  }));
  std::ranges::sort(keys);
  found.events = keys.size();
  // Keys are remembered by the second.
  const std::int64_t window = options_.idempotency_window.count() - 1'000'000'000;
  for (std::size_t i = 1; i < keys.size(); ++i) {
    if (keys[i].hash == keys[i - 1].hash && keys[i].arrived_ns - keys[i - 1].arrived_ns < window) {
      add_problem(found, fmt::format("an event of {} is there twice", to_rfc3339(from_unix_ns(keys[i].arrived_ns))));
    }
  }
  return {};
}

Result<UsageVerification> MeteringService::verify_usage(const Context& ctx) {
  UsageVerification found;
  const Instant now = clock_.now();
  Bytes copy;
  BlockAddress until;
  std::vector<std::pair<std::string, Quota>> quotas;
  std::vector<std::pair<std::string, SubjectThreshold>> thresholds;
  {
    // Rules stay as they are while the counters are copied; events go on as soon as the copy has begun.
    const std::unique_lock rules(rules_mutex_);
    const std::scoped_lock one(checkpoint_mutex_);
    CRETO_TRY(database_.read(ctx, [&](sql::Tx& tx) -> Result<> {
      quotas = CRETO_TRY(store::all_quotas(tx));
      thresholds = CRETO_TRY(store::all_thresholds(tx));
      return {};
    }));
    until = ledger_->pause([&] { limits_.begin_copy(copy); });
    while (limits_.write_copy(copy)) {
    }
  }
  found.head = ledger_->position().head;
  Limits counted({.detect = false});
  Limits recounted({.detect = false});
  for (Limits* limits : {&counted, &recounted}) {
    for (const auto& [org, quota] : quotas) CRETO_TRY(limits->put_quota(org, quota, now));
    for (const auto& [org, threshold] : thresholds) CRETO_TRY(limits->put_threshold(org, threshold, now));
  }
  CRETO_TRY(counted.load(copy));
  Intake intake(*ledger_, recounted, static_cast<Attributor&>(*this), clock_, {.currency = options_.currency});
  std::vector<Intake::Reached> reached;
  Intake::Recount recount(intake);
  ReadCorrections corrections;
  CRETO_TRY(ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
    corrections.note(event);
    recount.add(event, reached);
    reached.clear();
    return {};
  }));
  recount.finish(reached);
  const Subjects& subjects = ledger_->subjects();
  for (SubjectNumber number = 1; number <= subjects.mark().subjects; ++number) {
    const Subjects::Subject subject = subjects.subject(number);
    std::vector<Quota> of_subject;
    for (const auto& [org, quota] : quotas) {
      const auto kind = each_of(quota.subject);
      const bool counts = kind ? subject_kind(subject.name) == *kind : quota.subject == subject.name;
      if (org == subject.org && counts) of_subject.push_back(quota);
    }
    compare(found, counted, recounted, subject, of_subject, now);
  }
  CRETO_TRY(corrections.compare(*ledger_, until, found));
  CRETO_TRY(verify_keys(until, found));
  CRETO_TRY(verify_batches(until, found));
  return found;
}

}  // namespace creto::metering
