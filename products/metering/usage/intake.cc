#include "usage/intake.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_set>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "ledger/batch_proof.h"
#include "service_words.h"

namespace creto::metering {
namespace {

std::uint64_t content_of(const Hash256& hash) {
  std::uint64_t content = 0;
  std::memcpy(&content, hash.data(), sizeof content);
  return content;
}

/// The first full second at or after `when`.
std::uint32_t first_second_after(Instant when) {
  const std::uint32_t second = seconds_of(when);
  return from_unix_ns(std::int64_t{second} * 1'000'000'000) < when ? second + 1 : second;
}

/// How many agents ahead of the one that is looked at memory is asked for.
constexpr std::size_t known_ahead = 16;

/// Events that this one corrects, as it names them.
std::string_view named_by(const RecordView& record) { return record.voids.empty() ? record.replaces : record.voids; }
std::string_view naming_field(const RecordView& record) { return record.voids.empty() ? "replaces" : "voids"; }

std::string reported_by_other(const RecordView& record, std::string_view id) {
  return fmt::format("{}: event `{}` was reported by another; that needs `{}`", naming_field(record), id,
                     correct_action);
}

/// Why an event was not taken.
Error refusal(const RecordView& record, const Outcome& outcome) {
  const std::string_view named = named_by(record);
  const std::string_view field = naming_field(record);
  const std::string id = outcome.id.to_string();
  switch (outcome.kind) {
    case Outcome::Kind::unknown_target:
      return error(ErrorKind::not_found, fmt::format("{}: event `{}` is not known", field, named)).with_retryable(true);
    case Outcome::Kind::target_of_other:
      return error(ErrorKind::permission_denied, fmt::format("{}: event `{}` is another agent's", field, id));
    case Outcome::Kind::target_voids:
      return error(ErrorKind::conflict,
                   fmt::format("{}: event `{}` only takes another one out; report that again", field, id));
    case Outcome::Kind::target_taken:
      return error(ErrorKind::conflict, fmt::format("{}: event `{}` was taken out by event `{}`", field, named, id));
    case Outcome::Kind::target_reported_by_other:
      // It came at the same time: the next attempt finds it and asks.
      return error(ErrorKind::permission_denied, reported_by_other(record, id)).with_retryable(true);
    default:
      return error(ErrorKind::conflict,
                   fmt::format("idempotency key `{}` was used for other content by event `{}`", record.key, id));
  }
}

/// An action that the gateway performed: it asks before, and holds what it may cost.
bool is_held_action(const RecordView& record) {
  return record.type == "action" && !record.property("reservation_id").empty();
}

/// Whether a human was asked for this very use before it happened, who is not to be asked again.
bool was_asked_for(const Notice& notice, bool held_action) {
  return held_action && notice.kind == Notice::Kind::cost && notice.period == "transaction" &&
         notice.action == contracts::ThresholdAction::require_approval;
}

std::string_view source_of(const RecordView& record) { return record.source.empty() ? record.agent : record.source; }

}  // namespace

/// A batch on its way. Records borrow from the caller, or from `encoded`.
struct Intake::Work {
  std::vector<std::optional<Result<Ingested>>> answers;
  std::vector<NewEvent> events;
  std::vector<std::uint32_t> place;  ///< of each event among the answers
  std::vector<KeyHash> agents;       ///< of each event
  std::vector<Accounts> room;
  std::vector<std::span<const AccountNumber>> accounts;  ///< of each event
  std::vector<const BillingNeeds*> needs;                ///< likewise; null: none
  std::vector<std::uint32_t> unknown;                    ///< events whose agents have to be asked for
  std::vector<Fact> facts;
  std::vector<std::uint32_t> event_of;  ///< of each fact
  RecordScratch scratch;
  std::vector<Bytes> encoded;
  std::deque<Target> targets;     ///< of corrections
  std::deque<std::string> costs;  ///< that we give
  std::shared_ptr<const PriceTable> prices;

  void begin(std::size_t size) {
    answers.assign(size, std::nullopt);
    events.clear();
    place.clear();
    agents.clear();
    room.resize(size);
    accounts.assign(size, {});
    needs.assign(size, nullptr);
    unknown.clear();
    targets.clear();
    costs.clear();
    prices.reset();
    scratch.clear();
  }
  void refuse(std::size_t place, Error error) { answers[place] = std::move(error); }
  void take(std::size_t where, const KeyHash& agent, NewEvent event) {
    if (event.record.corrects()) event.target = &targets.emplace_back();
    place.push_back(static_cast<std::uint32_t>(where));
    agents.push_back(agent);
    events.push_back(std::move(event));
  }
  /// Those of an event, if there are not too many of them.
  void take_accounts(std::size_t event, const KnownAgent& known,
                     std::span<const std::shared_ptr<const BillingNeeds>> all_needs) {
    events[event].attribution = known.attribution;
    if (known.needs != 0) needs[event] = all_needs[known.needs - 1].get();
    std::ranges::copy(known.accounts, room[event].begin());
    accounts[event] = {room[event].begin(), std::ranges::find(known.accounts, AccountNumber::none) -
                                                known.accounts.begin() + room[event].begin()};
  }
  /// Leaves out the events that were refused.
  void drop_refused() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < events.size(); ++i) {
      if (answers[place[i]]) continue;
      events[kept] = events[i];
      place[kept] = place[i];
      accounts[kept] = accounts[i];
      needs[kept] = needs[i];
      ++kept;
    }
    events.resize(kept);
    place.resize(kept);
  }
};

/// Work whose memory is kept for the next batch, unless a rare large one made it grow.
class Intake::Borrowed {
 public:
  Borrowed(Intake& intake, std::size_t size) : intake_(intake) {
    {
      const std::scoped_lock lock(intake_.idle_mutex_);
      if (!intake_.idle_.empty()) {
        work_ = std::move(intake_.idle_.back());
        intake_.idle_.pop_back();
      }
    }
    if (work_ == nullptr) work_ = std::make_unique<Work>();
    work_->begin(size);
  }
  ~Borrowed() {
    if (work_->answers.size() > kept_events_max) return;
    work_->encoded.clear();
    const std::scoped_lock lock(intake_.idle_mutex_);
    if (intake_.idle_.size() < kept_max) intake_.idle_.push_back(std::move(work_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  Work& operator*() const { return *work_; }

 private:
  static constexpr std::size_t kept_max = 16;
  static constexpr std::size_t kept_events_max = 10'000;
  Intake& intake_;
  std::unique_ptr<Work> work_;
};

Intake::Intake(Ledger& ledger, Limits& limits, Attributor& attributor, const Clock& clock, IntakeOptions options)
    : ledger_(ledger), limits_(limits), attributor_(attributor), clock_(clock), options_(std::move(options)) {}
Intake::~Intake() = default;

Result<> Intake::check(const RecordView& record, Instant now) const {
  if (record.time < now - options_.event_age_max || record.time > now + options_.event_ahead_max) {
    return error(ErrorKind::invalid_input, fmt::format("time: {} is too far from now", to_rfc3339(record.time)));
  }
  return check_usage_properties(record.type, record.properties);
}

/// Gives the use of a model its cost where it came without.
Result<> Intake::price(const Context& ctx, Work& work, NewEvent& event) const {
  if (!PriceTable::may_price(event.record) || !options_.prices_of) return {};
  if (work.prices == nullptr) work.prices = options_.prices_of(ctx.org);
  if (work.prices == nullptr) return {};
  const auto cost = CRETO_TRY(work.prices->cost_of(event.record));
  if (!cost) return {};
  event.record.cost = work.costs.emplace_back(cost->amount.to_string());
  event.record.currency = "USD";
  event.priced = true;
  return {};
}

/// Fills in whom each event counts for. Events of unknown agents are refused and leave.
void Intake::attribute(const Context& ctx, Work& work, Instant now) {
  const std::size_t count = work.events.size();
  const auto version = static_cast<std::uint32_t>(attributor_.version());
  const std::uint32_t now_s = seconds_of(now);
  {
    const std::shared_lock lock(known_mutex_);
    for (const KeyHash& agent : work.agents) known_.prefetch(agent);
    for (std::size_t i = 0; i < std::min(known_ahead, count); ++i) known_.prefetch_likely(work.agents[i]);
    for (std::size_t i = 0; i < count; ++i) {
      if (i + known_ahead < count) known_.prefetch_likely(work.agents[i + known_ahead]);
      const KnownAgent* known = known_.find(work.agents[i]);
      if (known == nullptr || !known->holds(version, seconds_of(work.events[i].record.time), now_s)) {
        work.unknown.push_back(static_cast<std::uint32_t>(i));
        continue;
      }
      work.take_accounts(i, *known, needs_);
    }
  }
  bool refused = false;
  for (const std::uint32_t i : work.unknown) {
    const RecordView& record = work.events[i].record;
    auto known = ask(ctx, record.agent, work.agents[i], record.time, now);
    if (known) {
      const std::shared_lock lock(known_mutex_);
      work.take_accounts(i, *known, needs_);
    } else {
      work.refuse(work.place[i], std::move(known).error());
      refused = true;
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    const AttributionNumber attribution = work.events[i].attribution;
    if (attribution != 0 && work.accounts[i].empty()) work.accounts[i] = accounts_of(attribution, work.room[i]);
  }
  if (refused) work.drop_refused();
}

/// Refuses what could not be billed, unless it was taken before.
Result<> Intake::refuse_unbillable(Work& work) {
  bool refused = false;
  for (std::size_t i = 0; i < work.events.size(); ++i) {
    if (work.needs[i] == nullptr) continue;
    auto good = work.needs[i]->check(work.events[i].record);
    if (good) continue;
    const auto known = CRETO_TRY(ledger_.find(work.events[i].key));
    if (known) continue;
    work.refuse(work.place[i], std::move(good).error());
    refused = true;
  }
  if (refused) work.drop_refused();
  return {};
}

std::uint32_t Intake::number_of(const std::shared_ptr<const BillingNeeds>& needs) {
  if (needs == nullptr) return 0;
  const std::unique_lock lock(known_mutex_);
  const auto known = std::ranges::find(needs_, needs);
  const auto number = static_cast<std::uint32_t>(known - needs_.begin() + 1);
  if (known == needs_.end()) needs_.push_back(needs);
  return number;
}

/// An agent reports for itself and for those below it; what others may report, policies say.
void Intake::refuse_others(const Context& ctx, Work& work, std::string_view reporter) {
  if (!reporter.starts_with("agent:")) return;
  const SubjectNumber number = ledger_.subjects().find(ctx.org, reporter);
  bool refused = false;
  for (std::size_t i = 0; i < work.events.size(); ++i) {
    const NewEvent& event = work.events[i];
    const auto& above = ledger_.subjects().attribution(event.attribution).ancestors;
    if (event.record.agent == reporter || std::ranges::find(above, number) != above.end()) continue;
    work.refuse(work.place[i],
                error(ErrorKind::permission_denied,
                      fmt::format("agent: `{}` is not below `{}`, which reports it", event.record.agent, reporter)));
    refused = true;
  }
  if (refused) work.drop_refused();
}

/// Whom `agent`'s use at `when` counts for, from who can tell.
Result<KnownAgent> Intake::ask(const Context& ctx, std::string_view agent, const KeyHash& hash, Instant when,
                               Instant now) {
  const std::uint64_t version = attributor_.version();
  const Identity identity = CRETO_TRY(Identity::parse(agent));
  const Attributor::Attributed found = CRETO_TRY(attributor_.attribute(ctx, identity, when));
  Subjects& subjects = ledger_.subjects();
  Attribution attribution;
  attribution.agent = subjects.number(ctx.org, agent);
  for (const Identity& link : found.chain) {
    if (link.text() == agent) continue;
    const SubjectNumber ancestor = subjects.number(ctx.org, link.text());
    if (std::ranges::find(attribution.ancestors, ancestor) == attribution.ancestors.end()) {
      attribution.ancestors.push_back(ancestor);
    }
  }
  if (!found.subscription.empty()) attribution.subscription = subjects.number(ctx.org, found.subscription);
  const AttributionNumber number = subjects.number(attribution);
  Accounts room{};
  const auto accounts = accounts_of(number, room);
  KnownAgent known{.agent = hash,
                   .attribution = number,
                   .version = static_cast<std::uint32_t>(version),
                   .asked_s = seconds_of(now),
                   .good_until_s = seconds_of(now + options_.attribution_ttl),
                   .from_s = first_second_after(found.from),
                   .until_s = seconds_of(found.until),
                   .needs = number_of(found.needs)};
  if (accounts.size() <= known.accounts.size()) std::ranges::copy(accounts, known.accounts.begin());
  const std::unique_lock lock(known_mutex_);
  known_.put(known);
  return known;
}

std::optional<DelegationChain> Intake::known_ancestors(const Context& ctx, const Identity& agent) const {
  const KeyHash hash = ledger_.name_hash(ctx.org, agent.text());
  const auto version = static_cast<std::uint32_t>(attributor_.version());
  const std::uint32_t now_s = seconds_of(clock_.now());
  AttributionNumber attribution = 0;
  {
    const std::shared_lock lock(known_mutex_);
    const KnownAgent* known = known_.find(hash);
    if (known == nullptr || !known->holds(version, now_s, now_s)) return std::nullopt;
    attribution = known->attribution;
  }
  return ancestors_of(attribution);
}

Result<DelegationChain> Intake::ask_ancestors(const Context& ctx, const Identity& agent) {
  const Instant now = clock_.now();
  const KnownAgent known = CRETO_TRY(ask(ctx, agent.text(), ledger_.name_hash(ctx.org, agent.text()), now, now));
  return ancestors_of(known.attribution);
}

DelegationChain Intake::ancestors_of(AttributionNumber attribution) const {
  DelegationChain chain;
  for (const SubjectNumber ancestor : ledger_.subjects().attribution(attribution).ancestors)
    chain.push_back(Identity::parse(ledger_.subjects().subject(ancestor).name).value());
  return chain;
}

std::span<const AccountNumber> Intake::accounts_of(AttributionNumber number, Accounts& room) {
  const Attribution& attribution = ledger_.subjects().attribution(number);
  CRETO_ASSERT(attribution.ancestors.size() <= delegation_chain_max_depth);
  std::size_t count = 0;
  room[count++] = account_of(attribution.agent);
  for (const SubjectNumber ancestor : attribution.ancestors) room[count++] = account_of(ancestor);
  if (attribution.subscription != 0) room[count++] = account_of(attribution.subscription);
  return std::span(room).first(count);
}

AccountNumber Intake::account_of(SubjectNumber subject) {
  {
    const std::shared_lock lock(known_mutex_);
    if (subject < accounts_.size() && accounts_[subject] != AccountNumber::none) return accounts_[subject];
  }
  const Subjects::Subject named = ledger_.subjects().subject(subject);
  const AccountNumber account = limits_.account(named.org, named.name);
  const std::unique_lock lock(known_mutex_);
  if (accounts_.size() <= subject) accounts_.resize(std::max<std::size_t>(subject + 1, accounts_.size() * 2));
  return accounts_[subject] = account;
}

bool Intake::ends_session(const RecordView& record, SubjectNumber reporter) const {
  return record.type == "sandbox_terminated" && record.property("session").empty() && reporter != 0 &&
         !ledger_.subjects().subject(reporter).name.starts_with("agent:");
}

NanoMoney Intake::cost_of(const RecordView& record, std::string_view currency) const {
  // Cost in another currency is a fact too; it is in the event, but cannot be added up with this one.
  if (record.cost.empty() || record.currency != currency) return 0;
  const auto amount = Decimal::parse(record.cost);
  const auto nanos = amount ? to_nano_money(*amount) : Result<NanoMoney>(amount.error());
  return nanos ? *nanos : NanoMoney{0};
}

Fact Intake::fact_of(std::string_view org, std::span<const AccountNumber> accounts, const RecordView& record,
                     SubjectNumber reporter, WithSession* with_session) {
  AccountNumber session_account = AccountNumber::none;
  bool ends = false;
  if (with_session != nullptr) {
    if (const std::string_view session = session_of(record.properties); !session.empty()) {
      auto& all = with_session->emplace_back(accounts.begin(), accounts.end());
      session_account = limits_.session_account(org, session);
      all.push_back(session_account);
      accounts = all;
      ends = ends_session(record, reporter);
    }
  }
  const std::string_view action = record.type == "action" ? record.property("action") : std::string_view();
  Fact fact{.accounts = accounts,
            .words = limits_.words_of_fact(org, record.type, action, record.properties,
                                           record.cost.empty() ? std::string_view() : record.currency),
            .units = record.whole_units,
            .cost = 0,
            .session = session_account,
            .ends_session = ends};
  if (fact.words.currency != unlimited_currency) fact.cost = cost_of(record, record.currency);
  if (const std::string_view hold = record.property("reservation_id"); !hold.empty()) {
    if (auto id = ReservationId::parse(hold)) fact.settles = *id;
  }
  return fact;
}

Result<Intake::Answers> Intake::take(const Context& ctx, const Batch& batch, std::vector<Reached>& reached) {
  CRETO_ASSERT(batch.leaves.size() == batch.records.size());
  const Instant now = clock_.now();
  const SubjectNumber reporter = ledger_.subjects().number(ctx.org, batch.reporter);
  const Borrowed borrowed(*this, batch.records.size());
  Work& work = *borrowed;
  BatchProof proof{.reporter = batch.reporter, .signature = {}, .leaves = {}};
  if (batch.signature != nullptr) proof.signature = *batch.signature;
  proof.leaves.resize(batch.signature == nullptr ? 0 : batch.records.size());
  for (std::size_t i = 0; i < batch.records.size(); ++i) {
    if (!proof.leaves.empty()) proof.leaves[i].hash = batch.leaves[i];
    auto record = parse_record(batch.records[i], work.scratch);
    if (!record) {
      work.refuse(i, std::move(record).error());
      continue;
    }
    if (auto good = check(*record, now); !good) {
      work.refuse(i, std::move(good).error());
      continue;
    }
    NewEvent event{.record = *record,
                   .attribution = 0,
                   .reporter = reporter,
                   .key = ledger_.key_hash(ctx.org, source_of(*record), record->key),
                   .content = content_of(batch.leaves[i])};
    if (auto priced = price(ctx, work, event); !priced) {
      work.refuse(i, std::move(priced).error());
      continue;
    }
    work.take(i, ledger_.name_hash(ctx.org, record->agent), event);
  }
  attribute(ctx, work, now);
  refuse_others(ctx, work, batch.reporter);
  CRETO_TRY(refuse_unbillable(work));
  CRETO_TRY(admit_corrections(ctx, work, batch.reporter));
  if (batch.signature != nullptr) {
    for (std::size_t i = 0; i < work.events.size(); ++i) {
      proof.leaves[work.place[i]].event = static_cast<std::uint32_t>(i);
    }
  }
  return append(ctx, work, &proof, reached);
}

Result<Intake::Answers> Intake::take(const Context& ctx, std::span<const Result<UsageEvent>> events,
                                     std::vector<Reached>& reached) {
  const Instant now = clock_.now();
  const SubjectNumber reporter = ledger_.subjects().number(ctx.org, ctx.caller_text());
  const Borrowed borrowed(*this, events.size());
  Work& work = *borrowed;
  work.encoded.resize(events.size());
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (!events[i]) {
      work.refuse(i, events[i].error());
      continue;
    }
    const UsageEvent& event = *events[i];
    encode_event(event, work.encoded[i]);
    auto record = parse_record(work.encoded[i], work.scratch);
    auto good = record ? check(*record, now) : Result<>(record.error());
    if (!good) {
      work.refuse(i, std::move(good).error());
      continue;
    }
    NewEvent taken{.record = *record,
                   .attribution = 0,
                   .reporter = reporter,
                   .key = ledger_.key_hash(ctx.org, record->agent, record->key),
                   .content = content_of(crypto::sha3_256(as_bytes(event.signed_bytes))),
                   .id = event.envelope.event_id,
                   .envelope = event.document};
    if (auto priced = price(ctx, work, taken); !priced) {
      work.refuse(i, std::move(priced).error());
      continue;
    }
    work.take(i, ledger_.name_hash(ctx.org, record->agent), taken);
  }
  attribute(ctx, work, now);
  CRETO_TRY(admit_corrections(ctx, work, ctx.caller_text()));
  return append(ctx, work, nullptr, reached);
}

/// Looks in the log for what corrections refer to; what is not there may still be in the same batch. Events by their
/// ids are looked for at once.
Result<> Intake::find_targets(const Context& ctx, Work& work) {
  std::vector<EventId> ids;
  std::vector<Target*> by_id;
  std::vector<RowPlace> places;
  std::unordered_set<SubjectNumber> agents;
  for (const NewEvent& event : work.events) {
    if (event.target == nullptr) continue;
    const RecordView& record = event.record;
    const std::string_view named = named_by(record);
    if (named.starts_with(key_prefix)) {
      event.target->key = ledger_.key_hash(ctx.org, source_of(record), named.substr(key_prefix.size()));
      const auto place = CRETO_TRY(ledger_.find(event.target->key));
      event.target->place = place.value_or(RowPlace{});
    } else {
      event.target->id = EventId::parse(named).value();
      ids.push_back(*event.target->id);
      by_id.push_back(event.target);
      agents.insert(ledger_.subjects().attribution(event.attribution).agent);
    }
  }
  if (!ids.empty() && options_.find_events) {
    std::vector<AttributionNumber> whose;
    for (AttributionNumber number = 1; number <= ledger_.subjects().mark().attributions; ++number) {
      if (agents.contains(ledger_.subjects().attribution(number).agent)) whose.push_back(number);
    }
    const auto found = CRETO_TRY(options_.find_events(ids, whose));
    for (std::size_t i = 0; i < found.size(); ++i) by_id[i]->place = found[i].value_or(RowPlace{});
  }
  for (const Target& target : work.targets) {
    if (target.place.block.segment != 0) places.push_back(target.place);
  }
  std::ranges::sort(places);
  places.erase(std::unique(places.begin(), places.end()), places.end());
  return ledger_.visit(places, [&](const StoredEvent& event) -> Result<> {
    for (Target& target : work.targets) {
      if (target.place == event.place()) Ledger::fill(target, event);
    }
    return {};
  });
}

/// Finds what corrections refer to. Those of what somebody else reported are refused unless policy permits them; what
/// is left is written down.
Result<> Intake::admit_corrections(const Context& ctx, Work& work, std::string_view reporter) {
  if (work.targets.empty()) return {};
  CRETO_TRY(find_targets(ctx, work));
  std::map<std::string_view, Result<>> permitted;  // by agent
  std::vector<const RecordView*> admitted;
  bool refused = false;
  for (std::size_t i = 0; i < work.events.size(); ++i) {
    NewEvent& event = work.events[i];
    if (event.target == nullptr) continue;
    // A repetition, or a conflict of keys: the ledger tells.
    const auto known = CRETO_TRY(ledger_.find(event.key));
    if (known) continue;
    const Target& target = *event.target;
    const bool of_agent = target.found && ledger_.subjects().attribution(target.attribution).agent ==
                                              ledger_.subjects().attribution(event.attribution).agent;
    if (of_agent && target.reporter != event.reporter) {
      const std::string_view agent = event.record.agent;
      auto answer = permitted.find(agent);
      if (answer == permitted.end()) {
        const Error nobody = error(ErrorKind::permission_denied, "nobody may");
        answer =
            permitted
                .emplace(agent, options_.may_correct ? options_.may_correct(ctx, reporter, agent) : Result<>(nobody))
                .first;
      }
      if (!answer->second) {
        const Error& why = answer->second.error();
        work.refuse(work.place[i],
                    error(why.kind(), reported_by_other(event.record, named_by(event.record))).with_cause(why));
        refused = true;
        continue;
      }
      event.may_correct_others = true;
    }
    admitted.push_back(&event.record);
  }
  if (!admitted.empty() && options_.record_corrections) {
    CRETO_TRY(options_.record_corrections(ctx, reporter, admitted));
  }
  if (refused) work.drop_refused();
  return {};
}

void Intake::correct(AttributionNumber of, BytesView taken_out, Instant counted_at, SubjectNumber reporter,
                     const Fact& in, bool voids, Instant arrived, std::vector<Notice>& notices) {
  RecordScratch scratch;
  const auto record = parse_record(taken_out, scratch);
  CRETO_ASSERT(record);  // it was read from the log
  Accounts room;
  WithSession with_session;
  const std::string_view org = ledger_.subjects().org_of(of);
  Fact out =
      fact_of(org, accounts_of(of, room), *record, reporter, limits_.limits_sessions(org) ? &with_session : nullptr);
  out.settles.reset();
  limits_.correct(out, voids ? nullptr : &in, counted_at, arrived, notices);
}

Result<Intake::Answers> Intake::append(const Context& ctx, Work& work, const BatchProof* proof,
                                       std::vector<Reached>& reached) {
  const auto count = [&](std::span<const Outcome> outcomes, Instant arrived) {
    work.facts.clear();
    work.event_of.clear();
    WithSession with_session;
    WithSession* const sessions = limits_.limits_sessions(ctx.org) ? &with_session : nullptr;
    std::vector<Notice> notices;
    const auto tell = [&](Notice& notice, std::uint32_t event) {
      if (was_asked_for(notice, is_held_action(work.events[event].record))) return;
      ++untold_;
      reached.push_back(
          {ctx.org, std::move(notice), outcomes[event].id, Identity::parse(work.events[event].record.agent).value()});
    };
    for (std::uint32_t i = 0; i < outcomes.size(); ++i) {
      if (outcomes[i].kind != Outcome::Kind::accepted) continue;
      const NewEvent& event = work.events[i];
      const Fact fact = fact_of(ctx.org, work.accounts[i], event.record, event.reporter, sessions);
      if (event.target == nullptr) {
        work.facts.push_back(fact);
        work.event_of.push_back(i);
        continue;
      }
      std::vector<Notice> of_correction;
      correct(event.target->attribution, event.target->record, event.target->counted_at, event.reporter, fact,
              !event.record.voids.empty(), arrived, of_correction);
      for (Notice& notice : of_correction) tell(notice, i);
    }
    limits_.add(work.facts, arrived, notices);
    for (Notice& notice : notices) tell(notice, work.event_of[notice.fact]);
  };
  if (!work.events.empty()) {
    const auto outcomes = CRETO_TRY(ledger_.append(work.events, proof, count));
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      const Outcome& outcome = outcomes[i];
      if (outcome.kind != Outcome::Kind::accepted && outcome.kind != Outcome::Kind::duplicate) {
        work.refuse(work.place[i], refusal(work.events[i].record, outcome));
      } else {
        // Of a batch of records it was refused before.
        const bool left_out =
            proof == nullptr && work.needs[i] != nullptr && !work.needs[i]->check(work.events[i].record);
        work.answers[work.place[i]] = Ingested{outcome.id, outcome.kind == Outcome::Kind::duplicate, left_out};
      }
    }
  }
  Answers answers;
  answers.reserve(work.answers.size());
  for (auto& answer : work.answers) answers.push_back(*std::move(answer));
  return answers;
}

void Intake::Recount::add(const StoredEvent& event, std::vector<Reached>& reached) {
  if (facts_.size() == batch || event.arrived != arrived_ || event.corrects) {
    finish(reached);
    if (++since_forgotten_ >= forgotten_after) {
      intake_.limits_.forget(intake_.limits_.sessions_over(arrived_), arrived_);
      since_forgotten_ = 0;
    }
  }
  arrived_ = event.arrived;
  const std::string_view org = intake_.ledger_.subjects().org_of(event.attribution);
  const auto accounts = intake_.accounts_of(event.attribution, accounts_[facts_.size()]);
  const bool sessions = intake_.limits_.limits_sessions(org);
  const Fact fact = intake_.fact_of(org, accounts, event.record, event.reporter, sessions ? &with_session_ : nullptr);
  if (!event.corrects) {
    facts_.push_back(fact);
    events_.push_back({event.id, event.attribution, is_held_action(event.record)});
    return;
  }
  std::vector<Notice> notices;
  intake_.correct(event.corrects->attribution, event.corrects->record, event.corrects->counted_at, event.reporter, fact,
                  !event.record.voids.empty(), event.arrived, notices);
  std::erase_if(notices, [&](const Notice& notice) { return was_asked_for(notice, is_held_action(event.record)); });
  intake_.untold_ += notices.size();
  for (Notice& notice : notices) {
    reached.push_back({std::string(org), std::move(notice), event.id, Identity::parse(event.record.agent).value()});
  }
}

void Intake::Recount::finish(std::vector<Reached>& reached) {
  std::vector<Notice> notices;
  intake_.limits_.add(facts_, arrived_, notices);
  std::erase_if(notices, [&](const Notice& notice) { return was_asked_for(notice, events_[notice.fact].held); });
  intake_.untold_ += notices.size();
  const Subjects& subjects = intake_.ledger_.subjects();
  for (Notice& notice : notices) {
    const Event& event = events_[notice.fact];
    const Subjects::Subject agent = subjects.subject(subjects.attribution(event.attribution).agent);
    reached.push_back({std::string(agent.org), std::move(notice), event.id, Identity::parse(agent.name).value()});
  }
  facts_.clear();
  events_.clear();
  with_session_.clear();
}

Properties properties_of(const RecordView& record) {
  Properties properties;
  for (const auto& [name, value] : record.properties) properties.emplace(name, value);
  properties.try_emplace("units", record.units);
  if (!record.cost.empty()) properties.try_emplace("cost", record.cost);
  return properties;
}

}  // namespace creto::metering
