#pragma once

#include <memory>

namespace creto::sql {
class Database;
}
namespace creto::authz {
class ResourceSource;
}

namespace creto::oversight {

/// Requests for approval as policies see them (docs/authz.md, "What a policy sees"): what the tables of this module in
/// `database`, which must outlive it, say at the moment of asking.
std::unique_ptr<authz::ResourceSource> request_entities(sql::Database& database);

}  // namespace creto::oversight
