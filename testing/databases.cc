#include "creto/testing/databases.h"

#include <cstdio>
#include <cstdlib>

#include "creto/testing/postgres.h"

namespace creto::testing {

std::ostream& operator<<(std::ostream& out, DatabaseKind kind) {
  return out << (kind == DatabaseKind::sqlite ? "sqlite" : "postgres");
}

TestDatabase::TestDatabase(DatabaseKind kind, const Clock& clock) : kind_(kind), clock_(clock) {
  if (kind == DatabaseKind::postgres) conninfo_ = fresh_postgres_database();
}

std::unique_ptr<sql::Database> TestDatabase::open() {
  auto opened = kind_ == DatabaseKind::sqlite ? sql::open_sqlite(location(), {.clock = &clock_})
                                              : sql::open_postgres(location(), {.clock = &clock_});
  if (!opened) {
    std::fprintf(stderr, "cannot open the test's database: %s\n", opened.error().to_string().c_str());
    std::abort();
  }
  return std::move(*opened);
}

std::string TestDatabase::location() const {
  return kind_ == DatabaseKind::sqlite ? (directory_ / "creto.db").string() : conninfo_;
}

}  // namespace creto::testing
