#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/common/json.h"
#include "creto/io/files.h"
#include "decisions/decision_segment.h"
#include "snapshot.h"

namespace creto::authz {

/// Which policies decide in a replay: those given, or for none those that were in force.
using ReplayPolicies = std::optional<std::vector<std::shared_ptr<const LoadedPolicy>>>;

struct ReplayQuery {
  std::filesystem::path log;
  ReplayPolicies policies{};
  std::string folder{};  ///< `policies` are in the place of those of this folder, "<folder>/…"; empty: of all
  std::shared_ptr<const LoadedSchema> schema{};  ///< what does not conform is denied; null: all that was asked does
  std::vector<Entity> entities{};                ///< where the log knows none of that name
  Instant since = Instant::min(), until = Instant::max();
  std::string org{};     ///< empty: all
  unsigned threads = 0;  ///< 0: one for each processor
};

/// Decisions that come out differently in the same way.
struct ReplayGroup {
  std::string was, becomes;  ///< "allow", "deny", "requires_oversight(large-payments)", …
  std::string action, principal_type;
  std::string policy_was, policy_becomes;  ///< the first that determined it; empty where a permit is missing
  std::uint64_t count = 0;
  Json example;  ///< the first of them
};

struct ReplayReport {
  std::uint64_t segments = 0;
  std::uint64_t read = 0;        ///< in the time and the organization asked for
  std::uint64_t replayed = 0;    ///< of these, by policies
  std::uint64_t by_others = 0;   ///< refused for a token, a malformed request or trouble: policies do not change that
  std::uint64_t not_logged = 0;  ///< their context or what was in force is not in the log
  std::uint64_t differ = 0;
  std::uint64_t otherwise_determined = 0;  ///< the same outcome by another policy
  std::vector<ReplayGroup> groups;         ///< most decisions first

  bool same() const { return differ == 0; }
};

/// Errors: those of reading; invalid_input where a segment or a logged policy is malformed.
Result<ReplayReport> replay(io::FileSystem& files, const ReplayQuery& query);

/// What the log of one organization says last: what was in force, and every entity it knows.
struct LoggedState {
  std::string org;
  std::int64_t version = 0;
  std::vector<std::shared_ptr<const LoadedPolicy>> policies;
  std::vector<Entity> entities;
};
/// `org` may be empty where the log has one alone. Errors: not_found; as `replay`.
Result<LoggedState> latest_state(io::FileSystem& files, const std::filesystem::path& log, const std::string& org);

/// Segments of the log that may hold decisions since then.
Result<std::vector<std::filesystem::path>> segments_since(io::FileSystem& files, const std::filesystem::path& log,
                                                          Instant since);

/// A logged decision for programs.
Json decision_json(const SegmentReader& reader, const SegmentReader::Decided& decided,
                   const SegmentReader::Request& request);

}  // namespace creto::authz
