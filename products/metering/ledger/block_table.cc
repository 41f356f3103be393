#include <fmt/format.h>

#include <mutex>
#include <optional>
#include <utility>

#include "block_log.h"
#include "creto/common/assert.h"
#include "creto/common/clock.h"
#include "creto/common/identity.h"
#include "creto/crypto/hash.h"
#include "creto/io/sql.h"
#include "layout.h"

namespace creto::metering {
namespace {

constexpr sql::Migration migrations[] = {{1, "usage_log", R"(
CREATE TABLE metering_blocks (
  segment BIGINT NOT NULL, place BIGINT NOT NULL, hash BYTEA NOT NULL, content BYTEA NOT NULL,
  PRIMARY KEY (segment, place));
CREATE TABLE metering_log_owner (
  one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1), epoch BIGINT NOT NULL, segment BIGINT NOT NULL);
INSERT INTO metering_log_owner (one, epoch, segment) VALUES (1, 0, 1)
)"},
                                         {2, "usage_base", R"(
CREATE TABLE metering_log_base (part BIGINT NOT NULL PRIMARY KEY, content BYTEA NOT NULL)
)"}};

constexpr std::size_t base_part = 8 << 20;

Hash256 hash_of(const Hash256& before, BytesView content) {
  crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
  hasher.update(before);
  hasher.update(content);
  return hasher.finish();
}

Hash256 hash_in(const sql::Row& row, std::size_t column) {
  Hash256 hash{};
  const Bytes& bytes = row.bytes(column);
  if (bytes.size() == hash.size()) std::ranges::copy(bytes, hash.begin());
  return hash;
}

class BlockTable final : public BlockLog {
 public:
  explicit BlockTable(sql::Database& database)
      : database_(database), ctx_(Context::of_service(Identity::service("metering").value())) {}

  Result<> open() {
    CRETO_TRY(sql::migrate(database_, "metering_log", migrations));
    CRETO_TRY(database_.transaction(ctx_, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("UPDATE metering_log_owner SET epoch = epoch + 1"));
      const sql::Rows owner = CRETO_TRY(tx.query("SELECT epoch, segment FROM metering_log_owner"));
      epoch_ = owner.front().integer(0);
      end_ = {static_cast<std::uint32_t>(owner.front().integer(1)), 0};
      opened_ = CRETO_TRY(read_base(tx));
      if (opened_) start_ = {opened_->segment, opened_->before};
      head_ = start_.before;
      const sql::Rows last = CRETO_TRY(
          tx.query("SELECT segment, place, hash FROM metering_blocks ORDER BY segment DESC, place DESC LIMIT 1"));
      if (last.empty()) return {};
      head_ = hash_in(last.front(), 2);
      if (last.front().integer(0) == end_.segment)
        end_.offset = static_cast<std::uint32_t>(last.front().integer(1)) + 1;
      return {};
    }));
    return remove_cut();
  }

  BlockAddress begin() const override { return {1, 0}; }
  BlockAddress end() const override { return end_; }
  Hash256 head() const override { return head_; }

  Result<> append(BytesView block) override {
    if (block.size() > block_bytes_max) {
      return Error(Product::metering, ErrorKind::too_large, fmt::format("block: is over {} bytes", block_bytes_max));
    }
    const Hash256 hash = hash_of(head_, block);
    // A commit whose answer was lost may have happened: the same block at the same place is then a success.
    CRETO_TRY(own([&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec(
          "INSERT INTO metering_blocks (segment, place, hash, content) VALUES ($1, $2, $3, $4) "
          "ON CONFLICT (segment, place) DO UPDATE SET hash = excluded.hash, content = excluded.content",
          {static_cast<std::int64_t>(end_.segment), static_cast<std::int64_t>(end_.offset), hash, to_bytes(block)}));
      return {};
    }));
    ++end_.offset;
    head_ = hash;
    return {};
  }

  Result<> seal() override {
    if (end_.offset == 0) return {};
    CRETO_TRY(own([&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("UPDATE metering_log_owner SET segment = $1", {static_cast<std::int64_t>(end_.segment) + 1}));
      return {};
    }));
    end_ = {end_.segment + 1, 0};
    return {};
  }

  Result<Bytes> read(BlockAddress address) override {
    Bytes content;
    CRETO_TRY(database_.read(ctx_, [&](sql::Tx& tx) -> Result<> {
      const sql::Rows rows =
          CRETO_TRY(tx.query("SELECT content FROM metering_blocks WHERE segment = $1 AND place = $2",
                             {static_cast<std::int64_t>(address.segment), static_cast<std::int64_t>(address.offset)}));
      if (rows.empty()) return damaged(address);
      content = rows.front().bytes(0);
      return {};
    }));
    return content;
  }

  Result<> scan(BlockAddress from, BlockAddress until, const Visit& visit) override {
    constexpr std::int64_t page = 64;
    std::optional<Hash256> before;
    const Start start = this->start();
    if (from.segment == start.segment && from.offset == 0) before = start.before;
    BlockAddress at = from;
    for (;;) {
      std::optional<sql::Rows> rows;
      CRETO_TRY(database_.read(ctx_, [&](sql::Tx& tx) -> Result<> {
        rows = CRETO_TRY(
            tx.query("SELECT segment, place, hash, content FROM metering_blocks "
                     "WHERE (segment, place) >= ($1, $2) AND (segment, place) < ($3, $4) "
                     "ORDER BY segment, place LIMIT $5",
                     {static_cast<std::int64_t>(at.segment), static_cast<std::int64_t>(at.offset),
                      static_cast<std::int64_t>(until.segment), static_cast<std::int64_t>(until.offset), page}));
        return {};
      }));
      for (const sql::Row row : *rows) {
        at = {static_cast<std::uint32_t>(row.integer(0)), static_cast<std::uint32_t>(row.integer(1))};
        const Hash256 hash = hash_in(row, 2);
        const Bytes& content = row.bytes(3);
        if (before && hash_of(*before, content) != hash) return damaged(at);
        before = hash;
        CRETO_TRY(visit(at, content, hash));
        ++at.offset;
      }
      if (std::ssize(*rows) < page) return {};
    }
  }

  Result<std::optional<LogBase>> base() override {
    if (opened_) return std::exchange(opened_, std::nullopt);
    std::optional<LogBase> base;
    CRETO_TRY(database_.read(ctx_, [&](sql::Tx& tx) -> Result<> {
      base = CRETO_TRY(read_base(tx));
      return {};
    }));
    return base;
  }

  Result<> cut(const LogBase& base, const Vouch& vouch) override {
    CRETO_ASSERT(base.segment > start().segment);
    const Bytes bytes = encode_base(base);
    CRETO_TRY(vouch(hash_of_base(bytes)));
    CRETO_TRY(own([&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("DELETE FROM metering_log_base"));
      for (std::size_t at = 0; at < bytes.size(); at += base_part) {
        const BytesView part = BytesView(bytes).subspan(at, std::min(base_part, bytes.size() - at));
        CRETO_TRY(tx.exec("INSERT INTO metering_log_base (part, content) VALUES ($1, $2)",
                          {static_cast<std::int64_t>(at / base_part), to_bytes(part)}));
      }
      return {};
    }));
    const std::scoped_lock lock(start_mutex_);
    start_ = {base.segment, base.before};
    return {};
  }

  Result<> remove_cut() override {
    const auto first = static_cast<std::int64_t>(start().segment);
    if (first == 1) return {};
    return own([&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.exec("DELETE FROM metering_blocks WHERE segment < $1", {first}));
      return {};
    });
  }

 private:
  /// The first segment that is held, and the hash of the block before it.
  struct Start {
    std::uint32_t segment = 1;
    Hash256 before{};
  };
  Start start() const {
    const std::scoped_lock lock(start_mutex_);
    return start_;
  }
  static Result<std::optional<LogBase>> read_base(sql::Tx& tx) {
    const sql::Rows parts = CRETO_TRY(tx.query("SELECT content FROM metering_log_base ORDER BY part"));
    if (parts.empty()) return std::optional<LogBase>();
    Bytes bytes;
    for (const sql::Row part : parts) layout::put_bytes(bytes, part.bytes(0));
    LogBase base = CRETO_TRY(decode_base(bytes));
    return std::optional(std::move(base));
  }
  static Error damaged(BlockAddress address) {
    return Error(Product::metering, ErrorKind::hash_mismatch,
                 fmt::format("usage log: block {} of segment {} is damaged", address.offset, address.segment));
  }

  /// A transaction that fails where another process has opened the log since.
  Result<> own(const sql::TxFunction& fn) {
    return database_.transaction(ctx_, [&](sql::Tx& tx) -> Result<> {
      const std::int64_t mine =
          CRETO_TRY(tx.exec("UPDATE metering_log_owner SET epoch = epoch WHERE epoch = $1", {epoch_}));
      if (mine == 0) {
        return Error(Product::metering, ErrorKind::conflict, "the usage log: another process has taken it over");
      }
      return fn(tx);
    });
  }

  sql::Database& database_;
  const Context ctx_;
  std::int64_t epoch_ = 0;
  BlockAddress end_{1, 0};
  Hash256 head_{};
  mutable std::mutex start_mutex_;
  Start start_;
  std::optional<LogBase> opened_;  ///< of the start, until it is asked for
};

}  // namespace

Result<std::unique_ptr<BlockLog>> open_block_table(sql::Database& database) {
  auto log = std::make_unique<BlockTable>(database);
  CRETO_TRY(log->open());
  return std::unique_ptr<BlockLog>(std::move(log));
}

}  // namespace creto::metering
