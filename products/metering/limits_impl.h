#pragma once

#include <algorithm>
#include <array>
#include <mutex>
#include <span>

#include "account.h"
#include "account_names.h"
#include "counters.h"
#include "creto/common/assert.h"
#include "holds.h"
#include "terms.h"

namespace creto::metering {

/// The accounts a use counts for, most specific first, and the words it counts under.
struct Targets {
  OrgNumber org = OrgNumber::none;
  std::array<AccountNumber, accounts_per_use_max> accounts{};
  std::size_t count = 0;
  bool agent_known = false;                  ///< then it is the first
  std::array<bool, subject_kinds> unseen{};  ///< kinds of those that have no account yet
  Words words{};

  std::span<const AccountNumber> span() const { return {accounts.data(), count}; }
  void push(AccountNumber account) {
    if (account == AccountNumber::none || std::ranges::find(span(), account) != span().end()) return;
    CRETO_ASSERT(count < accounts.size());
    accounts[count++] = account;
  }
};

struct Limits::Impl {
  AnomalyRules anomalies;
  AccountNames names;
  TermsTable terms;
  Chunks<Account, 1 << 14> accounts;
  Holds holds;
  std::mutex rules_mutex;  ///< one change of quotas at a time

  Account& at(AccountNumber number) const { return accounts[static_cast<std::uint32_t>(number)]; }
  AccountNumber find(std::string_view org, std::string_view subject) const;
  AccountNumber obtain(OrgNumber org, std::string_view subject);

  /// Of a question: nothing is made.
  Targets find_targets(const Use& use) const;
  /// Of what shall be counted or held: every account exists afterwards.
  Targets obtain_targets(const Use& use);

  /// Before an account's counters are judged or changed. Requires: its lock.
  void bring_up(Account& account, std::int64_t ns) const;

  bool grants(AccountNumber number, const Use& use, const Words& words, std::int64_t ns, Verdict& verdict) const;
  Verdict judge(const Targets& targets, const Use& use, std::int64_t ns) const;
  void judge_unseen(const Targets& targets, const Use& use, Verdict& granted, std::optional<Verdict>& refused) const;

  /// Counts one fact for one account; returns when. Requires: its lock, and that it was brought up.
  std::int64_t count(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost, std::int64_t ns,
                     std::vector<Notice>& notices, std::size_t fact) const;
  void notice(AccountNumber number, const Account::Counter& counter, const Terms& terms, Notice::Kind kind,
              std::int64_t used, std::int64_t ns, std::vector<Notice>& notices, std::size_t fact) const;
  void uncount(AccountNumber number, const Words& words, std::int64_t units, NanoMoney cost,
               std::int64_t counted_ns) const;
  /// Requires: the lock of `account`.
  void let_go(const Hold& hold, AccountNumber account) const;
  std::size_t expire(Holds::Shard& shard, std::int64_t now_ns) const;
  void prefetch(std::span<const AccountNumber> numbers) const;

  Result<> put_own(AccountNumber number, std::string_view id, std::uint32_t terms_number, std::int64_t ns,
                   std::span<const Seed> seeds);
  void remove_own(AccountNumber number, Terms::Family family, std::string_view id);
};

}  // namespace creto::metering
