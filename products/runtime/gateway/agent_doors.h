#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <variant>

#include "actions.h"
#include "backlog.h"
#include "creto/authz/authz.h"
#include "creto/inference/inference.h"
#include "creto/io/http_client.h"
#include "creto/io/http_server.h"
#include "events.h"
#include "gateway/message_bell.h"
#include "store.h"
#include "tasks.h"

namespace creto::runtime {

/// Who asks from inside a sandbox; known from the socket, not from what is said.
struct Resident {
  std::string org;
  SandboxId sandbox;
  Identity agent;
  DelegationChain chain;
};

/// Asks a human where a decision says so. Shared by spawn and actions.
class Approvals {
 public:
  Approvals(RuntimeServices& services, Events& events) : services_(services), events_(events) {}

  /// Whether `request` may go on. A status: it waits for a human (or a human has already said no). An error: it is
  /// refused; refusals are audited.
  Result<std::optional<contracts::ApprovalStatus>> require(const Context& ctx, const authz::CheckRequest& request,
                                                           const std::optional<SandboxId>& sandbox,
                                                           const std::string& arguments, const std::string& description,
                                                           const std::string& reasoning,
                                                           const std::optional<Money>& cost);
  /// Asks a human, in the runtime's own name. Errors: oversight_required where nobody can be asked.
  Result<contracts::ApprovalStatus> ask(const Context& ctx, const authz::CheckRequest& request,
                                        const std::optional<SandboxId>& sandbox, const std::string& arguments,
                                        const std::string& description, const std::string& reasoning,
                                        std::vector<contracts::ApprovalNeed> needs, std::vector<std::string> risks);

 private:
  Error refused(const Context& ctx, const authz::CheckRequest& request, Error error);

  RuntimeServices& services_;
  Events& events_;
};

/// An action's outcome: the upstream's answer, or the request a human has to answer first.
struct ActionOutcome {
  int status = 200;
  std::string result;  ///< JSON
  std::optional<contracts::ApprovalStatus> approval;
};

/// Everything an agent reaches from inside its sandbox except raw egress. Thread-safe.
///
/// An action is: checked, held against limits, approved, recorded as begun (with the approval's token used up in the
/// same transaction), made upstream under the operation's id, recorded as done with its event and audit record. What
/// was begun when the process died is made again under the same id, so an upstream that honours the id sees it once.
class AgentDoors {
 public:
  AgentDoors(RuntimeServices& services, Events& events, Approvals& approvals, Tasks& tasks, Backlog& backlog,
             std::map<std::string, ActionDeclaration> actions);

  /// Errors: not_found; permission_denied; quota_exceeded; conflict (key used with other content); unavailable (the
  /// upstream did not answer: repeat with the same key).
  Result<ActionOutcome> act(const Context& ctx, const Resident& resident, const std::string& action,
                            const Json& arguments, const std::string& reasoning, const std::string& override_token);
  /// OpenAI's request and response JSON. The model is called once per idempotency key and answer. Where a human has to
  /// approve the call, his token is for this very request, and is used up when the call begins; a call that got no
  /// answer may be repeated under its key with it. Errors: conflict (key used with other content); unavailable
  /// (retryable) while a call with the same key is under way.
  Result<ActionOutcome> complete(const Context& ctx, const Resident& resident, const Json& request,
                                 const std::string& override_token);

  Result<std::string> remember(const Context& ctx, const Resident& resident, const Json& request);
  /// Where a human has to approve it, the sealed message is kept until it is sent with his token or its time to live is
  /// over; so the same text asks once. Errors: as of messaging; conflict (key used with other content);
  /// resource_exhausted where 64 of the agent's wait.
  Result<ActionOutcome> send(const Context& ctx, const Resident& resident, const Json& request,
                             const std::string& override_token);
  Result<Json> receive(const Context& ctx, const Resident& resident);
  /// Taken before looking with `receive`; see `when_message`.
  std::uint64_t messages_seen() const;
  /// Calls `look` once, as one of the tasks, when a message was queued since `seen`; after a second in any case.
  void when_message(std::uint64_t seen, std::function<void()> look);
  Result<> acknowledge(const Context& ctx, const Resident& resident, const MessageId& message);
  Result<std::string> subscribe(const Context& ctx, const Resident& resident, const std::string& topic);

  /// Makes again, in the background, what an earlier process had begun.
  Result<> resume();

 private:
  Result<ActionOutcome> perform(const Context& ctx, OperationRecord operation, const ActionDeclaration& action,
                                const CheckedArguments& checked);
  void resume_one(OperationRecord operation, Nanos delay);
  Result<ActionOutcome> call_model(const Context& ctx, const Resident& resident,
                                   const inference::CompletionRequest& request, const std::string& hash,
                                   const std::string& override_token);
  /// The hold that was made for an operation is over without use.
  void release(const Context& ctx, const OperationRecord& operation);
  struct Letter;
  Result<ActionOutcome> seal_and_send(const Context& ctx, const Resident& resident, const Letter& letter,
                                      const std::string& override_token);
  Result<contracts::SealedMessage> seal(const Context& ctx, const Resident& resident, const Letter& letter);
  Result<ActionOutcome> ask_to_send(const Context& ctx, const Resident& resident, const Letter& letter,
                                    const contracts::SealedMessage& sealed, const std::string& override_token);

  RuntimeServices& services_;
  Events& events_;
  Approvals& approvals_;
  Tasks& tasks_;
  Backlog& backlog_;
  const std::map<std::string, ActionDeclaration> actions_;
  std::shared_ptr<http::Client> client_;
  MessageBell bell_;
  std::mutex mutex_;
  std::set<std::string> calls_;  ///< of models, by agent and key, while they are under way
};

/// What the HTTP doors of one sandbox need.
struct GatewayHooks {
  std::function<Context()> context;  ///< of the agent, deadline included
  std::function<Result<SpawnResult>(const Context&, SandboxSpec)> spawn_child;
  std::function<Result<Sandbox>(const Context&, const SandboxId&)> child;  ///< only its own
  std::function<Result<Sandbox>(const Context&, const SandboxId&)> end_child;
};

/// The routes of docs/formats.md, "In-sandbox gateway".
http::AsyncHandler gateway_handler(Resident resident, AgentDoors& doors, RuntimeServices& services, Tasks& tasks,
                                   GatewayHooks hooks);

}  // namespace creto::runtime
