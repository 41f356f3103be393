#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "creto/authz/policy_tools.h"
#include "creto/common/time.h"

/// Work on the decision log as files, without a server: what `creto authz replay` and its neighbours do. Reads a log
/// that a server is writing too. Each call returns what to print, as in policy_tools.h.
namespace creto::authz {

struct DecisionFilter {
  std::filesystem::path log;  ///< the folder
  std::string org{};          ///< empty: all
  Instant since = Instant::min(), until = Instant::max();
};

/// Runs the logged decisions against other policies and tells which would differ, in groups: from which outcome to
/// which, for which action and type of principal, by which policy. `exit_code` 0: none differs, 1: some do, 2: the
/// policies have errors.
///
/// Without policies, against those that were in force: then a difference means that this program decides otherwise than
/// the one that logged. With `changed.folder` they stand in the place of the policies of that folder, and all others
/// are as they were. With a schema, requests that do not fit it are denied. Entities are those that were logged;
/// `changed.entities` adds what the log does not know. What an extension (a quota) or a rate refused stays refused
/// unless the policies are stricter still; what was refused for its token, its form or trouble is counted apart.
Result<ToolResult> replay_decisions(const DecisionFilter& filter, const PolicyFiles& changed);

/// One request under the policies in force and under `changed`: both decisions, and of each policy that the outcome
/// hangs on why it applies or not. In force is what the log of `filter` says last, or, where `current` names some,
/// those. With `changed.folder` they stand in the place of the policies of that folder. `exit_code` 0: the same
/// outcome, 1: another, 2: the policies have errors. Where the context has no `delegation`, the principal acts for
/// itself.
Result<ToolResult> what_if(const DecisionFilter& filter, const std::vector<std::filesystem::path>& current,
                           const PolicyFiles& changed, const PolicyQuestion& question);

/// The newest `limit` decisions that `filter` lets pass, oldest first.
Result<ToolResult> list_decisions(const DecisionFilter& filter, std::size_t limit);

/// That each segment is the one whose hash the audit log has, and that none is missing but those it says were purged.
/// `exit_code` 1 where not. `tiles` and `key_file` as for `creto audit verify`, which this includes.
Result<ToolResult> verify_decisions(const std::filesystem::path& log, const std::filesystem::path& tiles,
                                    const std::string& key_file);

}  // namespace creto::authz
