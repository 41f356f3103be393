#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string_view>
#include <vector>

#include "billing/billing_needs.h"
#include "billing/price_table.h"
#include "creto/metering/metering.h"
#include "ledger/ledger.h"
#include "limits/counters.h"
#include "usage/known_agents.h"
#include "usage/usage_event.h"

namespace creto::metering {

/// Whom the use of an agent counts for, by somebody who can vouch for it.
class Attributor {
 public:
  virtual ~Attributor() = default;

  struct Attributed {
    DelegationChain chain;     ///< root first; with or without the agent
    std::string subscription;  ///< that is billed; empty: nobody
    /// What its plan needs of an event; the same object for the same needs. Null: nothing.
    std::shared_ptr<const BillingNeeds> needs{};
    Instant from = Instant::min();
    Instant until = Instant::max();  ///< event times in [from, until) have the same answer
  };
  /// Errors: not_found where the agent is not known.
  virtual Result<Attributed> attribute(const Context& ctx, const Identity& agent, Instant when) = 0;
  /// Differs when what was answered before may have changed.
  virtual std::uint64_t version() const = 0;
};

struct IntakeOptions {
  Currency currency = Currency::usd();  ///< whose costs are limited
  Nanos event_age_max = std::chrono::hours(24 * 366);
  Nanos event_ahead_max = std::chrono::hours(1);
  Nanos attribution_ttl = std::chrono::seconds(60);  ///< how long another process' change may go unseen
  /// What models cost there; null: nothing is known.
  std::function<std::shared_ptr<const PriceTable>(const std::string& org)> prices_of{};
  /// Where events with these ids lie, of agents that have these attributions (ColumnStore::find).
  std::function<Result<std::vector<std::optional<RowPlace>>>(std::span<const EventId>,
                                                             std::span<const AttributionNumber>)>
      find_events{};
  /// Whether `reporter` may correct events of `agent` that somebody else reported. None: nobody may.
  std::function<Result<>(const Context&, std::string_view reporter, std::string_view agent)> may_correct{};
  /// Writes down who corrects what, before it is taken; where that fails, nothing is.
  std::function<Result<>(const Context&, std::string_view reporter, std::span<const RecordView* const>)>
      record_corrections{};
};

/// The way of an event: read, checked, attributed, made durable, counted. Thread-safe; all references must outlive it.
class Intake {
 public:
  Intake(Ledger& ledger, Limits& limits, Attributor& attributor, const Clock& clock, IntakeOptions options);
  ~Intake();

  struct Batch {
    std::span<const BytesView> records;    ///< as received
    std::string_view reporter;             ///< who vouches for them
    const Signature* signature = nullptr;  ///< over their root, verified; null: the reporter was authenticated
    std::span<const Hash256> leaves;       ///< of `records`, in order
  };
  /// A limit that was reached, and by which event.
  struct Reached {
    std::string org;
    Notice notice;
    EventId event;
    Identity agent;
  };
  using Answers = std::vector<Result<Ingested>>;

  /// One answer per record, in order. What the plan that it is billed by cannot reckon with is refused: who reports it
  /// can mend it. Errors: those of Ledger::append; then nothing was taken.
  Result<Answers> take(const Context& ctx, const Batch& batch, std::vector<Reached>& reached);
  /// Likewise of events in envelopes, whose signatures were verified. The caller reports them. What a plan cannot
  /// reckon with is taken, too: nobody would be left to mend what a gateway saw, and quotas have to count it.
  Result<Answers> take(const Context& ctx, std::span<const Result<UsageEvent>> events, std::vector<Reached>& reached);

  using Accounts = std::array<AccountNumber, accounts_per_use_max>;
  /// Counts events of the log again: many at once, which is much faster than one by one. Not thread-safe.
  class Recount {
   public:
    explicit Recount(Intake& intake) : intake_(intake) {}
    void add(const StoredEvent& event, std::vector<Reached>& reached);
    void finish(std::vector<Reached>& reached);  ///< counts those that wait

   private:
    static constexpr std::size_t batch = 512;
    static constexpr std::size_t forgotten_after = 100'000;
    struct Event {
      EventId id;
      AttributionNumber attribution;
      bool held;  ///< an action that the gateway held
    };
    Intake& intake_;
    Instant arrived_{};
    std::vector<Accounts> accounts_ = std::vector<Accounts>(batch);
    std::deque<std::vector<AccountNumber>> with_session_;
    std::vector<Fact> facts_;
    std::vector<Event> events_;
    std::size_t since_forgotten_ = 0;  ///< batches since sessions that are over were forgotten
  };

  /// How many limits were reached that nobody was told of yet: the counters know them as told already, so as long as
  /// there are any, a checkpoint would lose them in a crash. Who tells one says so.
  std::size_t untold() const { return untold_; }
  void told() { --untold_; }

  /// Whom a use of `agent` would count for if it happened now, but for itself; root first. None: it has to be asked
  /// for.
  std::optional<DelegationChain> known_ancestors(const Context& ctx, const Identity& agent) const;
  /// Likewise, from who can tell. Errors: those of Attributor::attribute.
  Result<DelegationChain> ask_ancestors(const Context& ctx, const Identity& agent);

  /// Whether it is the last use of the session that its sandbox was. An agent's own word does not begin that anew.
  bool ends_session(const RecordView& record, SubjectNumber reporter) const;

  /// What counts against limits of money in that currency.
  NanoMoney cost_of(const RecordView& record, std::string_view currency) const;
  NanoMoney cost_of(const RecordView& record) const { return cost_of(record, options_.currency.code()); }

 private:
  struct Work;
  class Borrowed;
  Result<> check(const RecordView& record, Instant now) const;
  Result<> price(const Context& ctx, Work& work, NewEvent& event) const;
  void attribute(const Context& ctx, Work& work, Instant now);
  Result<> refuse_unbillable(Work& work);
  std::uint32_t number_of(const std::shared_ptr<const BillingNeeds>& needs);
  void refuse_others(const Context& ctx, Work& work, std::string_view reporter);
  DelegationChain ancestors_of(AttributionNumber attribution) const;
  Result<KnownAgent> ask(const Context& ctx, std::string_view agent, const KeyHash& hash, Instant when, Instant now);
  /// Those that an event counts for: the first ones of `room`.
  std::span<const AccountNumber> accounts_of(AttributionNumber attribution, Accounts& room);
  AccountNumber account_of(SubjectNumber subject);
  Result<> find_targets(const Context& ctx, Work& work);
  Result<> admit_corrections(const Context& ctx, Work& work, std::string_view reporter);
  Result<Answers> append(const Context& ctx, Work& work, const BatchProof* proof, std::vector<Reached>& reached);
  /// The accounts of facts that count for a session, too; keep them as long as the facts.
  using WithSession = std::deque<std::vector<AccountNumber>>;
  Fact fact_of(std::string_view org, std::span<const AccountNumber> accounts, const RecordView& record,
               SubjectNumber reporter, WithSession* with_session);
  /// Counts a correction: what it takes out, and itself unless it only does that.
  void correct(AttributionNumber of, BytesView taken_out, Instant counted_at, SubjectNumber reporter, const Fact& in,
               bool voids, Instant arrived, std::vector<Notice>& notices);

  Ledger& ledger_;
  Limits& limits_;
  Attributor& attributor_;
  const Clock& clock_;
  const IntakeOptions options_;

  std::atomic<std::size_t> untold_{0};
  mutable std::shared_mutex known_mutex_;
  KnownAgents known_;
  std::vector<AccountNumber> accounts_;                     ///< by subject; none: not asked for yet
  std::vector<std::shared_ptr<const BillingNeeds>> needs_;  ///< by number, from 1
  std::mutex idle_mutex_;
  std::vector<std::unique_ptr<Work>> idle_;  ///< with memory that the next batch can use
};

/// What aggregation and pricing see of an event.
Properties properties_of(const RecordView& record);

}  // namespace creto::metering
