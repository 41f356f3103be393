#pragma once

#include <memory>

namespace creto::sql {
class Database;
}
namespace creto::authz {
class ResourceSource;
}

namespace creto::runtime {

/// Sandboxes as policies see them (docs/authz.md, "What a policy sees"): what the tables of this module in `database`,
/// which must outlive it, say at the moment of asking.
std::unique_ptr<authz::ResourceSource> sandbox_entities(sql::Database& database);

}  // namespace creto::runtime
