#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "amounts.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/metering/quota.h"
#include "limits/account.h"

// What every identity and subscription may use, has used, and holds: in memory, the store is its journal.
//
// Accounts have dense numbers that stay the same as long as the process. Of an account, 128 bytes are hot: its lock and
// five counters, each of which points to the terms that it is counted by; terms are shared by all accounts of which the
// same is said. Most have the defaults of their kind ("agent:*") and need nothing of their own.
//
//   AccountNumber a = limits.account(org, "agent:...");        once, to be kept
//   Words w = limits.words_of_fact(org, type, action, properties);
//   limits.add(facts, when, notices, &receipt);                 a batch: no allocation, < 300 ns for five accounts
//   limits.take_back(facts, receipt);                           exactly undoes it
//   limits.begin_copy(bytes);                                   all counters as they are now: takes no time,
//   while (limits.write_copy(bytes)) ...;                       is written in slices while facts go on,
//   limits.load(bytes);                                         and comes back at the next start
//   limits.forget(limits.sessions_over(now), now);              while no fact is added: their memory goes to others
namespace creto::metering {

/// Agent, its ancestors, a session and a subscription.
inline constexpr std::size_t accounts_per_use_max = delegation_chain_max_depth + 3;

/// The session that a use belongs to: what its property `session` says, else its sandbox. Empty: none.
std::string_view session_of(PropertyViews properties);

/// Use that happens or shall happen.
struct Use {
  std::string_view org;
  std::string_view agent;
  std::span<const Identity> chain{};  ///< the agent's ancestors, with or without itself
  std::string_view event_type;
  std::string_view action{};  ///< of an action: its name is counted as a type too
  PropertyViews properties{};
  std::int64_t units = 1;
  NanoMoney cost = 0;           ///< 0: not known; then limits of money refuse it only where nothing is left
  std::string_view currency{};  ///< of the cost; empty: the accounting currency
  bool free = false;            ///< costs nothing for certain: limits of money have nothing to say
  /// None: the one that `bind` tells. Facts say it themselves, since they may be older; empty: nobody is billed.
  std::optional<std::string_view> subscription{};
};

/// Use that happened, of accounts whose numbers are known. What `accounts` spans must outlive the call.
struct Fact {
  std::span<const AccountNumber> accounts;  ///< each once; at most accounts_per_use_max
  Words words;
  std::int64_t units = 1;
  NanoMoney cost = 0;
  std::optional<ReservationId> settles{};       ///< this hold ends in the same step
  AccountNumber session = AccountNumber::none;  ///< which of the accounts is a session's
  bool ends_session = false;                    ///< by this its sandbox has ended
};

/// When each account of a batch counted it: its own clock never goes back.
struct Receipt {
  std::vector<std::int64_t> counted_ns;  ///< in the order of facts and their accounts
};

/// The answer to a request to spend, or to the question whether it would be granted.
struct Verdict {
  enum class Kind : std::uint8_t {
    granted,
    quota_exceeded,      ///< a quota that blocks
    oversight_required,  ///< a quota whose overflow asks a human
    budget_exceeded,     ///< a cost threshold that blocks
    conflict,            ///< the reservation id was used with other content
  };
  Kind kind = Kind::granted;
  bool limited = false;  ///< some quota applies; the rest describes the one that refuses, or has least left
  AccountNumber account = AccountNumber::none;  ///< none: a default, of an account that used nothing yet
  std::uint32_t position = 0;                   ///< of the counter
  std::uint32_t terms = 0;
  std::int64_t limit = 0;  ///< units or requests; NanoMoney where money is counted
  std::int64_t used = 0;   ///< with what is held
  std::optional<Instant> reset_at{};
};

/// What a verdict is about, in words.
struct Told {
  std::string id;       ///< of the quota or threshold; empty where it is gone
  std::string subject;  ///< empty: an account that used nothing yet
  std::string event_type;
  Measure measure = Measure::units;
  WindowKind window = WindowKind::lifetime;
  std::string currency{};  ///< of money; empty: the accounting currency, here as in the next two
};

/// A soft limit, hard limit or cost threshold that recorded use has reached, or an agent's hour that became unusual.
struct Notice {
  enum class Kind : std::uint8_t { soft, hard, cost, anomaly };
  Kind kind;
  std::string id;  ///< of the quota or threshold; "anomaly"
  std::string subject;
  std::int64_t used;  ///< in the measure
  std::int64_t limit;
  Instant window_begin;    ///< a notice is given once per window
  std::string period;      ///< "month", "transaction", ...
  std::string event_type;  ///< of the quota
  Measure measure = Measure::units;
  std::string currency{};
  contracts::ThresholdAction action = contracts::ThresholdAction::notify_only;
  std::vector<std::string> approvers;
  std::size_t fact = 0;   ///< of the batch, which reached it
  double expected = 0;    ///< of an anomaly: NanoMoney that hour usually costs, ...
  double confidence = 0;  ///< ... and how sure it is that this is none of the usual
};

/// A cost threshold that a use would exceed.
struct CostFinding {
  std::string id;
  std::string subject;
  contracts::BillingPeriod period;
  NanoMoney with_use;  ///< accumulated, with the use in question
  NanoMoney limit;
  std::string currency{};
  contracts::ThresholdAction action;
  std::vector<std::string> approvers;
  struct Anomaly {
    double expected_per_hour;  ///< in units of the currency
    double actual_per_hour;
    double confidence;
  };
  std::optional<Anomaly> anomaly;  ///< then `id` is "anomaly"
};

struct CostTotals {
  NanoMoney total = 0;
  std::vector<std::pair<std::string, NanoMoney>> by_event_type;
};

/// Counts and limits.
///
/// Invariant 1: used + held of a quota that blocks never passes its limit by a reservation, from however many threads.
/// Invariant 2: a reservation is held by all windows it touches or by none.
/// Invariant 3: facts are added whatever the limits say.
///
/// A session is over after 30 days without use, its sandbox's an hour after that has ended; a use of its name after
/// that begins another one, from nothing. Its memory goes back by `forget`.
///
/// Checks that grant take no lock and do not allocate, but for the one, shared, that keeps a session where it is.
/// Reservations lock the accounts they touch in the order of their numbers, facts one account after the other. Time is
/// passed in and never opens an older window of an account again. Thread-safe.
class Limits {
 public:
  /// `accounting`: the currency of costs and of quotas where nothing else is said.
  explicit Limits(AnomalyRules anomalies = {}, Currency accounting = Currency::usd());
  Limits(Limits&&) noexcept;
  Limits& operator=(Limits&&) noexcept;
  ~Limits();

  // --- what is allowed
  /// Replaces the quota of that id; its use so far stays where subject and what is counted are the same. A quota of one
  /// subject that begins to count does so from `seeds`, the use of the present window so far. Errors:
  /// resource_exhausted over 256 quotas of one subject, 64 for each of a kind, 8 properties of one organization, or 4
  /// 096 event types.
  struct Seed {
    Instant when;
    std::int64_t amount;  ///< in the quota's measure
  };
  Result<> put_quota(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds = {});
  /// Likewise, of one subject; whatever it has counted, it begins from `seeds`: for those that `load` calls younger.
  Result<> put_quota_anew(std::string_view org, const Quota& quota, Instant now, std::span<const Seed> seeds);
  void remove_quota(std::string_view org, const Quota& quota);
  /// Likewise a cost threshold. One of which every account knows the sum (`Terms::cost_window`) begins with that, and
  /// needs no seeds.
  Result<> put_threshold(std::string_view org, const SubjectThreshold& threshold, Instant now,
                         std::span<const Seed> seeds = {});
  Result<> put_threshold_anew(std::string_view org, const SubjectThreshold& threshold, Instant now,
                              std::span<const Seed> seeds);
  void remove_threshold(std::string_view org, const SubjectThreshold& threshold);
  /// Usage of `agent`, and of those below it that are not bound themselves, also counts for `subscription`; empty
  /// unbinds.
  void bind(std::string_view org, std::string_view agent, std::string_view subscription);
  /// The subscription that usage of `agent` is billed to: its own, else its nearest ancestor's. Empty where there is
  /// none.
  std::string subscription_of(std::string_view org, std::string_view agent, std::span<const Identity> chain) const;

  // --- requests to spend
  /// Whether a reservation of `use` would be granted, and what is left. Holds nothing.
  Verdict check(const Use& use, Instant now);
  /// The same without saying what is left: does not wait for facts that other processors count, as long as a quarter of
  /// every limit is left.
  bool allows(const Use& use, Instant now);
  /// The first limit of money that could refuse `use` and does not see what it costs: of one that says no cost, each in
  /// the accounting currency; of one that costs another currency, every quota and every threshold beside which its
  /// subject has none of the same window that asks or blocks in that currency and counts such a use.
  std::optional<Told> blind_limit(const Use& use, Instant now);
  /// Holds `use` until `expires_at`. The same id with the same use is granted again.
  Verdict reserve(const ReservationId& id, const Use& use, Instant now, Instant expires_at);
  /// False where there is no such hold (any more).
  bool release(const ReservationId& id);
  /// Whose it is. None where the organization has no such hold (any more).
  std::optional<std::string> holder_of(std::string_view org, const ReservationId& id);
  /// Ends holds whose time is over; returns how many.
  std::size_t expire(Instant now);
  Told tell(const Verdict& verdict) const;

  // --- facts in bulk
  /// The number of that identity or subscription, from now on.
  AccountNumber account(std::string_view org, std::string_view subject);
  /// Whether anything was ever said of the organization's sessions: then a use counts for its session, too.
  bool limits_sessions(std::string_view org) const;
  /// Good as long as `forget` does not run.
  AccountNumber session_account(std::string_view org, std::string_view session);
  /// Good until the next `put_quota`.
  Words words_of_fact(std::string_view org, std::string_view event_type, std::string_view action = {},
                      PropertyViews properties = {}, std::string_view currency = {});
  /// Counts facts that happened at `when`. Allocates only for notices, new types of cost, and a receipt that grows.
  /// Between this and `take_back` there must be no `put_quota` or `put_threshold`.
  void add(std::span<const Fact> facts, Instant when, std::vector<Notice>& notices, Receipt* receipt = nullptr);
  /// Puts `in`, where there is one, in the place of `out`, which was counted at `counted_at`: windows that still hold
  /// that time count the one instead of the other.
  void correct(const Fact& out, const Fact* in, Instant counted_at, Instant now, std::vector<Notice>& notices);
  /// How long a session lasts that was used before any were counted here. Where it was counted, that is known better.
  void know_session(std::string_view org, std::string_view subject, const SessionLife& life);
  /// Sessions that may be forgotten at `now`.
  std::vector<AccountNumber> sessions_over(Instant now);
  /// Forgets those that still may be: their numbers and memory are for the next ones. Requires: no fact is being added
  /// at this moment.
  void forget(std::span<const AccountNumber> sessions, Instant now);
  /// Those that are counted: organization and name, as a subject.
  std::vector<std::pair<std::string, std::string>> sessions() const;
  /// Undoes `add` of the same facts. Holds that were settled do not come back.
  void take_back(std::span<const Fact> facts, const Receipt& receipt);

  /// One fact, by name.
  void add(const Use& use, Instant when, std::optional<ReservationId> settles, std::vector<Notice>& notices);

  /// What counts against a threshold on its subject, or of a default on `subject`. None where it is not in force.
  std::optional<NanoMoney> used_of(std::string_view org, const SubjectThreshold& threshold, Instant now,
                                   std::string_view subject = {});

  // --- cost
  /// The first threshold of agent, subscription or ancestor that `use` would exceed: transaction limits and those of
  /// `period`. Takes no lock and does not allocate where there is none, but for an
  /// agent whose last hour has to be learnt from.
  std::optional<CostFinding> check_cost(const Use& use, contracts::BillingPeriod period, Instant now);
  /// The first threshold of `period` or of single transactions, of those that ask or block, that does not see what
  /// `use` costs: see `blind_limit`.
  std::optional<CostFinding> blind_threshold(const Use& use, contracts::BillingPeriod period, Instant now);
  /// Accumulated cost of the agent in the period's window around `now`, with what is held, and `use` added.
  NanoMoney cost_with(const Use& use, contracts::BillingPeriod period, Instant now);
  /// None where the subject has never been seen.
  std::optional<CostTotals> costs(std::string_view org, std::string_view subject, contracts::BillingPeriod period,
                                  Instant now);

  /// What the subject will have cost at the end of the period around `now`, by its rhythm so far. None where it has
  /// never been seen, or of a period that does not end.
  std::optional<Forecast> forecast(std::string_view org, std::string_view subject, contracts::BillingPeriod period,
                                   Instant now);

  /// Of `quota` on its subject, or of a default on `subject`. None where it is not in force.
  std::optional<QuotaState> state(std::string_view org, const Quota& quota, Instant now, std::string_view subject = {});
  // --- copies, for a start that need not count everything again
  /// Begins a copy of all counters as they are now, but for what is held; one at a time. Requires: no fact is being
  /// added at this moment. Accounts that change before they are written are kept as they were.
  void begin_copy(Bytes& out);
  /// Appends the next few thousand accounts; false once the copy is complete. From one thread.
  bool write_copy(Bytes& out);
  /// Takes a copy, once the quotas and thresholds in force have been put and before any fact is added. Returns those of
  /// one subject that are younger than the copy: put them anew with seeds. Errors: invalid_input where it is no copy;
  /// then the counters are not to be used.
  struct Younger {
    Terms::Family family;
    std::string org;
    std::string id;
  };
  Result<std::vector<Younger>> load(BytesView copy);

  std::size_t accounts() const;
  std::size_t holds() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace creto::metering
