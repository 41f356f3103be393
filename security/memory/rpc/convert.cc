#include "rpc/convert.h"

#include <algorithm>

namespace creto::memory {
namespace {

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<MemoryType> type_of(v1::MemoryType type) {
  if (type < v1::MEMORY_TYPE_OBSERVATION || type > v1::MEMORY_TYPE_LONG_TERM)
    return invalid("`type` is not a type of memory");
  return static_cast<MemoryType>(type - 1);
}

v1::MemoryType type_to_proto(MemoryType type) { return static_cast<v1::MemoryType>(static_cast<int>(type) + 1); }

}  // namespace

Result<Identity> agent_of(const Context& ctx, const std::string& text) {
  if (!text.empty()) return Identity::parse(text);
  if (!ctx.caller) return Error(Product::platform, ErrorKind::unauthenticated, "no caller");
  return *ctx.caller;
}

void to_proto(const Entry& from, v1::Memory& to) {
  to.set_id(from.id.to_string());
  to.set_agent(from.agent.text());
  to.set_content(from.content);
  to.set_type(type_to_proto(from.type));
  to.mutable_metadata()->insert(from.metadata.begin(), from.metadata.end());
  proto::set_time(to.mutable_created_at(), from.created_at);
  if (from.expires_at) proto::set_time(to.mutable_expires_at(), *from.expires_at);
  to.set_embedding_model(from.embedding_model);
}

Result<Entry> from_proto(const v1::Memory& from) {
  const auto id = CRETO_TRY(MemoryId::parse(from.id()));
  auto agent = CRETO_TRY(Identity::parse(from.agent()));
  const auto type = CRETO_TRY(type_of(from.type()));
  const auto created_at = CRETO_TRY(proto::from_time(from.created_at(), "created_at"));
  std::optional<Instant> expires_at;
  if (from.has_expires_at()) expires_at = CRETO_TRY(proto::from_time(from.expires_at(), "expires_at"));
  return Entry{id,
               std::move(agent),
               from.content(),
               type,
               {from.metadata().begin(), from.metadata().end()},
               from.embedding_model(),
               created_at,
               expires_at};
}

void to_proto(const NewEntry& from, v1::StoreMemoryRequest& to) {
  to.set_agent(from.agent.text());
  to.set_content(from.content);
  to.set_type(type_to_proto(from.type));
  to.mutable_metadata()->insert(from.metadata.begin(), from.metadata.end());
  to.mutable_embedding()->Add(from.embedding.begin(), from.embedding.end());
  if (from.ttl) proto::set_duration(to.mutable_ttl(), *from.ttl);
}

Result<NewEntry> from_proto(const Context& ctx, const v1::StoreMemoryRequest& from) {
  auto agent = CRETO_TRY(agent_of(ctx, from.agent()));
  NewEntry entry{std::move(agent),
                 from.content(),
                 MemoryType::observation,
                 {from.metadata().begin(), from.metadata().end()},
                 {from.embedding().begin(), from.embedding().end()},
                 {}};
  if (from.type() != v1::MEMORY_TYPE_UNSPECIFIED) entry.type = CRETO_TRY(type_of(from.type()));
  if (from.has_ttl() && (from.ttl().seconds() != 0 || from.ttl().nanos() != 0)) {
    entry.ttl = CRETO_TRY(proto::from_duration(from.ttl(), "ttl"));
  }
  return entry;
}

void to_proto(const Query& from, v1::QueryRequest& to) {
  to.set_agent(from.agent.text());
  to.set_query(from.text);
  to.set_limit(static_cast<std::uint32_t>(std::min<std::size_t>(from.limit, 1000)));
  if (from.relevance_threshold) to.set_relevance_threshold(*from.relevance_threshold);
  for (const auto type : from.types) to.add_type_filter(type_to_proto(type));
  if (from.from) proto::set_time(to.mutable_time_range()->mutable_from(), *from.from);
  if (from.to) proto::set_time(to.mutable_time_range()->mutable_to(), *from.to);
}

Result<Query> from_proto(const Context& ctx, const v1::QueryRequest& from) {
  auto agent = CRETO_TRY(agent_of(ctx, from.agent()));
  Query query{std::move(agent), from.query(), from.limit() == 0 ? 10 : from.limit(), {}, {}, {}, {}};
  if (from.has_relevance_threshold()) query.relevance_threshold = from.relevance_threshold();
  if (from.type_filter_size() > 16) return invalid("`type_filter` has more than 16 entries");
  for (const auto type : from.type_filter()) {
    const auto parsed = CRETO_TRY(type_of(static_cast<v1::MemoryType>(type)));
    query.types.push_back(parsed);
  }
  if (from.time_range().has_from()) query.from = CRETO_TRY(proto::from_time(from.time_range().from(), "from"));
  if (from.time_range().has_to()) query.to = CRETO_TRY(proto::from_time(from.time_range().to(), "to"));
  return query;
}

void to_proto(const ScoredEntry& from, v1::MemoryWithScore& to) {
  to_proto(from.entry, *to.mutable_memory());
  to.set_relevance_score(from.relevance);
}

Result<ScoredEntry> from_proto(const v1::MemoryWithScore& from) {
  auto entry = CRETO_TRY(from_proto(from.memory()));
  return ScoredEntry{std::move(entry), from.relevance_score()};
}

void to_proto(const std::optional<Reasoning>& from, v1::ReasoningResponse& to) {
  to.set_found(from.has_value());
  if (!from) return;
  to.set_reasoning(from->text);
  for (const auto& entry : from->related) to_proto(entry, *to.add_related_memories());
  to.set_confidence(from->confidence);
}

Result<std::optional<Reasoning>> from_proto(const v1::ReasoningResponse& from) {
  if (!from.found()) return std::optional<Reasoning>();
  Reasoning reasoning{from.reasoning(), {}, from.confidence()};
  for (const auto& memory : from.related_memories()) {
    auto entry = CRETO_TRY(from_proto(memory));
    reasoning.related.push_back(std::move(entry));
  }
  return std::optional<Reasoning>(std::move(reasoning));
}

}  // namespace creto::memory
