#pragma once

#include <span>
#include <string>

#include "creto/common/bytes.h"

namespace creto::metering {

/// Under which a reporter signs `batch_signed_bytes` (see Nhi::sign).
inline constexpr std::string_view batch_signature_context = "creto.usage_batch.v1";

/// The leaf of one record in the tree over its batch: BLAKE3 of a zero byte and the record's bytes. It is also what two
/// records with the same key are compared by.
Hash256 record_leaf(BytesView record);
/// The root as in RFC 9162 §2.1, with BLAKE3: a node is the hash of a one byte and its two halves, of which the left
/// one has the largest power of two of leaves. Requires: there are leaves.
Hash256 merkle_root(std::span<const Hash256> leaves);
/// "creto.usage_batch.v1", newline, the number of records in decimal, newline, the root in hex.
std::string batch_signed_bytes(std::size_t records, const Hash256& root);

}  // namespace creto::metering
