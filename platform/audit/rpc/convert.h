#pragma once

#include "creto/audit/audit_log.h"
#include "creto/audit/v1/audit.pb.h"
#include "creto/io/proto.h"

namespace creto::audit {

v1::Outcome to_proto(Outcome outcome);
Result<std::optional<Outcome>> from_proto(v1::Outcome outcome);  ///< none for unspecified

void to_proto(const AuditRecord& record, v1::AuditRecord& out);
Result<AuditRecord> from_proto(const v1::AuditRecord& record);
void to_proto(const AuditEntry& entry, v1::AuditEntry& out);
Result<AuditEntry> from_proto(const v1::AuditEntry& entry);
void to_proto(const AuditFilter& filter, v1::QueryRequest& out);
Result<AuditFilter> from_proto(const v1::QueryRequest& request);
void to_proto(const InclusionProof& proof, v1::MerkleProof& out);
Result<InclusionProof> from_proto(const v1::MerkleProof& proof);

Result<Hash256> hash_from(const std::string& bytes, std::string_view field);

}  // namespace creto::audit
