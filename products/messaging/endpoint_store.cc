#include <fmt/format.h>

#include <array>

#include "creto/common/assert.h"
#include "creto/io/sql.h"
#include "creto/messaging/endpoint.h"
#include "wire.h"

namespace creto::messaging {
namespace {

constexpr std::size_t sessions_per_peer = 5;

constexpr std::array migrations = {sql::Migration{1, "endpoint", R"sql(
CREATE TABLE endpoint_keys (
  org TEXT NOT NULL,
  identity TEXT NOT NULL,
  purpose BIGINT NOT NULL,
  id BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  sealed BYTEA NOT NULL,
  PRIMARY KEY (org, identity, purpose, id)
);
CREATE TABLE endpoint_counters (
  org TEXT NOT NULL,
  identity TEXT NOT NULL,
  last_key_id BIGINT NOT NULL,
  last_use BIGINT NOT NULL,
  PRIMARY KEY (org, identity)
);
CREATE TABLE endpoint_sessions (
  org TEXT NOT NULL,
  identity TEXT NOT NULL,
  peer TEXT NOT NULL,
  id BYTEA NOT NULL,
  used BIGINT NOT NULL,
  sealed BYTEA NOT NULL,
  PRIMARY KEY (org, identity, peer, id)
);
CREATE TABLE endpoint_starts (
  org TEXT NOT NULL,
  identity TEXT NOT NULL,
  triple BYTEA NOT NULL,
  PRIMARY KEY (org, identity, triple)
);
CREATE TABLE endpoint_opened (
  org TEXT NOT NULL,
  identity TEXT NOT NULL,
  message TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  sealed BYTEA,
  PRIMARY KEY (org, identity, message)
);
)sql"}};

constexpr std::string_view select_key =
    "SELECT id, created_at, sealed FROM endpoint_keys WHERE org = $1 AND identity = $2 AND purpose = $3 AND id = $4";
constexpr std::string_view select_newest_key =
    "SELECT id, created_at, sealed FROM endpoint_keys WHERE org = $1 AND identity = $2 AND purpose = $3 "
    "ORDER BY id DESC LIMIT 1";
constexpr std::string_view insert_key =
    "INSERT INTO endpoint_keys (org, identity, purpose, id, created_at, sealed) VALUES ($1, $2, $3, $4, $5, $6)";
constexpr std::string_view delete_key =
    "DELETE FROM endpoint_keys WHERE org = $1 AND identity = $2 AND purpose = $3 AND id = $4";
constexpr std::string_view delete_old_keys =
    "DELETE FROM endpoint_keys WHERE org = $1 AND identity = $2 AND purpose = $3 AND created_at < $4";
constexpr std::string_view next_key_id =
    "INSERT INTO endpoint_counters (org, identity, last_key_id, last_use) VALUES ($1, $2, 1, 0) "
    "ON CONFLICT (org, identity) DO UPDATE SET last_key_id = endpoint_counters.last_key_id + 1 RETURNING last_key_id";
constexpr std::string_view next_use =
    "INSERT INTO endpoint_counters (org, identity, last_key_id, last_use) VALUES ($1, $2, 0, 1) "
    "ON CONFLICT (org, identity) DO UPDATE SET last_use = endpoint_counters.last_use + 1 RETURNING last_use";
constexpr std::string_view select_newest_session =
    "SELECT id, sealed FROM endpoint_sessions WHERE org = $1 AND identity = $2 AND peer = $3 ORDER BY used DESC LIMIT "
    "1";
constexpr std::string_view select_session =
    "SELECT id, sealed FROM endpoint_sessions WHERE org = $1 AND identity = $2 AND peer = $3 AND id = $4";
constexpr std::string_view upsert_session =
    "INSERT INTO endpoint_sessions (org, identity, peer, id, used, sealed) VALUES ($1, $2, $3, $4, $5, $6) "
    "ON CONFLICT (org, identity, peer, id) DO UPDATE SET used = excluded.used, sealed = excluded.sealed";
constexpr std::string_view prune_sessions =
    "DELETE FROM endpoint_sessions WHERE org = $1 AND identity = $2 AND peer = $3 AND id NOT IN "
    "(SELECT id FROM endpoint_sessions WHERE org = $1 AND identity = $2 AND peer = $3 ORDER BY used DESC LIMIT $4)";
constexpr std::string_view delete_sessions =
    "DELETE FROM endpoint_sessions WHERE org = $1 AND identity = $2 AND peer = $3";
constexpr std::string_view insert_start =
    "INSERT INTO endpoint_starts (org, identity, triple) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
constexpr std::string_view select_opened =
    "SELECT sealed FROM endpoint_opened WHERE org = $1 AND identity = $2 AND message = $3";
constexpr std::string_view upsert_opened =
    "INSERT INTO endpoint_opened (org, identity, message, expires_at, sealed) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT (org, identity, message) DO UPDATE SET sealed = excluded.sealed";
constexpr std::string_view delete_expired =
    "DELETE FROM endpoint_opened WHERE org = $1 AND identity = $2 AND expires_at < $3";

class SqlEndpointStore final : public EndpointStore {
 public:
  SqlEndpointStore(sql::Database& database, crypto::KeySealer& sealer, std::string org, Identity identity)
      : database_(database), sealer_(sealer), org_(std::move(org)), identity_(std::move(identity)) {}

  Result<> transaction(const Context& ctx, const std::function<Result<>(Tx&)>& fn) override {
    return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      SqlTx wrapped(*this, tx);
      return fn(wrapped);
    });
  }

  Result<> forget_expired(const Context& ctx, Instant now) override {
    return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec(delete_expired, {org_, identity_.text(), now}));
      return {};
    });
  }

 private:
  class SqlTx final : public Tx {
   public:
    SqlTx(SqlEndpointStore& store, sql::Tx& tx) : store_(store), tx_(tx) {}

    Result<std::optional<PrivateKey>> key(KeyUse use, std::uint32_t id) override {
      const auto rows = CRETO_TRY(tx_.query(select_key, {store_.org_, me(), purpose(use), std::int64_t{id}}));
      return read_key(use, rows);
    }
    Result<std::optional<PrivateKey>> newest_key(KeyUse use) override {
      const auto rows = CRETO_TRY(tx_.query(select_newest_key, {store_.org_, me(), purpose(use)}));
      return read_key(use, rows);
    }
    Result<> put_key(const PrivateKey& key) override {
      const Bytes sealed = CRETO_TRY(store_.sealer_.seal(key_place(key.use, key.id), key.seed.reveal()));
      CRETO_TRY(
          tx_.exec(insert_key, {store_.org_, me(), purpose(key.use), std::int64_t{key.id}, key.created_at, sealed}));
      return {};
    }
    Result<> drop_key(KeyUse use, std::uint32_t id) override {
      CRETO_TRY(tx_.exec(delete_key, {store_.org_, me(), purpose(use), std::int64_t{id}}));
      return {};
    }
    Result<> drop_keys_before(KeyUse use, Instant created) override {
      CRETO_TRY(tx_.exec(delete_old_keys, {store_.org_, me(), purpose(use), created}));
      return {};
    }
    Result<std::uint32_t> fresh_key_id() override {
      const auto rows = CRETO_TRY(tx_.query(next_key_id, {store_.org_, me()}));
      const std::int64_t id = rows.front().integer(0);
      if (id > 0xffffffff) return Error(Product::messaging, ErrorKind::resource_exhausted, "prekey ids are used up");
      return static_cast<std::uint32_t>(id);
    }

    Result<std::optional<Session>> newest_session(const Identity& peer) override {
      const auto rows = CRETO_TRY(tx_.query(select_newest_session, {store_.org_, me(), peer.text()}));
      return read_session(peer, rows);
    }
    Result<std::optional<Session>> session(const Identity& peer, const ByteArray<16>& id) override {
      const auto rows = CRETO_TRY(tx_.query(select_session, {store_.org_, me(), peer.text(), id}));
      return read_session(peer, rows);
    }
    Result<> put_session(const Identity& peer, const Session& session) override {
      const Bytes sealed = CRETO_TRY(store_.sealer_.seal(session_place(peer, session.id), session.state.reveal()));
      const auto use = CRETO_TRY(tx_.query(next_use, {store_.org_, me()}));
      CRETO_TRY(tx_.exec(upsert_session, {store_.org_, me(), peer.text(), session.id, use.front().integer(0), sealed}));
      CRETO_TRY(
          tx_.exec(prune_sessions, {store_.org_, me(), peer.text(), static_cast<std::int64_t>(sessions_per_peer)}));
      return {};
    }
    Result<> drop_sessions(const Identity& peer) override {
      CRETO_TRY(tx_.exec(delete_sessions, {store_.org_, me(), peer.text()}));
      return {};
    }

    Result<bool> note_start(const Hash256& triple) override {
      const std::int64_t inserted = CRETO_TRY(tx_.exec(insert_start, {store_.org_, me(), triple}));
      return inserted == 1;
    }

    Result<std::optional<Opened>> opened(const MessageId& message) override {
      const auto rows = CRETO_TRY(tx_.query(select_opened, {store_.org_, me(), message.to_string()}));
      if (rows.empty()) return std::optional<Opened>();
      Opened out{message, {}};
      if (const auto sealed = rows.front().optional_bytes(0)) {
        out.content = CRETO_TRY(store_.sealer_.unseal(opened_place(message), *sealed));
      }
      return std::optional<Opened>(std::move(out));
    }
    Result<> put_opened(const Opened& opened, Instant expires_at) override {
      sql::Value sealed;
      if (!opened.content.empty()) {
        sealed = CRETO_TRY(store_.sealer_.seal(opened_place(opened.message), opened.content.reveal()));
      }
      CRETO_TRY(tx_.exec(upsert_opened, {store_.org_, me(), opened.message.to_string(), expires_at, sealed}));
      return {};
    }

   private:
    const std::string& me() const { return store_.identity_.text(); }
    static std::int64_t purpose(KeyUse use) { return static_cast<std::int64_t>(use); }

    // What a sealed value is bound to: moved to another place in the table, it does not open.
    std::string key_place(KeyUse use, std::uint32_t id) const {
      return fmt::format("messaging/key:{}/{}/{}/{}", store_.org_, me(), purpose(use), id);
    }
    std::string session_place(const Identity& peer, const ByteArray<16>& id) const {
      return fmt::format("messaging/session:{}/{}/{}/{}", store_.org_, me(), peer.text(), hex(id));
    }
    std::string opened_place(const MessageId& message) const {
      return fmt::format("messaging/opened:{}/{}/{}", store_.org_, me(), message.to_string());
    }

    Result<std::optional<PrivateKey>> read_key(KeyUse use, const sql::Rows& rows) {
      if (rows.empty()) return std::optional<PrivateKey>();
      const auto id = static_cast<std::uint32_t>(rows.front().integer(0));
      Secret seed = CRETO_TRY(store_.sealer_.unseal(key_place(use, id), rows.front().bytes(2)));
      return std::optional<PrivateKey>(PrivateKey{use, id, std::move(seed), rows.front().instant(1)});
    }
    Result<std::optional<Session>> read_session(const Identity& peer, const sql::Rows& rows) {
      if (rows.empty()) return std::optional<Session>();
      Session out;
      CRETO_ASSERT(rows.front().bytes(0).size() == out.id.size());
      std::ranges::copy(rows.front().bytes(0), out.id.begin());
      out.state = CRETO_TRY(store_.sealer_.unseal(session_place(peer, out.id), rows.front().bytes(1)));
      return std::optional<Session>(std::move(out));
    }

    SqlEndpointStore& store_;
    sql::Tx& tx_;
  };

  sql::Database& database_;
  crypto::KeySealer& sealer_;
  const std::string org_;
  const Identity identity_;
};

}  // namespace

Result<std::unique_ptr<EndpointStore>> create_endpoint_store(sql::Database& database, crypto::KeySealer& sealer,
                                                             std::string org, Identity identity) {
  CRETO_TRY(sql::migrate(database, "messaging_endpoint", migrations));
  return std::unique_ptr<EndpointStore>(
      std::make_unique<SqlEndpointStore>(database, sealer, std::move(org), std::move(identity)));
}

}  // namespace creto::messaging
