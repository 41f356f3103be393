#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>

#include "creto/audit/tlog.h"
#include "creto/common/assert.h"
#include "creto/crypto/hash.h"

namespace creto::tlog {
namespace {

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

/// The largest power of two below `size`, as its exponent. Requires: size > 1.
int split_level(std::uint64_t size) { return static_cast<int>(std::bit_width(size - 1)) - 1; }

/// The hash of entries [begin, begin + size) where `begin` is a multiple of the power of two that covers them.
Result<Hash256> range_hash(std::uint64_t begin, std::uint64_t size, const NodeReader& nodes) {
  if (std::has_single_bit(size)) {
    const int level = std::countr_zero(size);
    return nodes(level, begin >> level);
  }
  const std::uint64_t left = std::uint64_t{1} << split_level(size);
  const Hash256 a = CRETO_TRY(range_hash(begin, left, nodes));
  const Hash256 b = CRETO_TRY(range_hash(begin + left, size - left, nodes));
  return node_hash(a, b);
}

Result<> inclusion(std::uint64_t begin, std::uint64_t index, std::uint64_t size, const NodeReader& nodes,
                   std::vector<Hash256>& path) {
  if (size == 1) return {};
  const std::uint64_t left = std::uint64_t{1} << split_level(size);
  if (index < left) {
    CRETO_TRY(inclusion(begin, index, left, nodes, path));
    const Hash256 other = CRETO_TRY(range_hash(begin + left, size - left, nodes));
    path.push_back(other);
  } else {
    CRETO_TRY(inclusion(begin + left, index - left, size - left, nodes, path));
    const Hash256 other = CRETO_TRY(range_hash(begin, left, nodes));
    path.push_back(other);
  }
  return {};
}

/// SUBPROOF of RFC 6962 §2.1.2.
Result<> consistency(std::uint64_t begin, std::uint64_t old_size, std::uint64_t size, bool whole,
                     const NodeReader& nodes, std::vector<Hash256>& path) {
  if (old_size == size) {
    if (!whole) {
      const Hash256 hash = CRETO_TRY(range_hash(begin, size, nodes));
      path.push_back(hash);
    }
    return {};
  }
  const std::uint64_t left = std::uint64_t{1} << split_level(size);
  if (old_size <= left) {
    CRETO_TRY(consistency(begin, old_size, left, whole, nodes, path));
    const Hash256 other = CRETO_TRY(range_hash(begin + left, size - left, nodes));
    path.push_back(other);
  } else {
    CRETO_TRY(consistency(begin + left, old_size - left, size - left, false, nodes, path));
    const Hash256 other = CRETO_TRY(range_hash(begin, left, nodes));
    path.push_back(other);
  }
  return {};
}

Error wrong_length() { return refusal(ErrorKind::invalid_input, "the proof has a wrong number of hashes"); }

}  // namespace

Hash256 leaf_hash(BytesView entry) {
  static constexpr std::uint8_t prefix[] = {0};
  return crypto::sha256({prefix, entry});
}

Hash256 node_hash(const Hash256& left, const Hash256& right) {
  static constexpr std::uint8_t prefix[] = {1};
  return crypto::sha256({prefix, left, right});
}

Hash256 empty_root() { return crypto::sha256(BytesView()); }

// RFC 9162 §2.1.3.2.
Result<> verify_inclusion(std::uint64_t index, std::uint64_t size, const Hash256& leaf,
                          const std::vector<Hash256>& path, const Hash256& root) {
  if (index >= size) return refusal(ErrorKind::invalid_input, "the index is outside the tree");
  std::uint64_t node = index;
  std::uint64_t last = size - 1;
  Hash256 hash = leaf;
  for (const Hash256& sibling : path) {
    if (last == 0) return wrong_length();
    if ((node & 1) != 0 || node == last) {
      hash = node_hash(sibling, hash);
      while ((node & 1) == 0 && node != 0) {
        node >>= 1;
        last >>= 1;
      }
    } else {
      hash = node_hash(hash, sibling);
    }
    node >>= 1;
    last >>= 1;
  }
  if (last != 0) return wrong_length();
  if (hash != root) return refusal(ErrorKind::hash_mismatch, "the inclusion proof does not lead to the root");
  return {};
}

// RFC 9162 §2.1.4.2.
Result<> verify_consistency(std::uint64_t old_size, std::uint64_t new_size, const std::vector<Hash256>& path,
                            const Hash256& old_root, const Hash256& new_root) {
  if (old_size > new_size) return refusal(ErrorKind::invalid_input, "the old tree is larger than the new one");
  // Every tree begins with the empty one: nothing would be proved.
  if (old_size == 0) return refusal(ErrorKind::invalid_input, "the old tree is empty");
  if (old_size == new_size) {
    if (!path.empty()) return wrong_length();
    if (old_root != new_root) return refusal(ErrorKind::hash_mismatch, "two trees of one size have different roots");
    return {};
  }
  std::size_t next = 0;
  Hash256 first = old_root;
  if (!std::has_single_bit(old_size)) {
    if (path.empty()) return wrong_length();
    first = path[next++];
  }
  std::uint64_t node = old_size - 1;
  std::uint64_t last = new_size - 1;
  while ((node & 1) != 0) {
    node >>= 1;
    last >>= 1;
  }
  Hash256 old_hash = first;
  Hash256 new_hash = first;
  for (; next < path.size(); ++next) {
    const Hash256& sibling = path[next];
    if (last == 0) return wrong_length();
    if ((node & 1) != 0 || node == last) {
      old_hash = node_hash(sibling, old_hash);
      new_hash = node_hash(sibling, new_hash);
      while ((node & 1) == 0 && node != 0) {
        node >>= 1;
        last >>= 1;
      }
    } else {
      new_hash = node_hash(new_hash, sibling);
    }
    node >>= 1;
    last >>= 1;
  }
  if (last != 0) return wrong_length();
  if (old_hash != old_root || new_hash != new_root) {
    return refusal(ErrorKind::hash_mismatch, "the consistency proof does not connect the two roots");
  }
  return {};
}

Result<Hash256> tree_root(std::uint64_t size, const NodeReader& nodes) {
  if (size == 0) return empty_root();
  return range_hash(0, size, nodes);
}

Result<std::vector<Hash256>> inclusion_path(std::uint64_t index, std::uint64_t size, const NodeReader& nodes) {
  CRETO_ASSERT(index < size);
  std::vector<Hash256> path;
  CRETO_TRY(inclusion(0, index, size, nodes, path));
  return path;
}

Result<std::vector<Hash256>> consistency_path(std::uint64_t old_size, std::uint64_t new_size, const NodeReader& nodes) {
  CRETO_ASSERT(old_size <= new_size);
  std::vector<Hash256> path;
  if (old_size == 0 || old_size == new_size) return path;
  CRETO_TRY(consistency(0, old_size, new_size, true, nodes, path));
  return path;
}

}  // namespace creto::tlog
