#include "store.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "creto/common/assert.h"

namespace creto::messaging::store {
namespace {

using contracts::MessagePriority;

// Times are Unix nanoseconds, sandbox is empty where a delivery is for any of the recipient's.
constexpr std::array migrations = {sql::Migration{1, "messages", R"sql(
CREATE TABLE messages (
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  sender TEXT NOT NULL,
  recipient TEXT NOT NULL,
  topic TEXT NOT NULL,
  priority BIGINT NOT NULL CHECK (priority BETWEEN 0 AND 3),
  sent_at BIGINT NOT NULL,
  ttl BIGINT NOT NULL CHECK (ttl > 0),
  accepted_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  digest BYTEA NOT NULL,
  size BIGINT NOT NULL,
  envelope BYTEA,
  PRIMARY KEY (org, id)
);
CREATE INDEX messages_by_acceptance ON messages (accepted_at);
CREATE TABLE message_deliveries (
  org TEXT NOT NULL,
  message TEXT NOT NULL,
  recipient TEXT NOT NULL,
  sandbox TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'delivered', 'read', 'failed')),
  reason TEXT NOT NULL,
  priority BIGINT NOT NULL,
  accepted_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (org, message, recipient, sandbox)
);
CREATE INDEX message_deliveries_waiting ON message_deliveries (org, recipient, priority, accepted_at) WHERE state = 'queued';
CREATE INDEX message_deliveries_expiring ON message_deliveries (expires_at) WHERE state = 'queued';
CREATE INDEX message_deliveries_by_sandbox ON message_deliveries (org, sandbox) WHERE state = 'queued';
CREATE TABLE message_topics (
  org TEXT NOT NULL,
  name TEXT NOT NULL,
  owner TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (org, name)
);
CREATE TABLE message_subscriptions (
  org TEXT NOT NULL,
  id TEXT NOT NULL,
  topic TEXT NOT NULL,
  subscriber TEXT NOT NULL,
  sandbox TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (org, id),
  UNIQUE (org, topic, subscriber, sandbox)
);
CREATE INDEX message_subscriptions_by_sandbox ON message_subscriptions (org, sandbox);
)sql"}};

constexpr std::string_view select_digest = "SELECT digest FROM messages WHERE org = $1 AND id = $2";
constexpr std::string_view insert_message_sql =
    "INSERT INTO messages (org, id, sender, recipient, topic, priority, sent_at, ttl, accepted_at, expires_at, digest, "
    "size, "
    "envelope) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
constexpr std::string_view insert_delivery_sql =
    "INSERT INTO message_deliveries (org, message, recipient, sandbox, state, reason, priority, accepted_at, "
    "expires_at, "
    "updated_at) VALUES ($1, $2, $3, $4, 'queued', '', $5, $6, $7, $6)";
constexpr std::string_view count_queued =
    "SELECT COUNT(*) FROM message_deliveries WHERE org = $1 AND recipient = $2 AND state = 'queued'";
constexpr std::string_view select_queued =
    "SELECT m.id, m.sender, m.topic, m.priority, m.sent_at, m.ttl, m.accepted_at, m.envelope "
    "FROM message_deliveries d JOIN messages m ON m.org = d.org AND m.id = d.message "
    "WHERE d.org = $1 AND d.recipient = $2 AND d.state = 'queued' AND d.sandbox IN ('', $3) AND d.expires_at > $4 "
    "ORDER BY d.priority DESC, d.accepted_at, d.message LIMIT $5";
constexpr std::string_view delivery_columns =
    "SELECT d.recipient, d.sandbox, d.state, d.reason, d.updated_at, m.id, m.sender, m.size, m.priority "
    "FROM message_deliveries d JOIN messages m ON m.org = d.org AND m.id = d.message ";
constexpr std::string_view update_state =
    "UPDATE message_deliveries SET state = $5, reason = $6, updated_at = $7 "
    "WHERE org = $1 AND message = $2 AND recipient = $3 AND sandbox = $4";
constexpr std::string_view drop_envelope =
    "UPDATE messages SET envelope = NULL WHERE org = $1 AND id = $2 AND NOT EXISTS "
    "(SELECT 1 FROM message_deliveries WHERE org = $1 AND message = $2 AND state = 'queued')";
constexpr std::string_view select_status =
    "SELECT sender, topic, accepted_at, expires_at FROM messages WHERE org = $1 AND id = $2";
constexpr std::string_view select_topic =
    "SELECT name, owner, created_at FROM message_topics WHERE org = $1 AND name = $2";
constexpr std::string_view select_topics =
    "SELECT name, owner, created_at FROM message_topics WHERE org = $1 ORDER BY name LIMIT $2";
constexpr std::string_view insert_topic_sql =
    "INSERT INTO message_topics (org, name, owner, created_at) VALUES ($1, $2, $3, $4)";
constexpr std::string_view subscription_columns =
    "SELECT id, topic, subscriber, sandbox, created_at FROM message_subscriptions ";
constexpr std::string_view insert_subscription_sql =
    "INSERT INTO message_subscriptions (org, id, topic, subscriber, sandbox, created_at) VALUES ($1, $2, $3, $4, $5, "
    "$6)";
constexpr std::string_view delete_subscription_sql = "DELETE FROM message_subscriptions WHERE org = $1 AND id = $2";
constexpr std::string_view forget_deliveries =
    "DELETE FROM message_deliveries WHERE state <> 'queued' AND accepted_at < $1 AND expires_at < $2";
constexpr std::string_view forget_messages =
    "DELETE FROM messages WHERE accepted_at < $1 AND expires_at < $2 AND NOT EXISTS "
    "(SELECT 1 FROM message_deliveries d WHERE d.org = messages.org AND d.message = messages.id)";

std::string text_of(const std::optional<SandboxId>& sandbox) { return sandbox ? sandbox->to_string() : std::string(); }

std::optional<SandboxId> sandbox_of(const std::string& text) {
  if (text.empty()) return std::nullopt;
  auto parsed = SandboxId::parse(text);
  CRETO_ASSERT(parsed);
  return *parsed;
}

// What we wrote, so it parses.
template <class T>
T stored(Result<T> parsed) {
  CRETO_ASSERT(parsed);
  return *std::move(parsed);
}

DeliveryRow read_delivery(const sql::Row& row) {
  return {.delivery = {.recipient = stored(Identity::parse(row.text(0))),
                       .sandbox = sandbox_of(row.text(1)),
                       .state = stored(delivery_state_from_string(row.text(2))),
                       .reason = row.text(3),
                       .updated_at = row.instant(4)},
          .message = stored(MessageId::parse(row.text(5))),
          .sender = stored(Identity::parse(row.text(6))),
          .size = row.integer(7),
          .priority = static_cast<MessagePriority>(row.integer(8))};
}

Subscription read_subscription(const sql::Row& row) {
  return {.id = stored(TopicSubscriptionId::parse(row.text(0))),
          .topic = row.text(1),
          .subscriber = stored(Identity::parse(row.text(2))),
          .sandbox = sandbox_of(row.text(3)),
          .created_at = row.instant(4)};
}

Topic read_topic(const sql::Row& row) {
  return {.name = row.text(0), .owner = stored(Identity::parse(row.text(1))), .created_at = row.instant(2)};
}

std::string deliveries_where(std::string_view condition) {
  return std::string(delivery_columns).append("WHERE ").append(condition);
}
std::string subscriptions_where(std::string_view condition) {
  return std::string(subscription_columns).append("WHERE ").append(condition);
}

template <class T, class F>
std::vector<T> all(const sql::Rows& rows, F read) {
  std::vector<T> out;
  out.reserve(rows.size());
  for (const sql::Row row : rows) out.push_back(read(row));
  return out;
}

}  // namespace

Result<> migrate(sql::Database& database) { return sql::migrate(database, "messaging", migrations); }

Result<std::optional<Hash256>> digest_of(sql::Tx& tx, const std::string& org, const MessageId& id) {
  const auto rows = CRETO_TRY(tx.query(select_digest, {org, id.to_string()}));
  if (rows.empty()) return std::optional<Hash256>();
  Hash256 digest;
  CRETO_ASSERT(rows.front().bytes(0).size() == digest.size());
  std::ranges::copy(rows.front().bytes(0), digest.begin());
  return std::optional<Hash256>(digest);
}

Result<> insert_message(sql::Tx& tx, const std::string& org, const Accepted& accepted) {
  const auto& message = accepted.message;
  CRETO_TRY(tx.exec(insert_message_sql,
                    {org, message.message_id.to_string(), message.sender.text(), message.recipient.text(),
                     message.topic, static_cast<std::int64_t>(message.priority), message.sent_at, message.ttl.count(),
                     accepted.accepted_at, message.sent_at + message.ttl, accepted.digest,
                     static_cast<std::int64_t>(message.envelope.size()), message.envelope}));
  return {};
}

Result<> insert_delivery(sql::Tx& tx, const std::string& org, const Accepted& accepted, const Target& target) {
  const auto& message = accepted.message;
  CRETO_TRY(tx.exec(insert_delivery_sql, {org, message.message_id.to_string(), target.recipient.text(),
                                          text_of(target.sandbox), static_cast<std::int64_t>(message.priority),
                                          accepted.accepted_at, message.sent_at + message.ttl}));
  return {};
}

Result<std::int64_t> queued_for(sql::Tx& tx, const std::string& org, const Identity& recipient) {
  const auto rows = CRETO_TRY(tx.query(count_queued, {org, recipient.text()}));
  return rows.front().integer(0);
}

Result<std::vector<contracts::ReceivedMessage>> queued(sql::Tx& tx, const std::string& org, const Identity& recipient,
                                                       const std::optional<SandboxId>& sandbox, Instant now,
                                                       std::size_t limit) {
  const auto rows = CRETO_TRY(
      tx.query(select_queued, {org, recipient.text(), text_of(sandbox), now, static_cast<std::int64_t>(limit)}));
  return all<contracts::ReceivedMessage>(rows, [&](const sql::Row& row) {
    return contracts::ReceivedMessage{.message = {.message_id = stored(MessageId::parse(row.text(0))),
                                                  .sender = stored(Identity::parse(row.text(1))),
                                                  .recipient = recipient,
                                                  .topic = row.text(2),
                                                  .priority = static_cast<MessagePriority>(row.integer(3)),
                                                  .sent_at = row.instant(4),
                                                  .ttl = Nanos(row.integer(5)),
                                                  .envelope = row.bytes(7)},
                                      .accepted_at = row.instant(6)};
  });
}

Result<std::optional<DeliveryRow>> find_delivery(sql::Tx& tx, const std::string& org, const MessageId& message,
                                                 const Identity& recipient, const std::optional<SandboxId>& sandbox) {
  const auto rows = CRETO_TRY(tx.query(deliveries_where("d.org = $1 AND d.message = $2 AND d.recipient = $3 AND "
                                                        "d.sandbox IN ('', $4) ORDER BY d.sandbox DESC LIMIT 1"),
                                       {org, message.to_string(), recipient.text(), text_of(sandbox)}));
  if (rows.empty()) return std::optional<DeliveryRow>();
  return std::optional<DeliveryRow>(read_delivery(rows.front()));
}

Result<> set_state(sql::Tx& tx, const std::string& org, const DeliveryRow& row, DeliveryState state,
                   const std::string& reason, Instant now) {
  CRETO_TRY(tx.exec(update_state, {org, row.message.to_string(), row.delivery.recipient.text(),
                                   text_of(row.delivery.sandbox), to_string(state), reason, now}));
  return {};
}

Result<> drop_envelope_if_done(sql::Tx& tx, const std::string& org, const MessageId& message) {
  CRETO_TRY(tx.exec(drop_envelope, {org, message.to_string()}));
  return {};
}

Result<std::optional<MessageStatus>> status(sql::Tx& tx, const std::string& org, const MessageId& message) {
  const auto rows = CRETO_TRY(tx.query(select_status, {org, message.to_string()}));
  if (rows.empty()) return std::optional<MessageStatus>();
  const sql::Row row = rows.front();
  MessageStatus out{.id = message,
                    .sender = stored(Identity::parse(row.text(0))),
                    .topic = row.text(1),
                    .accepted_at = row.instant(2),
                    .expires_at = row.instant(3)};
  const auto deliveries = CRETO_TRY(tx.query(
      deliveries_where("d.org = $1 AND d.message = $2 ORDER BY d.recipient, d.sandbox"), {org, message.to_string()}));
  for (const sql::Row delivery : deliveries) out.deliveries.push_back(read_delivery(delivery).delivery);
  return std::optional<MessageStatus>(std::move(out));
}

Result<std::optional<Topic>> find_topic(sql::Tx& tx, const std::string& org, const std::string& name) {
  const auto rows = CRETO_TRY(tx.query(select_topic, {org, name}));
  if (rows.empty()) return std::optional<Topic>();
  return std::optional<Topic>(read_topic(rows.front()));
}

Result<> insert_topic(sql::Tx& tx, const std::string& org, const Topic& topic) {
  CRETO_TRY(tx.exec(insert_topic_sql, {org, topic.name, topic.owner.text(), topic.created_at}));
  return {};
}

Result<std::vector<Topic>> topics(sql::Tx& tx, const std::string& org, std::size_t limit) {
  const auto rows = CRETO_TRY(tx.query(select_topics, {org, static_cast<std::int64_t>(limit)}));
  return all<Topic>(rows, read_topic);
}

Result<std::vector<Subscription>> subscriptions_of(sql::Tx& tx, const std::string& org, const std::string& topic) {
  const auto rows =
      CRETO_TRY(tx.query(subscriptions_where("org = $1 AND topic = $2 ORDER BY subscriber, sandbox"), {org, topic}));
  return all<Subscription>(rows, read_subscription);
}

Result<std::optional<Subscription>> find_subscription(sql::Tx& tx, const std::string& org,
                                                      const TopicSubscriptionId& id) {
  const auto rows = CRETO_TRY(tx.query(subscriptions_where("org = $1 AND id = $2"), {org, id.to_string()}));
  if (rows.empty()) return std::optional<Subscription>();
  return std::optional<Subscription>(read_subscription(rows.front()));
}

Result<> insert_subscription(sql::Tx& tx, const std::string& org, const Subscription& subscription) {
  CRETO_TRY(tx.exec(insert_subscription_sql,
                    {org, subscription.id.to_string(), subscription.topic, subscription.subscriber.text(),
                     text_of(subscription.sandbox), subscription.created_at}));
  return {};
}

Result<> delete_subscription(sql::Tx& tx, const std::string& org, const TopicSubscriptionId& id) {
  CRETO_TRY(tx.exec(delete_subscription_sql, {org, id.to_string()}));
  return {};
}

Result<std::vector<Subscription>> subscriptions_in(sql::Tx& tx, const std::string& org, const SandboxId& sandbox) {
  const auto rows =
      CRETO_TRY(tx.query(subscriptions_where("org = $1 AND sandbox = $2 ORDER BY id"), {org, sandbox.to_string()}));
  return all<Subscription>(rows, read_subscription);
}

Result<std::vector<DeliveryRow>> queued_in(sql::Tx& tx, const std::string& org, const SandboxId& sandbox) {
  const auto rows =
      CRETO_TRY(tx.query(deliveries_where("d.org = $1 AND d.sandbox = $2 AND d.state = 'queued' ORDER BY d.message"),
                         {org, sandbox.to_string()}));
  return all<DeliveryRow>(rows, read_delivery);
}

Result<std::vector<Expired>> expired(sql::Tx& tx, Instant now, std::size_t limit) {
  const std::string text =
      "SELECT d.recipient, d.sandbox, d.state, d.reason, d.updated_at, m.id, m.sender, m.size, m.priority, d.org "
      "FROM message_deliveries d JOIN messages m ON m.org = d.org AND m.id = d.message "
      "WHERE d.state = 'queued' AND d.expires_at <= $1 ORDER BY d.expires_at LIMIT $2";
  const auto rows = CRETO_TRY(tx.query(text, {now, static_cast<std::int64_t>(limit)}));
  return all<Expired>(rows, [](const sql::Row& row) { return Expired{row.text(9), read_delivery(row)}; });
}

Result<std::int64_t> forget(sql::Tx& tx, Instant accepted_before, Instant expired_before) {
  const std::int64_t deliveries = CRETO_TRY(tx.exec(forget_deliveries, {accepted_before, expired_before}));
  const std::int64_t messages = CRETO_TRY(tx.exec(forget_messages, {accepted_before, expired_before}));
  return deliveries + messages;
}

}  // namespace creto::messaging::store
