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
};

}  // namespace

std::span<const Verb> verbs() { return table; }

}  // namespace creto::app::cli
