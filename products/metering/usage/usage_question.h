#pragma once

#include <array>
#include <charconv>
#include <compare>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "creto/metering/usage.h"
#include "ledger/column_store.h"
#include "ledger/subjects.h"

/// What the segments of a usage query share: its names as small numbers, and the sums by them.
namespace creto::metering::detail {

using By = UsageGrouping::By;
__extension__ typedef __int128 Int128;
__extension__ typedef unsigned __int128 Wide;

inline constexpr std::uint32_t none = UINT32_MAX;  ///< this row does not count
inline constexpr std::size_t keys_max = UsageQuery::group_by_max;

inline bool is_period(By by) { return by == By::hour || by == By::day || by == By::week || by == By::month; }
inline bool is_whom(By by) {
  return by == By::agent || by == By::owner || by == By::ancestor || by == By::subscription;
}

/// The first moment of the period that `when` lies in.
Instant period_begin(By by, const TimeZone& zone, Instant when);
std::string period_text(By by, const TimeZone& zone, Instant begin);

using Key = std::array<std::uint32_t, keys_max>;

struct GroupKeyHasher {
  std::size_t operator()(const Key& key) const {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    std::memcpy(&low, key.data(), 8);
    std::memcpy(&high, key.data() + 2, 8);
    const Wide product = static_cast<Wide>(low ^ 0x9E3779B97F4A7C15ull) * (high ^ 0xD6E8FEB86659FD93ull);
    const auto hash = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
    return hash * 0x9E3779B97F4A7C15ull >> 16;
  }
};

/// Different keys, numbered in the order in which they came.
class Keys {
 public:
  std::uint32_t number(const Key& key) {
    if ((keys_.size() + 1) * 2 > slots_.size()) grow();
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = GroupKeyHasher()(key) & mask;
    for (; slots_[at] != none; at = (at + 1) & mask) {
      if (keys_[slots_[at]] == key) return slots_[at];
    }
    slots_[at] = static_cast<std::uint32_t>(keys_.size());
    keys_.push_back(key);
    return slots_[at];
  }
  const Key& operator[](std::size_t number) const { return keys_[number]; }
  std::size_t size() const { return keys_.size(); }

 private:
  void grow() {
    slots_.assign(std::max<std::size_t>(1024, slots_.size() * 2), none);
    const std::size_t mask = slots_.size() - 1;
    for (std::uint32_t i = 0; i < keys_.size(); ++i) {
      std::size_t at = GroupKeyHasher()(keys_[i]) & mask;
      while (slots_[at] != none) at = (at + 1) & mask;
      slots_[at] = i;
    }
  }
  std::vector<Key> keys_;
  std::vector<std::uint32_t> slots_;
};

/// What few events have beyond billionths.
struct Fine {
  Decimal units, cost;
  Result<> add(const Decimal& more_units, const Decimal& more_cost) {
    units = CRETO_TRY(Decimal::add(units, more_units));
    cost = CRETO_TRY(Decimal::add(cost, more_cost));
    return {};
  }
};
using Fines = std::unordered_map<std::uint32_t, Fine>;  ///< by group, or by cell

struct Total {
  std::int64_t events = 0;
  Int128 unit_nanos = 0;
  Int128 cost_nanos = 0;
};

struct Groups {
  Keys keys;
  std::vector<Total> totals;
  Fines fines;

  std::uint32_t add(const Key& key, const Total& more) {
    const std::uint32_t group = keys.number(key);
    if (group == totals.size()) totals.emplace_back();
    Total& total = totals[group];
    total.events += more.events;
    total.unit_nanos += more.unit_nanos;
    total.cost_nanos += more.cost_nanos;
    return group;
  }
};

/// Numbers for texts, or for the beginnings of periods, over all segments.
template <class Name, class View>
class Codes {
 public:
  std::uint32_t code(View name) {
    const std::scoped_lock lock(mutex_);
    const auto known = codes_.find(name);
    if (known != codes_.end()) return known->second;
    const auto code = static_cast<std::uint32_t>(by_code_.size());
    by_code_.push_back(&codes_.emplace(Name(name), code).first->first);
    return code;
  }
  /// Requires: nobody calls `code` meanwhile.
  const Name& name(std::uint32_t code) const { return *by_code_[code]; }

 private:
  std::mutex mutex_;
  std::map<Name, std::uint32_t, std::less<>> codes_;
  std::vector<const Name*> by_code_;
};

/// A query with its names looked up. Groupings by whom an event counts for are one part of the key, `whom`: the same
/// attribution gives the same.
class Question {
 public:
  Question(const Subjects& subjects, const TakenOut* taken_out, std::string_view org, const Currency& accounting,
           const UsageQuery& query)
      : subjects_(subjects), taken_out_(taken_out), org_(org), accounting_(accounting), query_(query) {
    for (std::size_t i = 0; i < query.group_by.size(); ++i) {
      const UsageGrouping& grouping = query.group_by[i];
      if (is_whom(grouping.by)) {
        whom_.push_back(i);
      } else {
        parts_.push_back(i);
        if (is_period(grouping.by)) period_ = grouping.by;
      }
    }
  }

  const UsageQuery& query() const { return query_; }
  const Currency& accounting() const { return accounting_; }
  const TakenOut* taken_out() const { return taken_out_; }
  /// The groupings that have a part of their own in a key, after whom.
  const std::vector<std::size_t>& parts() const { return parts_; }
  bool by_whom() const { return !whom_.empty(); }
  std::optional<By> period() const { return period_; }
  /// How often the events must be looked at: once for each ancestor of the longest chain where those are asked for.
  std::size_t passes() const { return passes_; }

  /// Finds out for each attribution whether it counts, and under which whom.
  void begin_pass(std::size_t pass) {
    const Subjects::Mark mark = subjects_.mark();
    const SubjectNumber subject = query_.subject.empty() ? 0 : subjects_.find(org_, query_.subject);
    whom_of_.assign(mark.attributions + std::size_t{1}, none);
    whom_count_ = whom_.size() == 1 ? mark.subjects + std::size_t{1} : 1;
    if (!query_.subject.empty() && subject == 0) return;
    const bool by_ancestor =
        std::ranges::any_of(query_.group_by, [](const UsageGrouping& one) { return one.by == By::ancestor; });
    for (AttributionNumber number = 1; number <= mark.attributions; ++number) {
      const Attribution& attribution = subjects_.attribution(number);
      const bool counts = subject == 0
                              ? subjects_.subject(attribution.agent).org == org_
                              : attribution.agent == subject || attribution.subscription == subject ||
                                    std::ranges::find(attribution.ancestors, subject) != attribution.ancestors.end();
      if (!counts) continue;
      if (by_ancestor) {
        passes_ = std::max(passes_, attribution.ancestors.size());
        if (pass >= attribution.ancestors.size()) continue;
      }
      whom_of_[number] = whom(attribution, pass);
    }
    if (whom_.size() > 1) whom_count_ = whom_keys_.size();
  }
  std::uint32_t whom_of(std::size_t attribution) const { return whom_of_[attribution]; }
  std::size_t whom_count() const { return whom_count_; }

  std::uint32_t text_code(std::string_view text) { return texts_.code(text); }
  std::uint32_t period_code(Instant begin) { return periods_.code(unix_ns(begin)); }

  /// The code of grouping `i` in a group's key.
  std::uint32_t code(const Key& key, std::size_t i) const {
    for (std::size_t j = 0; j < whom_.size(); ++j) {
      if (whom_[j] == i) return whom_.size() == 1 ? key[0] : whom_keys_[key[0]][j];
    }
    const auto part = static_cast<std::size_t>(std::ranges::find(parts_, i) - parts_.begin());
    return key[part + (by_whom() ? 1 : 0)];
  }
  std::string name(std::size_t i, std::uint32_t code) const {
    const By by = query_.group_by[i].by;
    if (is_whom(by)) return code == 0 ? std::string() : std::string(subjects_.subject(code).name);
    return is_period(by) ? period_text(by, query_.zone, from_unix_ns(periods_.name(code))) : texts_.name(code);
  }
  /// What tells a key from others of its grouping, and orders it, also in another query.
  std::string mark(std::size_t i, std::uint32_t code) const {
    return is_period(query_.group_by[i].by) ? std::to_string(periods_.name(code)) : name(i, code);
  }
  std::strong_ordering compare(std::size_t i, std::uint32_t code, const std::string& mark) const {
    if (!is_period(query_.group_by[i].by)) return name(i, code) <=> mark;
    std::int64_t begin = 0;
    std::from_chars(mark.data(), mark.data() + mark.size(), begin);
    return periods_.name(code) <=> begin;
  }
  /// Whether key `a` stands before key `b`, other than by their numbers.
  bool before(std::size_t i, std::uint32_t a, std::uint32_t b) const {
    const By by = query_.group_by[i].by;
    if (is_period(by)) return periods_.name(a) < periods_.name(b);
    if (!is_whom(by)) return texts_.name(a) < texts_.name(b);
    const auto of = [this](std::uint32_t code) {
      return code == 0 ? std::string_view() : subjects_.subject(code).name;
    };
    return of(a) < of(b);
  }

 private:
  std::uint32_t whom(const Attribution& attribution, std::size_t pass) {
    Key key{};
    for (std::size_t j = 0; j < whom_.size(); ++j) {
      switch (query_.group_by[whom_[j]].by) {
        case By::owner:
          key[j] = attribution.ancestors.empty() ? attribution.agent : attribution.ancestors.front();
          break;
        case By::ancestor:
          key[j] = attribution.ancestors[pass];
          break;
        case By::subscription:
          key[j] = attribution.subscription;
          break;
        default:
          key[j] = attribution.agent;
      }
    }
    return whom_.size() == 1 ? key[0] : whom_keys_.number(key);
  }

  const Subjects& subjects_;
  const TakenOut* const taken_out_;
  const std::string_view org_;
  const Currency& accounting_;
  const UsageQuery& query_;
  std::vector<std::size_t> whom_, parts_;
  std::optional<By> period_;
  std::size_t passes_ = 1;
  std::vector<std::uint32_t> whom_of_;  ///< by attribution
  std::size_t whom_count_ = 1;
  Keys whom_keys_;
  Codes<std::string, std::string_view> texts_;
  Codes<std::int64_t, std::int64_t> periods_;
};

}  // namespace creto::metering::detail
