#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "ledger/batch_proof.h"
#include "ledger/repeated_keys.h"
#include "limits/account_names.h"
#include "service.h"
#include "service_words.h"
#include "usage/usage_query.h"

namespace creto::metering {
namespace {

using contracts::BillingPeriod;

constexpr std::size_t problems_max = 100;

void add_problem(UsageVerification& found, std::string problem) {
  if (found.problems.size() < problems_max) found.problems.push_back(std::move(problem));
}

/// Counters that should be equal, of one subject.
void compare(UsageVerification& found, Limits& counted, Limits& recounted, const Subjects::Subject& subject,
             std::span<const Quota> quotas, std::span<const SubjectThreshold> thresholds, Instant now) {
  // What is said of each of a kind counts from when it is said, and so do sessions, of which nothing is known before.
  const bool of_session = subject_kind(subject.name) == SubjectKind::session;
  const auto later = [&](std::string_view whose) { return of_session || each_of(whose).has_value(); };
  for (const BillingPeriod period :
       {BillingPeriod::hour, BillingPeriod::day, BillingPeriod::month, BillingPeriod::lifetime}) {
    const auto a = counted.costs(subject.org, subject.name, period, now);
    const auto b = recounted.costs(subject.org, subject.name, period, now);
    const CostTotals is = a ? *a : CostTotals();
    const CostTotals should = b ? *b : CostTotals();
    ++found.counters;
    if (of_session && is.total < should.total) continue;
    if (is.total != should.total) {
      add_problem(found, fmt::format("cost of `{}` by {}: {} was counted, its events say {}", subject.name,
                                     contracts::to_string(period), from_nano_money(is.total).to_string(),
                                     from_nano_money(should.total).to_string()));
    } else if (is.by_event_type != should.by_event_type) {
      add_problem(found, fmt::format("cost of `{}` by {}: its types are not those of its events", subject.name,
                                     contracts::to_string(period)));
    }
  }
  for (const SubjectThreshold& threshold : thresholds) {
    const NanoMoney is = counted.used_of(subject.org, threshold, now, subject.name).value_or(0);
    const NanoMoney should = recounted.used_of(subject.org, threshold, now, subject.name).value_or(0);
    ++found.counters;
    if (is == should || (later(threshold.subject) && is < should)) continue;
    add_problem(found, fmt::format("threshold `{}` of `{}`: {} was counted, its events say {}",
                                   threshold.threshold.threshold_id, subject.name, from_nano_money(is).to_string(),
                                   from_nano_money(should).to_string()));
  }
  for (const Quota& quota : quotas) {
    const auto a = counted.state(subject.org, quota, now, subject.name);
    const auto b = recounted.state(subject.org, quota, now, subject.name);
    const std::int64_t is = a ? a->used : 0;
    const std::int64_t should = b ? b->used : 0;
    ++found.counters;
    if (is == should || (later(quota.subject) && is < should)) continue;
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
    // Those from before a cut may still be known.
    std::vector<Corrections::Entry> known = ledger.corrections().before(until);
    std::erase_if(known, [from = ledger.held()->from](const auto& entry) { return entry.by.block < from; });
    if (entries_ != known) add_problem(found, "corrections: what is taken out is not what the events say");
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

/// What queries should find, by the keys that they would give a row.
class Sums {
 public:
  using Keys = std::vector<std::string>;
  struct Sum {
    std::int64_t events = 0;
    Decimal units, cost;
  };
  Result<> add(const std::string& org, const Keys& keys, const RecordView& record, const Currency& accounting) {
    Sum& sum = sums_[org][keys];
    ++sum.events;
    const Decimal units = CRETO_TRY(Decimal::parse(record.units));
    sum.units = CRETO_TRY(Decimal::add(sum.units, units));
    if (record.currency != accounting.code()) return {};
    const Decimal cost = CRETO_TRY(Decimal::parse(record.cost));
    sum.cost = CRETO_TRY(Decimal::add(sum.cost, cost));
    return {};
  }
  /// Asks page after page.
  Result<> compare(std::string_view what, UsageQuery query,
                   const std::function<Result<UsageReport>(const std::string& org, const UsageQuery&)>& ask,
                   UsageVerification& found) const {
    query.limit = UsageQuery::rows_max;
    for (const auto& [org, sums] : sums_) {
      std::size_t rows = 0;
      query.after.clear();
      do {
        const UsageReport page = CRETO_TRY(ask(org, query));
        for (const UsageRow& row : page.rows) {
          const auto sum = sums.find(row.keys);
          if (sum != sums.end() && sum->second.events == row.events && sum->second.units == row.units &&
              sum->second.cost == row.cost.amount)
            continue;
          add_problem(found,
                      fmt::format("columns: {} `{}` is not what the events say", what, fmt::join(row.keys, "`, `")));
        }
        rows += page.rows.size();
        query.after = page.next;
      } while (!query.after.empty());
      found.sums += rows;
      if (rows != sums.size())
        add_problem(found, fmt::format("columns: have {} of {} sums by {}", rows, sums.size(), what));
    }
    return {};
  }

 private:
  std::map<std::string, std::map<Keys, Sum>> sums_;
};

/// Whether a recorded end of the log, "metering:usage:<segment>:<offset>", is behind a block that is held.
bool is_held(std::string_view resource, BlockAddress from) {
  BlockAddress end;
  const char* const stop = resource.data() + resource.size();
  const std::size_t at = resource.find_last_of(':');
  if (at == resource.npos) return true;
  const std::size_t before = resource.find_last_of(':', at - 1);
  if (before == resource.npos) return true;
  std::from_chars(resource.data() + before + 1, stop, end.segment);
  std::from_chars(resource.data() + at + 1, stop, end.offset);
  return end > from;
}

/// Every record of that name, the oldest first.
Result<> each_record(audit::AuditLog& log, const Context& ctx, std::string_view what,
                     const std::function<Result<>(const audit::AuditRecord&)>& visit) {
  audit::AuditFilter filter{.what = std::string(what), .limit = 1'000, .newest_first = false};
  do {
    const audit::AuditPage page = CRETO_TRY(log.query(ctx, filter));
    for (const audit::AuditEntry& entry : page.entries) CRETO_TRY(visit(entry.record));
    filter.cursor = page.next_cursor;
  } while (!filter.cursor.empty());
  return {};
}

}  // namespace

/// What queries read must be what the log says.
Result<> MeteringService::verify_columns(UsageVerification& found) {
  return columns_->use([&](const ColumnStore::All& all) -> Result<> {
    const BlockAddress until = end_of(all);
    const Subjects& subjects = ledger_->subjects();
    std::set<RowPlace> taken_out;
    CRETO_TRY(ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
      if (event.corrects) taken_out.insert(event.corrects->place);
      return {};
    }));
    Sums by_day;
    Sums by_agent;
    CRETO_TRY(ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
      if (!event.record.voids.empty() || taken_out.contains(event.place())) return {};
      const Subjects::Subject agent = subjects.subject(subjects.attribution(event.attribution).agent);
      const std::string org(agent.org);
      const std::string day = to_rfc3339(event.record.time).substr(0, 10);
      CRETO_TRY(by_day.add(org, {std::string(event.record.type), day}, event.record, options_.currency));
      return by_agent.add(org, {std::string(agent.name)}, event.record, options_.currency);
    }));
    const auto ask = [&](const std::string& org, const UsageQuery& query) {
      return query_usage(all, subjects, ledger_->corrections(), org, options_.currency, query,
                         [] { return Result<>(); });
    };
    using By = UsageGrouping::By;
    UsageQuery query;
    query.group_by = {{By::type, {}}, {By::day, {}}};
    CRETO_TRY(by_day.compare("type and day", query, ask, found));
    query.group_by = {{By::agent, {}}};
    return by_agent.compare("agent", query, ask, found);
  });
}

/// Every end of the log that was recorded must be in it still, unless it was cut off: who takes away the newest events,
/// or all, is found so. And what stands for what was cut off must be what was recorded then.
Result<> MeteringService::verify_heads(UsageVerification& found) {
  if (options_.audit == nullptr) return {};
  const Context ctx = Context::of_service(self_);
  CRETO_TRY(options_.audit->flush(ctx));
  const auto held = ledger_->held();
  std::map<std::string, std::string> recorded;  // by head: when
  CRETO_TRY(each_record(*options_.audit, ctx, "usage_recorded", [&](const audit::AuditRecord& record) -> Result<> {
    if (!is_held(record.resource, held->from)) return {};
    const Json metadata = CRETO_TRY(parse_json(record.metadata));
    recorded.emplace(metadata.value("head", ""), to_rfc3339(from_unix_ns(record.timestamp.physical_ns)));
    return {};
  }));
  bool vouched = held->everything();
  CRETO_TRY(each_record(*options_.audit, ctx, "usage_cut", [&](const audit::AuditRecord& record) -> Result<> {
    const Json metadata = CRETO_TRY(parse_json(record.metadata));
    vouched = vouched || (record.resource == fmt::format("metering:usage:{}", held->from.segment) &&
                          metadata.value("base", "") == hex(held->base));
    return {};
  }));
  if (!vouched)
    add_problem(found, fmt::format("log: nobody recorded that segments before {} were cut off, or what stands for them",
                                   held->from.segment));
  found.heads = recorded.size();
  CRETO_TRY(ledger_->scan_heads(ledger_->position().end, [&](const Hash256& head) { recorded.erase(hex(head)); }));
  for (const auto& [head, when] : recorded)
    add_problem(found,
                fmt::format("log: what had been taken until {} is not in it, as block {} is missing", when, head));
  return {};
}

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
    const auto verified = nhi_.verify_past(ctx, reporter, as_bytes(bytes), signature, batch_signature_context,
                                           batch.arrived, batch.arrived);
    if (verified) return {};
    if (verified.error().category() == ErrorCategory::transient) return verified.error();
    add_problem(found, fmt::format("batch of `{}`: {}", proof.reporter, verified.error().message()));
    return {};
  });
}

/// Signatures of single events, under the keys that were in force at their time; and what the log keeps of an event
/// must be what its envelope says.
Result<> MeteringService::verify_envelopes(BlockAddress until, UsageVerification& found) {
  return ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
    if (event.envelope.empty()) return {};
    const auto problem = [&](std::string_view what) {
      add_problem(found, fmt::format("event `{}`: {}", event.id.to_string(), what));
    };
    const auto said = parse_usage_event(event.envelope);
    Bytes record;
    if (said) encode_event(*said, record);
    if (!said || !std::ranges::equal(record, event.record.bytes)) {
      problem("the log does not keep what its envelope says");
      return {};
    }
    // Messaging vouches for its own by the call; they carry none.
    if (!said->envelope.signature) return {};
    ++found.envelopes;
    Context ctx = own(Context::of_service(self_));
    ctx.org = ledger_->subjects().org_of(event.attribution);
    const auto verified =
        nhi_.verify_past(ctx, said->envelope.agent, as_bytes(said->signed_bytes), *said->envelope.signature,
                         event_signature_context, said->envelope.timestamp.instant(), event.arrived);
    if (verified) return {};
    if (verified.error().category() == ErrorCategory::transient) return verified.error();
    problem("its signature does not verify");
    return {};
  });
}

/// No key may be there twice within its window.
Result<> MeteringService::verify_keys(BlockAddress until, UsageVerification& found) {
  // Keys are remembered by the second.
  const Nanos window = options_.idempotency_window - std::chrono::seconds(1);
  const auto repeated = CRETO_TRY(repeated_keys(*ledger_, until, found.events, window));
  for (const Instant arrived : repeated)
    add_problem(found, fmt::format("an event of {} is there twice", to_rfc3339(arrived)));
  return {};
}

Result<UsageVerification> MeteringService::verify_usage(const Context& ctx) {
  UsageVerification found;
  const std::scoped_lock cutting(cutting_mutex_);
  const Instant now = clock_.now();
  Bytes copy;
  BlockAddress until;
  std::vector<std::pair<std::string, Quota>> quotas;
  std::vector<std::pair<std::string, SubjectThreshold>> thresholds;
  {
    // Rules stay as they are while the counters are copied, which need this mutex alone; events go on.
    const std::shared_lock rules(rules_mutex_);
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
  Limits counted({.detect = false}, options_.currency);
  Limits recounted({.detect = false}, options_.currency);
  for (Limits* limits : {&counted, &recounted}) {
    for (const auto& [org, quota] : quotas) CRETO_TRY(limits->put_quota(org, quota, now));
    for (const auto& [org, threshold] : thresholds) CRETO_TRY(limits->put_threshold(org, threshold, now));
  }
  CRETO_TRY(counted.load(copy));
  CRETO_TRY(load_base(*ledger_, recounted));
  const auto held = ledger_->held();
  found.events_cut = held->events;
  if (!held->everything()) found.held_since = held->until;
  Intake intake(*ledger_, recounted, static_cast<Attributor&>(*this), clock_, {.currency = options_.currency});
  std::vector<Intake::Reached> reached;
  Intake::Recount recount(intake);
  ReadCorrections corrections;
  const Subjects& subjects = ledger_->subjects();
  CRETO_TRY(ledger_->scan({}, until, [&](const StoredEvent& event) -> Result<> {
    ++found.events;
    corrections.note(event);
    recount.add(event, reached);
    reached.clear();
    return {};
  }));
  recount.finish(reached);
  const auto compare_subject = [&](const Subjects::Subject& subject) {
    std::vector<Quota> of_subject;
    std::vector<SubjectThreshold> thresholds_of_subject;
    const auto counts = [&](const std::string& org, const std::string& whose) {
      const auto kind = each_of(whose);
      return org == subject.org && (kind ? subject_kind(subject.name) == *kind : whose == subject.name);
    };
    for (const auto& [org, threshold] : thresholds) {
      if (counts(org, threshold.subject)) thresholds_of_subject.push_back(threshold);
    }
    for (const auto& [org, quota] : quotas) {
      if (counts(org, quota.subject)) of_subject.push_back(quota);
    }
    compare(found, counted, recounted, subject, of_subject, thresholds_of_subject, now);
  };
  for (SubjectNumber number = 1; number <= subjects.mark().subjects; ++number)
    compare_subject(subjects.subject(number));
  // Those that neither has any more were over.
  std::set<std::pair<std::string, std::string>> sessions;  // by organization
  for (Limits* limits : {&counted, &recounted}) {
    for (auto& session : limits->sessions()) {
      if (counted.limits_sessions(session.first)) sessions.insert(std::move(session));
    }
  }
  for (const auto& [org, session] : sessions) compare_subject({org, session});
  CRETO_TRY(corrections.compare(*ledger_, until, found));
  CRETO_TRY(verify_keys(until, found));
  CRETO_TRY(verify_batches(until, found));
  CRETO_TRY(verify_envelopes(until, found));
  CRETO_TRY(verify_columns(found));
  CRETO_TRY(verify_heads(found));
  return found;
}

}  // namespace creto::metering
