#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "creto/io/sql.h"
#include "creto/storage/storage.h"

namespace creto::storage {

struct StoredObject {
  ObjectMetadata metadata;  ///< `ref.version` names the file
  Hash256 header_hash{};    ///< BLAKE3 of the file's header
};

/// Storage's tables. Knows rows, not rules. Stateless. What has expired is there until it is swept: `now` hides it.
namespace store {

Result<> migrate(sql::Database& database);

Result<std::optional<StoredObject>> find(sql::Tx& tx, const Context& ctx, const StorageRef& ref, Instant now);
/// Newest first; expired ones too.
Result<std::vector<StoredObject>> versions(sql::Tx& tx, const Context& ctx, const StorageRef& ref);
Result<> insert(sql::Tx& tx, const Context& ctx, const StoredObject& object);
Result<> erase(sql::Tx& tx, const Context& ctx, const StoredObject& object);
Result<> set_metadata(sql::Tx& tx, const Context& ctx, const StorageRef& ref, std::string_view metadata);
/// The latest version of each key, by bucket and key, after `after`.
Result<std::vector<StoredObject>> list(sql::Tx& tx, const Context& ctx, const ListQuery& query,
                                       const std::pair<std::string, std::string>& after, Instant now);
/// Of all organizations, with theirs; what must be retained is not among them.
Result<std::vector<std::pair<std::string, StoredObject>>> expired(sql::Tx& tx, Instant now, std::size_t limit);
Result<bool> is_known(sql::Tx& tx, std::string_view version);

Result<std::uint64_t> used_bytes(sql::Tx& tx, const Context& ctx, const Identity& owner);
/// What the owner uses afterwards.
Result<std::uint64_t> add_used(sql::Tx& tx, const Context& ctx, const Identity& owner, std::int64_t bytes);

}  // namespace store
}  // namespace creto::storage
