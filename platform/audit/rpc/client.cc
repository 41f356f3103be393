#include "creto/audit/audit_rpc.h"
#include "creto/io/rpc_channel.h"
#include "rpc/convert.h"

namespace creto::audit {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};

class AuditClient final : public AuditLog {
 public:
  explicit AuditClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<AuditId> log(const Context& ctx, const AuditRecord& record) override {
    v1::LogRequest request;
    to_proto(record, *request.mutable_record());
    auto response = CRETO_TRY(call<v1::LogResponse>(ctx, "Log", request));
    return AuditId::parse(response.id());
  }
  Result<std::vector<AuditId>> log_batch(const Context& ctx, const std::vector<AuditRecord>& records) override {
    v1::LogBatchRequest request;
    for (const AuditRecord& record : records) to_proto(record, *request.add_records());
    auto response = CRETO_TRY(call<v1::LogBatchResponse>(ctx, "LogBatch", request));
    std::vector<AuditId> ids;
    for (const auto& text : response.ids()) {
      const AuditId id = CRETO_TRY(AuditId::parse(text));
      ids.push_back(id);
    }
    return ids;
  }
  Result<AuditPage> query(const Context& ctx, const AuditFilter& filter) override {
    // On the wire 0 stands for the default.
    if (filter.limit == 0) return proto::bad_field("limit", "must be 1 to 1000");
    v1::QueryRequest request;
    to_proto(filter, request);
    auto response = CRETO_TRY(call<v1::QueryResponse>(ctx, "Query", request, repeatable));
    AuditPage page;
    for (const auto& one : response.entries()) {
      auto entry = CRETO_TRY(from_proto(one));
      page.entries.push_back(std::move(entry));
    }
    page.next_cursor = response.next_cursor();
    return page;
  }
  Result<AuditEntry> get(const Context& ctx, const AuditId& id) override {
    auto response = CRETO_TRY(call<v1::AuditEntry>(ctx, "GetRecord", about<v1::GetRecordRequest>(id)));
    return from_proto(response);
  }
  Result<InclusionProof> proof(const Context& ctx, const AuditId& id) override {
    auto response = CRETO_TRY(call<v1::MerkleProof>(ctx, "GetProof", about<v1::GetProofRequest>(id)));
    return from_proto(response);
  }
  Result<std::vector<Hash256>> consistency(const Context& ctx, std::uint64_t old_size) override {
    v1::GetConsistencyRequest request;
    request.set_old_size(old_size);
    auto response = CRETO_TRY(call<v1::GetConsistencyResponse>(ctx, "GetConsistency", request, repeatable));
    std::vector<Hash256> path;
    for (const auto& bytes : response.path()) {
      const Hash256 hash = CRETO_TRY(hash_from(bytes, "path"));
      path.push_back(hash);
    }
    return path;
  }
  Result<bool> verify(const Context& ctx, const AuditId& id, const InclusionProof& proof,
                      const Hash256& root) override {
    auto request = about<v1::VerifyRequest>(id);
    to_proto(proof, *request.mutable_proof());
    request.set_root(proto::to_text(root));
    auto response = CRETO_TRY(call<v1::VerifyResponse>(ctx, "Verify", request, repeatable));
    return response.valid();
  }
  Result<std::string> checkpoint(const Context& ctx) override {
    auto response = CRETO_TRY(call<v1::Checkpoint>(ctx, "GetCheckpoint", v1::GetCheckpointRequest(), repeatable));
    return response.note();
  }
  Result<AuditStatus> status(const Context& ctx) override {
    auto response = CRETO_TRY(call<v1::AuditStatus>(ctx, "GetStatus", v1::GetStatusRequest(), repeatable));
    return AuditStatus{response.size(), response.pending(), response.origin(), response.verifier_keys(),
                       response.problem()};
  }
  Result<std::string> flush(const Context& ctx) override {
    auto response = CRETO_TRY(call<v1::Checkpoint>(ctx, "Flush", v1::FlushRequest(), repeatable));
    return response.note();
  }

 private:
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.audit.v1.AuditService/" + std::string(method), request, options);
  }
  template <class Req>
  static Req about(const AuditId& id) {
    Req request;
    request.set_id(id.to_string());
    return request;
  }

  std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<AuditLog> create_audit_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<AuditClient>(std::move(channel));
}

}  // namespace creto::audit
