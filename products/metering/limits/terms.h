#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "amounts.h"
#include "creto/common/time_zone.h"
#include "creto/metering/quota.h"
#include "limits/account_names.h"
#include "limits/window.h"
#include "tables/cell.h"
#include "tables/chunks.h"
#include "tables/published_map.h"

namespace creto::metering {

inline constexpr std::size_t watched_properties_max = 8;

/// What a use counts under, as numbers: its type, its action, and those of its properties that a quota of the
/// organization names. Numbers stay the same as long as the process; zero is a word that no quota has.
struct Words {
  std::uint32_t type = 0;
  std::uint32_t action = 0;
  std::uint32_t currency = 0;  ///< of its cost; 0: the accounting currency
  std::array<std::uint32_t, watched_properties_max> properties{};
};
/// Of a cost in a currency of which nothing is said.
inline constexpr std::uint32_t unlimited_currency = UINT32_MAX;
using PropertyViews = std::span<const std::pair<std::string_view, std::string_view>>;

/// Accumulated cost in the accounting currency is told for these windows, all of UTC.
inline constexpr std::array cost_windows{WindowKind::hour, WindowKind::day, WindowKind::month, WindowKind::lifetime};

WindowKind window_of(contracts::BillingPeriod period);

/// What one quota or cost threshold says.
struct Saying {
  enum class Family : std::uint8_t { quota, threshold };

  // What is counted. Sayings about the same have the same `what`.
  std::uint32_t what = 0;
  std::uint32_t type = 0;      ///< 0: any
  std::uint32_t currency = 0;  ///< of the money that is counted, as Words have it
  Measure measure = Measure::units;
  WindowKind window = WindowKind::month;
  Family family = Family::quota;
  // What is said about it.
  Overflow overflow = Overflow::block;
  contracts::ThresholdAction action = contracts::ThresholdAction::notify_only;
  bool each = false;  ///< of every account of a kind: then `id` names it
  std::int64_t limit = 0;
  std::int64_t soft = 0;    ///< use that asks for a notice; INT64_MAX: none
  std::int64_t margin = 0;  ///< an account that has this much left is roomy

  Nanos rolling_length{};
  TimeZone zone{};
  std::vector<std::vector<std::uint32_t>> match{};  ///< one word of each
  std::string counted{};                            ///< `what` in words that a later process understands
  std::string id{};
  std::string event_type{};
  std::string currency_code{};  ///< empty: the accounting currency's
  std::vector<std::string> approvers{};
};

/// A saying, shared by all accounts of which the same is said. Never changes, but for what it remembers of its present
/// window.
class alignas(64) Terms {
 public:
  using Family = Saying::Family;
  explicit Terms(Saying saying) : said_(std::move(saying)) {}

  const Saying* operator->() const { return &said_; }

  bool counts(const Words& words) const {
    if (said_.measure == Measure::cost && said_.currency != words.currency) return false;
    return is_about(words);
  }
  /// Whether it counts such a use, where that costs something in its currency.
  bool is_about(const Words& words) const {
    if (said_.type != 0 && said_.type != words.type && said_.type != words.action) return false;
    return said_.match.empty() || matches(words);
  }
  std::int64_t amount(std::int64_t units, NanoMoney cost) const {
    return said_.measure == Measure::units ? units : said_.measure == Measure::cost ? cost : 1;
  }
  bool calendar() const { return said_.window >= WindowKind::hour && said_.window <= WindowKind::month; }
  /// Of the calendar window around `ns`; for all others a time before any.
  std::int64_t window_begin(std::int64_t ns) const {
    if (!calendar()) return INT64_MIN;
    const std::int64_t begin = begin_.get();
    if (begin <= ns && ns < end_.get() && begin_.get() == begin) return begin;
    return unix_ns(find_window(ns).begin);
  }
  std::int64_t window_end(std::int64_t ns) const { return calendar() ? unix_ns(find_window(ns).end) : INT64_MAX; }
  /// Which accumulated cost of its account it counts, of `cost_windows`; none where it counts something else.
  std::optional<std::size_t> cost_window() const;
  Nanos step() const { return said_.rolling_length / rolling_steps; }

  static constexpr std::int64_t rolling_steps = 60;

 private:
  bool matches(const Words& words) const;
  Period find_window(std::int64_t ns) const;

  /// The newest window that was asked for. A reader that sees the same begin before and after sees its end.
  mutable Cell<std::int64_t> begin_{INT64_MAX};
  mutable Cell<std::int64_t> end_{INT64_MIN};
  const Saying said_;
  mutable std::atomic_flag writing_{};
};

/// All terms there ever were, by number, and the words they use. Reading takes no lock. Thread-safe.
class TermsTable {
 public:
  explicit TermsTable(Currency accounting);

  const Terms& operator[](std::uint32_t number) const { return terms_[number]; }
  std::uint32_t count() const { return count_.load(std::memory_order_acquire); }  ///< numbers are 1 to this
  std::uint32_t what(std::string_view counted) const;                             ///< 0: nothing counts that
  /// Errors: resource_exhausted over 4 096 event types, or 8 properties of an organization; invalid_input where the
  /// time zone is unknown.
  Result<std::uint32_t> of(OrgNumber org, const Quota& quota);
  Result<std::uint32_t> of(OrgNumber org, const SubjectThreshold& threshold);

  /// The defaults for each of a kind: a set of terms that never changes, but may be replaced by another. Every account
  /// follows one; 0 is that of nobody.
  std::span<const std::uint32_t> set(std::uint32_t number) const { return sets_[number].terms; }
  bool replaced(std::uint32_t set) const { return sets_[set].successor.get() != 0; }
  std::uint32_t newest(std::uint32_t set) const;
  std::uint32_t defaults(OrgNumber org, SubjectKind kind) const;  ///< 0: there never were any
  std::uint32_t obtain_defaults(OrgNumber org, SubjectKind kind);
  /// Errors: resource_exhausted over 64 of a kind.
  Result<> put_default(OrgNumber org, SubjectKind kind, std::uint32_t terms);
  void remove_default(OrgNumber org, SubjectKind kind, Terms::Family family, std::string_view id);

  /// For a question: a word that nobody named is 0.
  Words words(OrgNumber org, std::string_view event_type, std::string_view action, PropertyViews properties,
              std::string_view currency) const;
  /// For a fact, whose type gets a number since costs are told by type: 0 once there are 4 096 others.
  Words learn(OrgNumber org, std::string_view event_type, std::string_view action, PropertyViews properties,
              std::string_view currency);
  /// Empty, or that of the accounting currency: 0.
  std::uint32_t currency(std::string_view code) const;
  std::string_view word(std::uint32_t number) const;
  std::size_t word_count() const { return words_.size(); }
  std::uint32_t learn_type(std::string_view event_type);

 private:
  struct Word {
    std::uint64_t hash;
    std::string text;
    std::uint32_t number;  ///< from 1
  };
  struct Set {
    std::vector<std::uint32_t> terms;
    Cell<std::uint32_t> successor{};
  };
  struct OrgTerms {
    std::array<Cell<std::uint32_t>, subject_kinds> defaults{};
    std::array<std::string, watched_properties_max> watched{};
    Cell<std::uint32_t> watched_count{};
  };

  std::uint32_t find_word(std::string_view text) const;
  std::uint32_t obtain_word(std::string_view text);
  OrgTerms* org_terms(OrgNumber org) const;
  OrgTerms& obtain_org_terms(OrgNumber org);
  std::uint32_t put(Saying said, const std::string& saying);
  void replace(Cell<std::uint32_t>& current, std::vector<std::uint32_t> terms);

  const Currency accounting_;
  mutable std::mutex mutex_;
  PublishedMap<Word> words_;
  std::size_t rule_words_ = 0;
  Chunks<Terms, 256> terms_;
  std::atomic<std::uint32_t> count_{0};
  Chunks<Set, 256> sets_;
  Chunks<OrgTerms, 16> orgs_;
  std::atomic<std::uint32_t> org_count_{0};
  std::map<std::string, std::uint32_t, std::less<>> by_content_;
  std::map<std::string, std::uint32_t, std::less<>> whats_;
};

}  // namespace creto::metering
