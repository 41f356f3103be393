#include "creto/audit/audit_rpc.h"
#include "creto/io/rpc.h"
#include "rpc/convert.h"

namespace creto::audit {
namespace {

/// Services record what they did for others; everybody else speaks for himself.
Result<AuditRecord> record_of(const Context& ctx, const v1::AuditRecord& wanted) {
  auto record = CRETO_TRY(from_proto(wanted));
  if (!ctx.caller || ctx.caller->kind() != Identity::Kind::service) {
    record.who = ctx.caller_text();
    record.delegation_chain.clear();
    for (const Identity& link : ctx.chain) record.delegation_chain.push_back(link.text());
  }
  return record;
}

template <class Request>
Result<AuditId> id_of(const Request& request) {
  return proto::from_id<AuditId>(request.id(), "id");
}

Result<v1::Checkpoint> checkpoint_of(Result<std::string> note) {
  if (!note) return std::move(note).error();
  v1::Checkpoint response;
  response.set_note(std::move(*note));
  return response;
}

}  // namespace

void register_audit(rpc::Dispatcher& dispatcher, AuditLog& log) {
  auto service = dispatcher.service("creto.audit.v1.AuditService");

  service.unary<v1::LogRequest, v1::LogResponse>(
      "Log", {}, [&log](const Context& ctx, const v1::LogRequest& request) -> Result<v1::LogResponse> {
        auto record = CRETO_TRY(record_of(ctx, request.record()));
        auto id = CRETO_TRY(log.log(ctx, record));
        v1::LogResponse response;
        response.set_id(id.to_string());
        return response;
      });
  service.unary<v1::LogBatchRequest, v1::LogBatchResponse>(
      "LogBatch", {}, [&log](const Context& ctx, const v1::LogBatchRequest& request) -> Result<v1::LogBatchResponse> {
        std::vector<AuditRecord> records;
        for (const auto& one : request.records()) {
          auto record = CRETO_TRY(record_of(ctx, one));
          records.push_back(std::move(record));
        }
        auto ids = CRETO_TRY(log.log_batch(ctx, records));
        v1::LogBatchResponse response;
        for (const AuditId& id : ids) response.add_ids(id.to_string());
        return response;
      });
  service.unary<v1::QueryRequest, v1::QueryResponse>(
      "Query", {.idempotent = true},
      [&log](const Context& ctx, const v1::QueryRequest& request) -> Result<v1::QueryResponse> {
        auto filter = CRETO_TRY(from_proto(request));
        auto page = CRETO_TRY(log.query(ctx, filter));
        v1::QueryResponse response;
        for (const AuditEntry& entry : page.entries) to_proto(entry, *response.add_entries());
        response.set_next_cursor(page.next_cursor);
        return response;
      });
  service.unary<v1::GetRecordRequest, v1::AuditEntry>(
      "GetRecord", {.idempotent = true},
      [&log](const Context& ctx, const v1::GetRecordRequest& request) -> Result<v1::AuditEntry> {
        auto id = CRETO_TRY(id_of(request));
        auto entry = CRETO_TRY(log.get(ctx, id));
        v1::AuditEntry response;
        to_proto(entry, response);
        return response;
      });
  service.unary<v1::GetProofRequest, v1::MerkleProof>(
      "GetProof", {.idempotent = true},
      [&log](const Context& ctx, const v1::GetProofRequest& request) -> Result<v1::MerkleProof> {
        auto id = CRETO_TRY(id_of(request));
        auto proof = CRETO_TRY(log.proof(ctx, id));
        v1::MerkleProof response;
        to_proto(proof, response);
        return response;
      });
  service.unary<v1::GetConsistencyRequest, v1::GetConsistencyResponse>(
      "GetConsistency", {.idempotent = true},
      [&log](const Context& ctx, const v1::GetConsistencyRequest& request) -> Result<v1::GetConsistencyResponse> {
        auto path = CRETO_TRY(log.consistency(ctx, request.old_size()));
        v1::GetConsistencyResponse response;
        for (const Hash256& hash : path) response.add_path(proto::to_text(hash));
        return response;
      });
  service.unary<v1::VerifyRequest, v1::VerifyResponse>(
      "Verify", {.idempotent = true},
      [&log](const Context& ctx, const v1::VerifyRequest& request) -> Result<v1::VerifyResponse> {
        auto id = CRETO_TRY(id_of(request));
        auto proof = CRETO_TRY(from_proto(request.proof()));
        auto root = CRETO_TRY(hash_from(request.root(), "root"));
        bool valid = CRETO_TRY(log.verify(ctx, id, proof, root));
        v1::VerifyResponse response;
        response.set_valid(valid);
        return response;
      });
  service.unary<v1::GetCheckpointRequest, v1::Checkpoint>(
      "GetCheckpoint", {.idempotent = true},
      [&log](const Context& ctx, const v1::GetCheckpointRequest&) { return checkpoint_of(log.checkpoint(ctx)); });
  service.unary<v1::FlushRequest, v1::Checkpoint>(
      "Flush", {.idempotent = true},
      [&log](const Context& ctx, const v1::FlushRequest&) { return checkpoint_of(log.flush(ctx)); });
  service.unary<v1::GetStatusRequest, v1::AuditStatus>(
      "GetStatus", {.idempotent = true},
      [&log](const Context& ctx, const v1::GetStatusRequest&) -> Result<v1::AuditStatus> {
        auto status = CRETO_TRY(log.status(ctx));
        v1::AuditStatus response;
        response.set_size(status.size);
        response.set_pending(status.pending);
        response.set_origin(status.origin);
        response.set_verifier_keys(status.verifier_keys);
        response.set_problem(status.problem);
        return response;
      });
}

}  // namespace creto::audit
