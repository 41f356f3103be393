#pragma once

#include <memory>
#include <string>

namespace creto::testing {

/// The conninfo of a new, empty database in a real PostgreSQL, which the first call starts (unix socket only, fsync
/// off, its data in a temporary directory) and which ends with this process. Aborts with a sentence where there is no
/// PostgreSQL: a test that needs it must not pass without it.
std::string fresh_postgres_database();

/// Likewise, in another one that syncs what it commits: for timings.
std::string durable_postgres_database();

/// A server of the test's own, which it can take away for a while. Ends with this object.
class OwnPostgres {
 public:
  OwnPostgres();
  ~OwnPostgres();

  /// Of a new, empty database. Requires: it runs.
  std::string fresh_database();
  /// At once, as in a crash; returns when it is gone.
  void stop();
  /// On the data that are there; returns when it takes connections.
  void start();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace creto::testing
