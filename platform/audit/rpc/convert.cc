#include "rpc/convert.h"

#include <algorithm>
#include <utility>

namespace creto::audit {
namespace {

using proto::bad_field;

// A path in a tree of 2^64 entries.
constexpr int path_max = 64;
constexpr std::size_t node_bytes_max = 64;

std::optional<std::string> wanted(const std::string& text) {
  if (text.empty()) return std::nullopt;
  return text;
}

}  // namespace

v1::Outcome to_proto(Outcome outcome) {
  switch (outcome) {
    case Outcome::success:
      return v1::OUTCOME_SUCCESS;
    case Outcome::failure:
      return v1::OUTCOME_FAILURE;
    case Outcome::denied:
      return v1::OUTCOME_DENIED;
    case Outcome::timeout:
      return v1::OUTCOME_TIMEOUT;
  }
  std::unreachable();
}

Result<std::optional<Outcome>> from_proto(v1::Outcome outcome) {
  switch (outcome) {
    case v1::OUTCOME_UNSPECIFIED:
      return std::optional<Outcome>();
    case v1::OUTCOME_SUCCESS:
      return std::optional(Outcome::success);
    case v1::OUTCOME_FAILURE:
      return std::optional(Outcome::failure);
    case v1::OUTCOME_DENIED:
      return std::optional(Outcome::denied);
    case v1::OUTCOME_TIMEOUT:
      return std::optional(Outcome::timeout);
    default:
      return bad_field("outcome", "has an unknown value");
  }
}

void to_proto(const AuditRecord& record, v1::AuditRecord& out) {
  if (record.id) out.set_id(record.id->to_string());
  out.set_who(record.who);
  for (const auto& link : record.delegation_chain) out.add_delegation_chain(link);
  out.set_what(record.what);
  out.set_resource(record.resource);
  out.set_why(record.why);
  out.set_outcome(to_proto(record.outcome));
  out.set_outcome_detail(record.outcome_detail);
  auto* timestamp = out.mutable_timestamp();
  timestamp->set_logical(record.timestamp.logical);
  timestamp->set_physical_ns(record.timestamp.physical_ns);
  timestamp->set_node(record.timestamp.node);
  timestamp->set_degraded(record.timestamp.degraded);
  if (record.signature) proto::set_signature(out.mutable_signature(), *record.signature);
  out.set_metadata(record.metadata);
  out.set_trace_id(record.trace_id);
}

Result<AuditRecord> from_proto(const v1::AuditRecord& record) {
  AuditRecord out;
  if (!record.id().empty()) out.id = CRETO_TRY(proto::from_id<AuditId>(record.id(), "record.id"));
  out.who = record.who();
  out.delegation_chain.assign(record.delegation_chain().begin(), record.delegation_chain().end());
  out.what = record.what();
  out.resource = record.resource();
  out.why = record.why();
  const auto outcome = CRETO_TRY(from_proto(record.outcome()));
  if (!outcome) return bad_field("record.outcome", "is required");
  out.outcome = *outcome;
  out.outcome_detail = record.outcome_detail();
  if (record.timestamp().node().size() > node_bytes_max) return bad_field("record.timestamp.node", "is too long");
  out.timestamp = Timestamp{record.timestamp().logical(), record.timestamp().physical_ns(), record.timestamp().node(),
                            record.timestamp().degraded()};
  if (record.has_signature()) out.signature = proto::from_signature(record.signature());
  out.metadata = record.metadata().empty() ? "{}" : record.metadata();
  out.trace_id = record.trace_id();
  return out;
}

void to_proto(const AuditEntry& entry, v1::AuditEntry& out) {
  out.set_index(entry.index);
  to_proto(entry.record, *out.mutable_record());
  out.set_entry(entry.bytes);
}

Result<AuditEntry> from_proto(const v1::AuditEntry& entry) {
  auto record = CRETO_TRY(from_proto(entry.record()));
  return AuditEntry{entry.index(), std::move(record), entry.entry()};
}

void to_proto(const AuditFilter& filter, v1::QueryRequest& out) {
  out.set_who(filter.who.value_or(""));
  out.set_what(filter.what.value_or(""));
  out.set_resource(filter.resource.value_or(""));
  if (filter.outcome) out.set_outcome(to_proto(*filter.outcome));
  if (filter.from) proto::set_time(out.mutable_from(), *filter.from);
  if (filter.until) proto::set_time(out.mutable_until(), *filter.until);
  out.set_cursor(filter.cursor);
  out.set_limit(filter.limit);
  out.set_oldest_first(!filter.newest_first);
}

Result<AuditFilter> from_proto(const v1::QueryRequest& request) {
  AuditFilter filter;
  filter.who = wanted(request.who());
  filter.what = wanted(request.what());
  filter.resource = wanted(request.resource());
  filter.outcome = CRETO_TRY(from_proto(request.outcome()));
  if (request.has_from()) filter.from = CRETO_TRY(proto::from_time(request.from(), "from"));
  if (request.has_until()) filter.until = CRETO_TRY(proto::from_time(request.until(), "until"));
  filter.cursor = request.cursor();
  if (request.limit() != 0) filter.limit = request.limit();
  filter.newest_first = !request.oldest_first();
  return filter;
}

Result<Hash256> hash_from(const std::string& bytes, std::string_view field) {
  Hash256 hash;
  if (bytes.size() != hash.size()) return bad_field(field, "must have 32 bytes");
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

void to_proto(const InclusionProof& proof, v1::MerkleProof& out) {
  out.set_id(proof.id.to_string());
  out.set_index(proof.index);
  out.set_tree_size(proof.tree_size);
  out.set_leaf_hash(proto::to_text(proof.leaf_hash));
  out.set_root(proto::to_text(proof.root));
  for (const Hash256& hash : proof.path) out.add_path(proto::to_text(hash));
  out.set_checkpoint(proof.checkpoint);
}

Result<InclusionProof> from_proto(const v1::MerkleProof& proof) {
  auto id = CRETO_TRY(proto::from_id<AuditId>(proof.id(), "proof.id"));
  auto leaf = CRETO_TRY(hash_from(proof.leaf_hash(), "proof.leaf_hash"));
  auto root = CRETO_TRY(hash_from(proof.root(), "proof.root"));
  if (proof.path_size() > path_max) return bad_field("proof.path", "has more than 64 hashes");
  std::vector<Hash256> path;
  for (const auto& bytes : proof.path()) {
    const Hash256 hash = CRETO_TRY(hash_from(bytes, "proof.path"));
    path.push_back(hash);
  }
  return InclusionProof{id, proof.index(), proof.tree_size(), leaf, root, std::move(path), proof.checkpoint()};
}

}  // namespace creto::audit
