#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "layout.h"
#include "tables/number_table.h"

namespace creto::metering {

/// An identity or a subscription of one organization. From 1.
using SubjectNumber = std::uint32_t;
/// Whom an event counts for. From 1.
using AttributionNumber = std::uint32_t;

struct Attribution {
  SubjectNumber agent = 0;
  SubjectNumber subscription = 0;          ///< 0: nobody is billed
  std::vector<SubjectNumber> ancestors{};  ///< root first, without the agent
  bool counts_for(SubjectNumber subject) const {
    if (subject == 0) return false;
    return subject == agent || subject == subscription || std::ranges::find(ancestors, subject) != ancestors.end();
  }
  friend bool operator==(const Attribution&, const Attribution&) = default;
};

/// Numbers for names, so that an event holds four bytes instead of a delegation chain. Numbers are given once, are
/// written to the usage log with the first event that needs them, and never change. Thread-safe; what it returns stays
/// where it is.
class Subjects {
 public:
  struct Subject {
    std::string_view org;
    std::string_view name;
  };

  /// The number of a name, given now where it has none.
  SubjectNumber number(std::string_view org, std::string_view name);
  /// 0 where it has none.
  SubjectNumber find(std::string_view org, std::string_view name) const;
  Subject subject(SubjectNumber number) const;
  AttributionNumber number(const Attribution& attribution);
  const Attribution& attribution(AttributionNumber number) const;
  std::string_view org_of(AttributionNumber number) const;

  /// How much has been written. What is beyond it goes into the next block.
  struct Mark {
    SubjectNumber subjects = 0;
    AttributionNumber attributions = 0;
  };
  Mark mark() const;
  /// Definitions beyond `from` up to `until`.
  void write(const Mark& from, const Mark& until, Bytes& out) const;
  /// Takes what `write` wrote, in the order in which it was written; what is known already must be the same. Errors:
  /// hash_mismatch.
  Result<> read(layout::Reader& reader);
  /// Past what `write` wrote: up to where it defines.
  static Mark skip(layout::Reader& reader);

 private:
  SubjectNumber find_unlocked(std::string_view org, std::string_view name, std::uint32_t hash) const;
  SubjectNumber add(std::string_view org, std::string_view name, std::uint32_t hash);
  AttributionNumber add(const Attribution& attribution, std::uint32_t hash);
  std::string_view keep(std::string_view text);

  mutable std::shared_mutex mutex_;
  std::deque<std::string> orgs_;
  std::deque<std::string> texts_;  ///< pieces that names lie in
  std::deque<Subject> subjects_;
  std::deque<Attribution> attributions_;
  std::vector<std::uint32_t> attribution_orgs_;  ///< among `orgs_`: asked for with every event, which is fast if small
  NumberTable subject_table_;
  NumberTable attribution_table_;
};

}  // namespace creto::metering
