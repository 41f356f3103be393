#pragma once

#include <memory>

#include "creto/consensus/timestamp_source.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::consensus {

/// Registers creto.consensus.v1.ConsensusService. Both must outlive the serving.
void register_consensus(rpc::Dispatcher& dispatcher, TimestampSource& source);

/// The same interface over the wire: one call a timestamp. Where the service does not answer within `patience`, it is
/// asked once more, then the timestamp is the local clock's, `degraded`, with the node name "local" (CO3).
std::unique_ptr<TimestampSource> create_timestamp_client(std::shared_ptr<rpc::Channel> channel, const Clock& clock,
                                                         Context caller,
                                                         Nanos patience = std::chrono::milliseconds(100));

}  // namespace creto::consensus
