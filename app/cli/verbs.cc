#include "cli/verbs.h"

namespace creto::app::cli {
namespace {

using enum Parameter::Kind;

const std::vector<Verb> table = {
    {"agents list", "the identities of this organization", "creto.nhi.v1.NhiService/ListAgents",
     {{"--owner", "owner", "identity"}, {"--name", "name", "exactly this name"}, {"--limit", "page.size", "", number}},
     {"name", "identity", "status", "owner"}},
    {"agents show", "one identity", "creto.nhi.v1.NhiService/GetAgent", {{"AGENT", "identity", "identity or name", text, true}}, {}},
    {"agents chain", "on whose behalf it acts", "creto.nhi.v1.NhiService/GetDelegationChain",
     {{"AGENT", "identity", "identity", text, true}}, {"id", "delegator", "delegatee", "expires_at", "permissions"}},
    {"agents revoke", "end an identity for good", "creto.nhi.v1.NhiService/RevokeAgent",
     {{"AGENT", "identity", "identity", text, true}, {"--reason", "reason", ""}}, {}},
    {"agents keys", "public keys", "creto.nhi.v1.NhiService/GetPublicKeys", {{"AGENT", "identity", "identity", text, true}}, {}},
    {"agents token", "a bearer token for an agent", "creto.nhi.v1.NhiService/IssueToken",
     {{"AGENT", "identity", "identity", text, true}, {"--valid-for", "valid_for", "at most 24h", duration}}, {}},
    {"delegations revoke", "end a delegation and all below it", "creto.nhi.v1.NhiService/RevokeDelegation",
     {{"ID", "id", "", text, true}}, {}},

    {"secrets create", "keep a secret; its value comes from a file or standard input", "creto.vault.v1.VaultService/CreateSecret",
     {{"REF", "reference", "PATH/NAME", reference, true}, {"--from", "value", "file with the value, or -", secret, true},
      {"--type", "metadata.type", "SECRET_TYPE_TOKEN, …"}, {"--description", "metadata.description", ""},
      {"--label", "metadata.labels", "KEY=VALUE", pair}, {"--expires-at", "expires_at", "", instant}}, {}},
    {"secrets update", "a new version of a secret", "creto.vault.v1.VaultService/UpdateSecret",
     {{"REF", "reference", "PATH/NAME", reference, true}, {"--from", "value", "file with the value, or -", secret, true}}, {}},
    {"secrets list", "names and versions, no values", "creto.vault.v1.VaultService/ListSecrets",
     {{"--prefix", "path_prefix", "of the path"}, {"--limit", "limit", "", number}},
     {"reference.path", "reference.name", "version", "owner", "expires_at"}},
    {"secrets delete", "erase every version", "creto.vault.v1.VaultService/DeleteSecret",
     {{"REF", "reference", "PATH/NAME", reference, true}}, {}},
    {"secrets log", "who used a secret", "creto.vault.v1.VaultService/GetAccessLog",
     {{"REF", "", "PATH/NAME", reference, true}, {"--limit", "limit", "", number}}, {"at", "who", "operation", "version", "allowed"}},

    {"requests list", "what waits for an answer, newest first", "creto.oversight.v1.OversightService/ListRequests",
     {{"--state", "state", "pending, escalated, approved, denied, timed_out, cancelled"}, {"--open", "open_only", "only those that wait", flag},
      {"--agent", "agent", "identity"}, {"--approver", "approver", "identity"}, {"--limit", "limit", "", number}},
     {"id", "state", "action", "agent", "description"}},
    {"requests show", "one request with everything an approver needs", "creto.oversight.v1.OversightService/GetRequest",
     {{"ID", "id", "", text, true}}, {}},
    {"requests cancel", "withdraw a request", "creto.oversight.v1.OversightService/CancelRequest", {{"ID", "id", "", text, true}}, {}},
    {"oversight put", "create or replace an oversight policy", "creto.oversight.v1.OversightService/PutPolicy",
     {{"POLICY", "", "JSON, or @FILE with JSON or YAML", json, true}}, {}},
    {"oversight list", "the oversight policies", "creto.oversight.v1.OversightService/ListPolicies", {}, {"id", "final_action", "description"}},
    {"oversight delete", "remove an oversight policy", "creto.oversight.v1.OversightService/DeletePolicy", {{"ID", "id", "", text, true}}, {}},

    {"messages status", "what has become of a message", "creto.messaging.v1.MessagingService/GetStatus",
     {{"ID", "message_id", "", text, true}}, {"recipient", "state", "reason", "updated_at"}},
    {"topics list", "the topics", "creto.messaging.v1.MessagingService/ListTopics", {}, {"name", "owner", "created_at"}},
    {"topics create", "a topic of your own", "creto.messaging.v1.MessagingService/CreateTopic", {{"NAME", "name", "", text, true}}, {}},

    {"objects list", "what storage holds for an owner", "creto.storage.v1.StorageService/List",
     {{"--owner", "owner", "identity; default: you"}, {"--bucket", "bucket", ""}, {"--prefix", "key_prefix", "of the key"}},
     {"reference.bucket", "reference.key", "size_bytes", "classification", "created_at"}},
    {"memories query", "what an agent remembers about something", "creto.memory.v1.MemoryService/Query",
     {{"QUERY", "query", "text", text, true}, {"--agent", "agent", "identity"}, {"--limit", "limit", "", number}},
     {"relevance_score", "memory.type", "memory.content"}},
};

}  // namespace

std::span<const Verb> verbs() { return table; }

}  // namespace creto::app::cli
