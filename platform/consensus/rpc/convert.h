#pragma once

#include "creto/consensus/timestamp_source.h"
#include "creto/consensus/v1/consensus.pb.h"
#include "creto/io/proto.h"

namespace creto::consensus {

inline void to_proto(const Timestamp& timestamp, common::v1::ConsensusTimestamp& out) {
  out.set_logical(timestamp.logical);
  out.set_physical_ns(timestamp.physical_ns);
  out.set_node(timestamp.node);
  out.set_degraded(timestamp.degraded);
}
inline Result<Timestamp> from_proto(const common::v1::ConsensusTimestamp& timestamp, std::string_view field) {
  if (timestamp.node().size() > 64) return proto::bad_field(field, "must have a node of at most 64 bytes");
  return Timestamp{timestamp.logical(), timestamp.physical_ns(), timestamp.node(), timestamp.degraded()};
}

}  // namespace creto::consensus
