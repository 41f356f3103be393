#pragma once

#include <algorithm>
#include <array>
#include <mutex>
#include <shared_mutex>
#include <span>

#include "creto/common/assert.h"
#include "limits/account.h"
#include "limits/account_names.h"
#include "limits/counters.h"
#include "limits/holds.h"
#include "limits/terms.h"

namespace creto::metering {

inline std::int64_t ns_of(Instant now) { return std::clamp<std::int64_t>(unix_ns(now), 0, latest_ns); }

/// Used and held, as far as the terms see them.
inline std::int64_t taken(const Account& account, const Account::Counter& counter, const Terms& terms,
                          std::int64_t ns) {
  if (terms->window == WindowKind::transaction) return 0;
  return add_saturating(account.used_in(counter, terms, ns), counter.held.get());
}

/// Of the accumulated costs; none of a single transaction.
inline std::optional<std::size_t> cost_window_of(contracts::BillingPeriod period) {
  switch (period) {
    case contracts::BillingPeriod::transaction:
      return std::nullopt;
    case contracts::BillingPeriod::hour:
      return 0;
    case contracts::BillingPeriod::day:
      return 1;
    case contracts::BillingPeriod::month:
      return 2;
    case contracts::BillingPeriod::lifetime:
      return 3;
  }
  return std::nullopt;
}

/// Passed by many at once, or by one alone, for whom all that come after it wait: it does not starve however many pass.
class Gate {
 public:
  void lock() {
    closed_.store(true, std::memory_order_release);
    mutex_.lock();
  }
  void unlock() {
    mutex_.unlock();
    closed_.store(false, std::memory_order_release);
    closed_.notify_all();
  }
  void lock_shared() {
    closed_.wait(true, std::memory_order_acquire);
    mutex_.lock_shared();
  }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::atomic<bool> closed_{false};
  std::shared_mutex mutex_;
};

/// The accounts a use counts for, most specific first, and the words it counts under.
struct Targets {
  OrgNumber org = OrgNumber::none;
  std::array<AccountNumber, accounts_per_use_max> accounts{};
  std::size_t count = 0;
  bool agent_known = false;  ///< then it is the first
  AccountNumber session = AccountNumber::none;
  std::shared_lock<Gate> sessions{};         ///< while there is one: it stays that session's
  std::array<bool, subject_kinds> unseen{};  ///< kinds of those that have no account yet
  Words words{};

  std::span<const AccountNumber> span() const { return {accounts.data(), count}; }
  void push(AccountNumber account) {
    if (account == AccountNumber::none || std::ranges::find(span(), account) != span().end()) return;
    CRETO_ASSERT(count < accounts.size());
    accounts[count++] = account;
  }
};

/// A copy that is being made. It lives as long as the limits, so that nobody who still looks at it finds it gone.
struct CopyInProgress {
  std::atomic<bool> active{false};
  std::uint32_t last = 0;          ///< account when it began
  std::uint32_t next = 1;          ///< account to be written
  std::vector<std::uint8_t> done;  ///< by account, under its lock
  std::mutex mutex;
  Bytes kept;  ///< accounts that changed before their turn
};

struct Limits::Impl {
  explicit Impl(Currency accounting) : books(std::move(accounting)) {}

  AccountNames names;
  Books books;
  Chunks<Account, 1 << 14> accounts;
  Holds holds;
  CopyInProgress copy;
  std::mutex rules_mutex;  ///< one change of quotas at a time
  /// Held shared by who looks up a session, but for facts; alone, under `rules_mutex`, by who forgets sessions.
  mutable Gate sessions_gate;

  Account& at(AccountNumber number) const { return accounts[static_cast<std::uint32_t>(number)]; }
  AccountNumber find(std::string_view org, std::string_view subject) const;
  AccountNumber obtain(OrgNumber org, std::string_view subject);
  AccountNumber obtain_session(OrgNumber org, std::string_view name);
  void set_up(OrgNumber org, SubjectKind kind, AccountNumber number, bool anew);

  /// Of a question: nothing is made.
  Targets find_targets(const Use& use) const;
  /// Of what shall be counted or held: every account exists afterwards.
  Targets obtain_targets(const Use& use);

  bool grants(AccountNumber number, const Use& use, const Words& words, std::int64_t ns, Verdict& verdict) const;
  /// Whether there is so much room that nothing else has to be looked at.
  bool is_roomy(AccountNumber number, const Use& use, const Words& words) const;
  Verdict check(const Targets& targets, const Use& use, Instant now);
  Verdict judge(const Targets& targets, const Use& use, std::int64_t ns) const;
  /// Finds a limit that `is_candidate` and does not see what the use costs: `found(number, counter, terms)` is called
  /// with the first one, under the lock of its account; with none and null where it is a default of those who have no
  /// account yet.
  template <class IsCandidate, class Found>
  bool find_blind(const Targets& targets, Instant now, IsCandidate is_candidate, Found found);
  void judge_unseen(const Targets& targets, const Use& use, Verdict& granted, std::optional<Verdict>& refused) const;

  /// Counts one fact for one account, `own` if it is the agent's own use; returns when. Requires: its lock, and that it
  /// was brought up.
  std::int64_t count(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost, std::int64_t ns,
                     std::vector<Notice>& notices, std::size_t fact, bool own);
  /// The same of one that counts at `at_ns`, which is not after the account's latest use.
  void count_at(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost, std::int64_t at_ns,
                std::int64_t now, std::vector<Notice>& notices, std::size_t fact, bool own);
  void notice_unusual(AccountNumber number, NanoMoney before, std::int64_t ns, std::vector<Notice>& notices,
                      std::size_t fact);
  void notice(AccountNumber number, const Account::Counter& counter, const Terms& terms, Notice::Kind kind,
              std::int64_t used, std::int64_t ns, std::vector<Notice>& notices, std::size_t fact) const;
  /// Requires: its lock.
  void uncount(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost, std::int64_t counted_ns);
  /// Requires: the lock of `account`.
  void let_go(const Hold& hold, AccountNumber account);
  std::size_t expire(Holds::Shard& shard, std::int64_t now_ns);
  std::size_t expire(Instant now);
  /// Before an account is changed: what it is goes into the copy, if one is being made. Requires: its lock.
  void keep(AccountNumber number) {
    if (copy.active.load(std::memory_order_acquire)) keep_now(number);
  }
  void keep_now(AccountNumber number);
  void write_account(AccountNumber number, Bytes& out);
  void find_younger(AccountNumber number, std::span<const std::uint32_t> found, std::vector<Younger>& younger);
  void prefetch(std::span<const AccountNumber> numbers) const;

  Result<> put_own(AccountNumber number, std::string_view id, std::uint32_t terms_number, std::int64_t ns,
                   std::span<const Seed> seeds, bool anew);
  Result<> put_threshold(std::string_view org, const SubjectThreshold& threshold, Instant now,
                         std::span<const Seed> seeds, bool anew);
  void remove_own(AccountNumber number, Terms::Family family, std::string_view id);
};

}  // namespace creto::metering
