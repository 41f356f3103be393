#include "creto/io/rpc.h"
#include "creto/memory/memory_rpc.h"
#include "rpc/convert.h"

namespace creto::memory {

// Whose memory one may touch is decided by the service itself, per agent: the dispatcher only asks who is calling.
void register_memory(rpc::Dispatcher& dispatcher, Memory& memory) {
  auto service = dispatcher.service("creto.memory.v1.MemoryService");
  constexpr auto own = rpc::Access::authenticated;

  service.unary<v1::StoreMemoryRequest, v1::StoreMemoryResponse>(
      "Store", {.access = own},
      [&memory](const Context& ctx, const v1::StoreMemoryRequest& r) -> Result<v1::StoreMemoryResponse> {
        const auto entry = CRETO_TRY(from_proto(ctx, r));
        const auto id = CRETO_TRY(memory.store(ctx, entry));
        v1::StoreMemoryResponse response;
        response.set_id(id.to_string());
        return response;
      });
  service.unary<v1::StoreBatchRequest, v1::StoreBatchResponse>(
      "StoreBatch", {.access = own},
      [&memory](const Context& ctx, const v1::StoreBatchRequest& r) -> Result<v1::StoreBatchResponse> {
        std::vector<NewEntry> entries;
        for (const auto& one : r.memories()) {
          auto entry = CRETO_TRY(from_proto(ctx, one));
          entries.push_back(std::move(entry));
        }
        const auto ids = CRETO_TRY(memory.store_batch(ctx, entries));
        v1::StoreBatchResponse response;
        for (const auto& id : ids) response.add_ids(id.to_string());
        return response;
      });
  service.unary<v1::QueryRequest, v1::QueryResponse>(
      "Query", {.access = own, .idempotent = true},
      [&memory](const Context& ctx, const v1::QueryRequest& r) -> Result<v1::QueryResponse> {
        const auto query = CRETO_TRY(from_proto(ctx, r));
        const auto found = CRETO_TRY(memory.query(ctx, query));
        v1::QueryResponse response;
        for (const auto& one : found) to_proto(one, *response.add_results());
        return response;
      });
  service.unary<v1::GetRequest, v1::Memory>(
      "Get", {.access = own, .idempotent = true},
      [&memory](const Context& ctx, const v1::GetRequest& r) -> Result<v1::Memory> {
        const auto agent = CRETO_TRY(agent_of(ctx, r.agent()));
        const auto id = CRETO_TRY(MemoryId::parse(r.id()));
        const auto entry = CRETO_TRY(memory.get(ctx, agent, id));
        v1::Memory response;
        to_proto(entry, response);
        return response;
      });
  service.unary<v1::DeleteRequest, v1::DeleteResponse>(
      "Delete", {.access = own},
      [&memory](const Context& ctx, const v1::DeleteRequest& r) -> Result<v1::DeleteResponse> {
        const auto agent = CRETO_TRY(agent_of(ctx, r.agent()));
        const auto id = CRETO_TRY(MemoryId::parse(r.id()));
        CRETO_TRY(memory.remove(ctx, agent, id));
        return v1::DeleteResponse();
      });
  service.unary<v1::GetReasoningRequest, v1::ReasoningResponse>(
      "GetReasoning", {.access = own, .idempotent = true},
      [&memory](const Context& ctx, const v1::GetReasoningRequest& r) -> Result<v1::ReasoningResponse> {
        const auto agent = CRETO_TRY(agent_of(ctx, r.agent()));
        const auto reasoning = CRETO_TRY(memory.get_reasoning(ctx, agent, r.action_id()));
        v1::ReasoningResponse response;
        to_proto(reasoning, response);
        return response;
      });
}

}  // namespace creto::memory
