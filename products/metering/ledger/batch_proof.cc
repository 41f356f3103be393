#include "batch_proof.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::metering {

Hash256 record_leaf(BytesView record) {
  std::array<std::uint8_t, 1024> room;
  if (record.size() < room.size()) {
    room[0] = 0;
    if (!record.empty()) std::memcpy(room.data() + 1, record.data(), record.size());
    return crypto::blake3({room.data(), record.size() + 1});
  }
  const std::array<std::uint8_t, 1> zero{0};
  crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
  hasher.update(zero);
  hasher.update(record);
  return hasher.finish();
}

Hash256 merkle_root(std::span<const Hash256> leaves) {
  CRETO_ASSERT(!leaves.empty());
  if (leaves.size() == 1) return leaves.front();
  const std::size_t left = std::bit_floor(leaves.size() - 1);
  const std::array halves{merkle_root(leaves.first(left)), merkle_root(leaves.subspan(left))};
  std::array<std::uint8_t, 1 + 2 * sizeof(Hash256)> node;
  node[0] = 1;
  std::memcpy(node.data() + 1, halves.data(), sizeof halves);
  return crypto::blake3(node);
}

std::string batch_signed_bytes(std::size_t records, const Hash256& root) {
  return fmt::format("{}\n{}\n{}", batch_signature_context, records, hex(root));
}

}  // namespace creto::metering
