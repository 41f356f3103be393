#include "creto/consensus/timestamp_source.h"

namespace creto::consensus {
namespace {

constexpr sql::Migration steps[] = {
    {1, "ceilings", R"sql(
CREATE TABLE consensus_ceilings (
  node TEXT NOT NULL PRIMARY KEY,
  ceiling_ns BIGINT NOT NULL CHECK (ceiling_ns > 0)
);
)sql"},
};

class SqlCeilingStore final : public CeilingStore {
 public:
  SqlCeilingStore(sql::Database& db, std::string node) : db_(db), node_(std::move(node)) {}

  Result<std::int64_t> load() override {
    return sql::read(db_, Context(), [&](sql::Tx& tx) -> Result<std::int64_t> {
      const auto rows = CRETO_TRY(tx.query("SELECT ceiling_ns FROM consensus_ceilings WHERE node = $1", {node_}));
      return rows.empty() ? 0 : rows.front().integer(0);
    });
  }

  Result<> save(std::int64_t expected, std::int64_t ceiling_ns) override {
    return db_.transaction(
        Context(),
        [&](sql::Tx& tx) -> Result<> {
          const auto changed =
              CRETO_TRY(expected == 0 ? tx.exec("INSERT INTO consensus_ceilings (node, ceiling_ns) VALUES ($1, $2) ON "
                                                "CONFLICT (node) DO NOTHING",
                                                {node_, ceiling_ns})
                                      : tx.exec("UPDATE consensus_ceilings SET ceiling_ns = $2 "
                                                "WHERE node = $1 AND ceiling_ns = $3 AND ceiling_ns <= $2",
                                                {node_, ceiling_ns, expected}));
          if (changed == 1) return {};
          return Error(Product::platform, ErrorKind::conflict, "another process has saved a ceiling for this node");
        },
        {.isolation = sql::Isolation::read_committed});
  }

 private:
  sql::Database& db_;
  const std::string node_;
};

}  // namespace

Result<std::unique_ptr<CeilingStore>> create_ceiling_store(sql::Database& db, std::string node) {
  CRETO_TRY(sql::migrate(db, "consensus", steps));
  return std::unique_ptr<CeilingStore>(std::make_unique<SqlCeilingStore>(db, std::move(node)));
}

}  // namespace creto::consensus
