#pragma once

#include "creto/io/proto.h"
#include "creto/memory/memory.h"
#include "creto/memory/v1/memory.pb.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::memory {

void to_proto(const Entry& from, v1::Memory& to);
void to_proto(const NewEntry& from, v1::StoreMemoryRequest& to);
void to_proto(const Query& from, v1::QueryRequest& to);
void to_proto(const ScoredEntry& from, v1::MemoryWithScore& to);
void to_proto(const std::optional<Reasoning>& from, v1::ReasoningResponse& to);

Result<Entry> from_proto(const v1::Memory& from);
/// An empty agent is the caller.
Result<Identity> agent_of(const Context& ctx, const std::string& text);
Result<NewEntry> from_proto(const Context& ctx, const v1::StoreMemoryRequest& from);
Result<Query> from_proto(const Context& ctx, const v1::QueryRequest& from);
Result<ScoredEntry> from_proto(const v1::MemoryWithScore& from);
Result<std::optional<Reasoning>> from_proto(const v1::ReasoningResponse& from);

}  // namespace creto::memory
