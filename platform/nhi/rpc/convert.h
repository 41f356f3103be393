#pragma once

#include "creto/io/proto.h"
#include "creto/nhi/nhi.h"
#include "creto/nhi/v1/nhi.pb.h"

namespace creto::nhi {

void to_proto(const Agent& agent, v1::Agent& out);
Result<Agent> from_proto(const v1::Agent& agent);
v1::AgentType to_proto(AgentType type);
Result<std::optional<AgentType>> from_proto(v1::AgentType type);  ///< none for unspecified
v1::AgentStatus to_proto(AgentStatus status);
Result<std::optional<AgentStatus>> from_proto(v1::AgentStatus status);

void to_proto(const NewAgent& agent, v1::RegisterAgentRequest& out);
Result<NewAgent> from_proto(const v1::RegisterAgentRequest& request);
void to_proto(const AgentChange& change, v1::UpdateAgentRequest& out);
Result<AgentChange> from_proto(const v1::UpdateAgentRequest& request);
void to_proto(const AgentFilter& filter, v1::ListAgentsRequest& out);
Result<AgentFilter> from_proto(const v1::ListAgentsRequest& request);

void to_proto(const Delegation& delegation, v1::Delegation& out);
Result<Delegation> from_proto(const v1::Delegation& delegation);
void to_proto(const NewDelegation& delegation, v1::CreateDelegationRequest& out);
/// `caller` stands in for an empty delegator.
Result<NewDelegation> from_proto(const v1::CreateDelegationRequest& request, const Context& ctx);
void to_proto(const Chain& chain, v1::DelegationChain& out);
Result<Chain> from_proto(const v1::DelegationChain& chain);
void to_proto(const PastChain& past, v1::PastDelegationChain& out);
Result<PastChain> from_proto(const v1::PastDelegationChain& past);

void to_proto(const PublicKeys& keys, v1::AgentPublicKeys& out);
Result<PublicKeys> from_proto(const v1::AgentPublicKeys& keys);
void to_proto(const KeyRotation& rotation, v1::RotateKeysRequest& out);
Result<KeyRotation> from_proto(const v1::RotateKeysRequest& request);
void to_proto(const KeyBundleUpload& bundle, v1::PublishKeyBundleRequest& out);
KeyBundleUpload from_proto(const v1::PublishKeyBundleRequest& bundle);
void to_proto(const KeyBundle& bundle, v1::KeyBundle& out);
Result<KeyBundle> from_proto(const v1::KeyBundle& bundle);

}  // namespace creto::nhi
