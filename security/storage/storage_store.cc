#include "storage_store.h"

#include <algorithm>
#include <array>

#include "creto/common/json.h"
#include "storage_codec.h"

namespace creto::storage::store {
namespace {

constexpr std::array migrations{sql::Migration{1, "objects", R"(
CREATE TABLE storage_objects (
  org TEXT NOT NULL,
  bucket TEXT NOT NULL,
  object_key TEXT NOT NULL,
  version TEXT NOT NULL,
  owner TEXT NOT NULL,
  classification TEXT NOT NULL,
  content_type TEXT NOT NULL,
  metadata TEXT NOT NULL,
  size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
  content_hash BYTEA NOT NULL,
  header_hash BYTEA NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  retained_until BIGINT,
  PRIMARY KEY (org, bucket, object_key, version));
CREATE UNIQUE INDEX storage_objects_by_version ON storage_objects (version);
CREATE INDEX storage_objects_by_owner ON storage_objects (org, owner, bucket, object_key);
CREATE INDEX storage_objects_by_expiry ON storage_objects (expires_at);

CREATE TABLE storage_usage (
  org TEXT NOT NULL,
  owner TEXT NOT NULL,
  used_bytes BIGINT NOT NULL CHECK (used_bytes >= 0),
  PRIMARY KEY (org, owner));
)"}};

constexpr std::string_view columns =
    "bucket, object_key, version, owner, classification, content_type, metadata, size_bytes, content_hash, header_hash,"
    " created_at, expires_at, retained_until";

Hash256 hash_of(const Bytes& bytes) {
  Hash256 hash{};
  CRETO_ASSERT(bytes.size() == hash.size());
  std::ranges::copy(bytes, hash.begin());
  return hash;
}

Result<StoredObject> read(const sql::Row& row) {
  auto owner = CRETO_TRY(Identity::parse(row.text(3)));
  const auto classification = CRETO_TRY(classification_from_string(row.text(4)));
  auto metadata = CRETO_TRY(texts_from_json(row.text(6)));
  return StoredObject{
      ObjectMetadata{StorageRef{row.text(0), row.text(1), row.text(2)}, std::move(owner), classification, row.text(5),
                     std::move(metadata), static_cast<std::uint64_t>(row.integer(7)), hash_of(row.bytes(8)),
                     row.instant(10), row.optional_instant(11), row.optional_instant(12)},
      hash_of(row.bytes(9))};
}

Result<std::vector<StoredObject>> read_all(const sql::Rows& rows) {
  std::vector<StoredObject> objects;
  for (const auto& row : rows) {
    auto object = CRETO_TRY(read(row));
    objects.push_back(std::move(object));
  }
  return objects;
}

/// substr counts characters, not bytes, on both databases.
std::int64_t characters(std::string_view utf8) {
  return std::ranges::count_if(utf8, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string select(std::string_view rest) { return std::string("SELECT ").append(columns).append(" ").append(rest); }

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "storage", migrations); }

Result<std::optional<StoredObject>> find(sql::Tx& tx, const Context& ctx, const StorageRef& ref, Instant now) {
  const auto rows = CRETO_TRY(tx.query(
      select("FROM storage_objects WHERE org = $1 AND bucket = $2 AND object_key = $3 AND ($4 = '' OR version = $4)"
             " AND (expires_at IS NULL OR expires_at > $5) ORDER BY version DESC LIMIT 1"),
      {ctx.org, ref.bucket, ref.key, ref.version, now}));
  if (rows.empty()) return std::optional<StoredObject>();
  auto object = CRETO_TRY(read(rows.front()));
  return std::optional<StoredObject>(std::move(object));
}

Result<std::vector<StoredObject>> versions(sql::Tx& tx, const Context& ctx, const StorageRef& ref) {
  const auto rows = CRETO_TRY(tx.query(select("FROM storage_objects WHERE org = $1 AND bucket = $2 AND object_key = $3"
                                              " ORDER BY version DESC LIMIT 1000"),
                                       {ctx.org, ref.bucket, ref.key}));
  return read_all(rows);
}

Result<> insert(sql::Tx& tx, const Context& ctx, const StoredObject& object) {
  const auto& m = object.metadata;
  const auto custom = CRETO_TRY(texts_to_json(m.metadata));
  CRETO_TRY(
      tx.exec("INSERT INTO storage_objects (org, bucket, object_key, version, owner, classification, content_type,"
              " metadata, size_bytes, content_hash, header_hash, created_at, expires_at, retained_until)"
              " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
              {ctx.org, m.ref.bucket, m.ref.key, m.ref.version, m.owner.text(), to_string(m.classification),
               m.content_type, custom, static_cast<std::int64_t>(m.size_bytes), m.content_hash, object.header_hash,
               m.created_at, m.expires_at, m.retained_until}));
  return {};
}

Result<> erase(sql::Tx& tx, const Context& ctx, const StoredObject& object) {
  CRETO_TRY(
      tx.exec("DELETE FROM storage_objects WHERE org = $1 AND version = $2", {ctx.org, object.metadata.ref.version}));
  CRETO_TRY(tx.exec("UPDATE storage_usage SET used_bytes = used_bytes - $3 WHERE org = $1 AND owner = $2",
                    {ctx.org, object.metadata.owner.text(), static_cast<std::int64_t>(object.metadata.size_bytes)}));
  return {};
}

Result<> set_metadata(sql::Tx& tx, const Context& ctx, const StorageRef& ref, std::string_view metadata) {
  CRETO_TRY(tx.exec("UPDATE storage_objects SET metadata = $3 WHERE org = $1 AND version = $2",
                    {ctx.org, ref.version, metadata}));
  return {};
}

Result<std::vector<StoredObject>> list(sql::Tx& tx, const Context& ctx, const ListQuery& query,
                                       const std::pair<std::string, std::string>& after, Instant now) {
  const std::string classification = query.classification ? std::string(to_string(*query.classification)) : "";
  const auto rows = CRETO_TRY(tx.query(
      select("FROM storage_objects WHERE org = $1 AND owner = $2 AND ($3 = '' OR classification = $3)"
             " AND ($4 = '' OR bucket = $4) AND substr(object_key, 1, CAST($5 AS INTEGER)) = $6"
             " AND (bucket > $7 OR (bucket = $7 AND object_key > $8)) AND (expires_at IS NULL OR expires_at > $9)"
             " AND NOT EXISTS (SELECT 1 FROM storage_objects n WHERE n.org = storage_objects.org"
             "  AND n.bucket = storage_objects.bucket AND n.object_key = storage_objects.object_key"
             "  AND n.version > storage_objects.version AND (n.expires_at IS NULL OR n.expires_at > $9))"
             " ORDER BY bucket, object_key LIMIT $10"),
      {ctx.org, query.owner.text(), classification, query.bucket, characters(query.key_prefix), query.key_prefix,
       after.first, after.second, now, static_cast<std::int64_t>(query.limit) + 1}));
  return read_all(rows);
}

Result<std::vector<std::pair<std::string, StoredObject>>> expired(sql::Tx& tx, Instant now, std::size_t limit) {
  const auto rows =
      CRETO_TRY(tx.query(select(", org FROM storage_objects WHERE expires_at <= $1"
                                " AND (retained_until IS NULL OR retained_until <= $1) ORDER BY expires_at LIMIT $2"),
                         {now, static_cast<std::int64_t>(limit)}));
  std::vector<std::pair<std::string, StoredObject>> found;
  for (const auto& row : rows) {
    auto object = CRETO_TRY(read(row));
    found.emplace_back(row.text(13), std::move(object));
  }
  return found;
}

Result<bool> is_known(sql::Tx& tx, std::string_view version) {
  const auto rows = CRETO_TRY(tx.query("SELECT 1 FROM storage_objects WHERE version = $1", {version}));
  return !rows.empty();
}

Result<std::uint64_t> used_bytes(sql::Tx& tx, const Context& ctx, const Identity& owner) {
  const auto rows = CRETO_TRY(
      tx.query("SELECT used_bytes FROM storage_usage WHERE org = $1 AND owner = $2", {ctx.org, owner.text()}));
  return rows.empty() ? 0 : static_cast<std::uint64_t>(rows.front().integer(0));
}

Result<std::uint64_t> add_used(sql::Tx& tx, const Context& ctx, const Identity& owner, std::int64_t bytes) {
  const auto rows = CRETO_TRY(
      tx.query("INSERT INTO storage_usage (org, owner, used_bytes) VALUES ($1, $2, $3) ON CONFLICT (org, owner)"
               " DO UPDATE SET used_bytes = storage_usage.used_bytes + excluded.used_bytes RETURNING used_bytes",
               {ctx.org, owner.text(), bytes}));
  return static_cast<std::uint64_t>(rows.front().integer(0));
}

}  // namespace creto::storage::store
