#include "creto/io/rpc_channel.h"
#include "creto/memory/memory_rpc.h"
#include "rpc/convert.h"

namespace creto::memory {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class MemoryClient final : public Memory {
 public:
  explicit MemoryClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<MemoryId> store(const Context& ctx, const NewEntry& entry) override {
    v1::StoreMemoryRequest request;
    to_proto(entry, request);
    const auto stored = CRETO_TRY((call<v1::StoreMemoryResponse>(ctx, "Store", request)));
    return MemoryId::parse(stored.id());
  }

  Result<std::vector<MemoryId>> store_batch(const Context& ctx, const std::vector<NewEntry>& entries) override {
    v1::StoreBatchRequest request;
    for (const auto& entry : entries) to_proto(entry, *request.add_memories());
    const auto stored = CRETO_TRY((call<v1::StoreBatchResponse>(ctx, "StoreBatch", request)));
    std::vector<MemoryId> ids;
    for (const auto& text : stored.ids()) {
      const auto id = CRETO_TRY(MemoryId::parse(text));
      ids.push_back(id);
    }
    return ids;
  }

  Result<std::vector<ScoredEntry>> query(const Context& ctx, const Query& query) override {
    if (query.limit == 0) return Error(Product::platform, ErrorKind::invalid_input, "`limit` must be 1 to 100");
    v1::QueryRequest request;
    to_proto(query, request);
    const auto found = CRETO_TRY((call<v1::QueryResponse>(ctx, "Query", request, repeatable)));
    std::vector<ScoredEntry> entries;
    for (const auto& one : found.results()) {
      auto entry = CRETO_TRY(from_proto(one));
      entries.push_back(std::move(entry));
    }
    return entries;
  }

  Result<Entry> get(const Context& ctx, const Identity& agent, const MemoryId& id) override {
    v1::GetRequest request;
    request.set_agent(agent.text());
    request.set_id(id.to_string());
    const auto entry = CRETO_TRY((call<v1::Memory>(ctx, "Get", request, repeatable)));
    return from_proto(entry);
  }

  Result<> remove(const Context& ctx, const Identity& agent, const MemoryId& id) override {
    v1::DeleteRequest request;
    request.set_agent(agent.text());
    request.set_id(id.to_string());
    CRETO_TRY((call<v1::DeleteResponse>(ctx, "Delete", request)));
    return {};
  }

  Result<std::optional<Reasoning>> get_reasoning(const Context& ctx, const Identity& agent,
                                                 std::string_view action_id) override {
    v1::GetReasoningRequest request;
    request.set_agent(agent.text());
    request.set_action_id(std::string(action_id));
    const auto found = CRETO_TRY((call<v1::ReasoningResponse>(ctx, "GetReasoning", request, repeatable)));
    return from_proto(found);
  }

  Result<std::size_t> sweep(const Context&) override {
    return Error(Product::platform, ErrorKind::unavailable, "sweeping belongs to the memory service itself");
  }

  /// Whether the service answers at all; its own health is at its health endpoint.
  HealthStatus health() override {
    v1::GetRequest request;
    auto answered = call<v1::Memory>(Context(), "Get", request);
    if (!answered && answered.error().category() == ErrorCategory::transient) {
      return {Health::unhealthy, "memory does not answer"};
    }
    return {};
  }

 private:
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.memory.v1.MemoryService/" + std::string(method), request, options);
  }

  const std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Memory> create_memory_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<MemoryClient>(std::move(channel));
}

}  // namespace creto::memory
