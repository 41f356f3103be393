#pragma once

#include <string>

namespace creto::testing {

/// The conninfo of a new, empty database in a real PostgreSQL, which the first call starts (unix socket only, fsync
/// off, its data in a temporary directory) and which ends with this process. Aborts with a sentence where there is no
/// PostgreSQL: a test that needs it must not pass without it.
std::string fresh_postgres_database();

/// Likewise, in another one that syncs what it commits: for timings.
std::string durable_postgres_database();

}  // namespace creto::testing
