#pragma once

#include <optional>
#include <string>
#include <vector>

#include "creto/io/sql.h"
#include "creto/runtime/runtime.h"
#include "driver/sandbox_driver.h"

namespace creto::runtime {

/// How a sandbox ends, written down before it is taken down: afterwards nobody could tell.
struct SandboxEnding {
  TerminationReason reason;
  std::string detail;
  std::optional<int> exit_code;
  SandboxUsage usage;
};

/// A sandbox as it is stored: what callers see, and what a later process needs to take it over or clean up after it.
struct SandboxRecord {
  std::string org;
  Sandbox sandbox;
  std::map<std::string, std::string> environment;
  std::string working_directory;
  std::vector<EgressRule> egress;
  SandboxProcess process;
  std::uint32_t network_slot = 0;
  std::string secret_delegation;  ///< of the vault; empty: none
  std::optional<SandboxEnding> ending = {};
  std::optional<Identity> creator = {};  ///< who asked for it; none: nobody wrote it down
};

/// Something an agent asked for that must happen once: an action upstream, an inference call.
struct OperationRecord {
  std::string org;
  std::string id;  ///< "act-…": also the upstream's idempotency key
  Identity agent;
  SandboxId sandbox;
  std::string kind;       ///< "action" or "inference"
  std::string key;        ///< the agent's own; empty: none was given
  std::string name;       ///< of the action or model
  std::string arguments;  ///< canonical JSON
  std::string reasoning;  ///< of an action; of a call of a model the hash of the token that approved it
  bool done = false;
  int status = 0;      ///< HTTP status that the agent got, once done
  std::string result;  ///< JSON, once done
};

/// A sealed message that waits for a human's approval: he approves these very bytes, and sealed anew it would be
/// others.
struct WaitingMessage {
  std::string org;
  Identity agent;
  std::string content;  ///< which text it is, and to whom, as a hash
  contracts::SealedMessage message;
};

/// Tables of the runtime, in both databases. Every function runs in the caller's transaction.
class RuntimeStore {
 public:
  static Result<> migrate(sql::Database& database);

  static Result<> insert(sql::Tx& tx, const SandboxRecord& record);
  static Result<> update(sql::Tx& tx, const SandboxRecord& record);
  static Result<std::optional<SandboxRecord>> find(sql::Tx& tx, const std::string& org, const SandboxId& id);
  static Result<std::vector<SandboxRecord>> list(sql::Tx& tx, const std::string& org, const SandboxFilter& filter);
  /// Of every organization.
  static Result<std::vector<SandboxRecord>> not_terminated(sql::Tx& tx);

  static Result<> insert(sql::Tx& tx, const OperationRecord& record, Instant now);
  static Result<> update(sql::Tx& tx, const OperationRecord& record);
  /// Unless it is done.
  static Result<> remove(sql::Tx& tx, const OperationRecord& record);
  static Result<std::optional<OperationRecord>> find_operation(sql::Tx& tx, const std::string& org,
                                                               const Identity& agent, std::string_view kind,
                                                               const std::string& key);
  static Result<std::vector<OperationRecord>> unfinished(sql::Tx& tx, std::string_view kind);

  /// Errors: already_exists where one of that content is there.
  static Result<> insert(sql::Tx& tx, const WaitingMessage& waiting);
  /// Unless its time to live is over at `now`.
  static Result<std::optional<contracts::SealedMessage>> find_waiting(sql::Tx& tx, const std::string& org,
                                                                      const Identity& agent, const std::string& content,
                                                                      Instant now);
  static Result<std::int64_t> count_waiting(sql::Tx& tx, const std::string& org, const Identity& agent);
  static Result<> remove_waiting(sql::Tx& tx, const std::string& org, const Identity& agent,
                                 const std::string& content);
  /// Whose time to live is over, of every organization.
  static Result<> forget_waiting(sql::Tx& tx, Instant now);
};

}  // namespace creto::runtime
