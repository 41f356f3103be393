#pragma once

#include <memory>
#include <ostream>
#include <string>

#include "creto/common/clock.h"
#include "creto/io/sql.h"
#include "creto/testing/temp_dir.h"

namespace creto::testing {

/// Which database a contract suite runs on: `INSTANTIATE_TEST_SUITE_P(, StoreContract, both_databases(),
/// database_name)`.
enum class DatabaseKind { sqlite, postgres };
std::ostream& operator<<(std::ostream& out, DatabaseKind kind);

/// An empty database of that kind. `open` may be called again after the object it returned is gone: a restart.
class TestDatabase {
 public:
  explicit TestDatabase(DatabaseKind kind, const Clock& clock = system_clock());

  std::unique_ptr<sql::Database> open();
  /// SQLite's file or PostgreSQL's conninfo, for another process.
  std::string location() const;

 private:
  DatabaseKind kind_;
  const Clock& clock_;
  TempDir directory_;
  std::string conninfo_;
};

#define both_databases() \
  ::testing::Values(::creto::testing::DatabaseKind::sqlite, ::creto::testing::DatabaseKind::postgres)
#define database_name [](const auto& info) { return ::testing::PrintToString(info.param); }

}  // namespace creto::testing
