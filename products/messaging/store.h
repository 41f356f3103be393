#pragma once

#include <optional>
#include <string>
#include <vector>

#include "creto/io/sql.h"
#include "creto/messaging/messaging.h"

/// Messages, deliveries, topics and subscriptions in SQL. Every function works in the caller's transaction and
/// organization.
namespace creto::messaging::store {

Result<> migrate(sql::Database& database);

struct Accepted {
  contracts::SealedMessage message;
  Instant accepted_at{};
  Hash256 digest{};
};

/// The digest of an accepted message; none where the id is new.
Result<std::optional<Hash256>> digest_of(sql::Tx& tx, const std::string& org, const MessageId& id);
Result<> insert_message(sql::Tx& tx, const std::string& org, const Accepted& accepted);

struct Target {
  Identity recipient;
  std::optional<SandboxId> sandbox;
};
Result<> insert_delivery(sql::Tx& tx, const std::string& org, const Accepted& accepted, const Target& target);
Result<std::int64_t> queued_for(sql::Tx& tx, const std::string& org, const Identity& recipient);
Result<std::vector<contracts::ReceivedMessage>> queued(sql::Tx& tx, const std::string& org, const Identity& recipient,
                                                       const std::optional<SandboxId>& sandbox, Instant now,
                                                       std::size_t limit);

struct DeliveryRow {
  Delivery delivery;
  MessageId message;
  Identity sender;
  std::int64_t size = 0;
  contracts::MessagePriority priority = contracts::MessagePriority::normal;
};
/// Of `message` to `recipient`: the one for `sandbox`, else the one for any.
Result<std::optional<DeliveryRow>> find_delivery(sql::Tx& tx, const std::string& org, const MessageId& message,
                                                 const Identity& recipient, const std::optional<SandboxId>& sandbox);
Result<> set_state(sql::Tx& tx, const std::string& org, const DeliveryRow& row, DeliveryState state,
                   const std::string& reason, Instant now);
/// The bytes go once nobody waits for them any more; the row stays for as long as its id must not come again.
Result<> drop_envelope_if_done(sql::Tx& tx, const std::string& org, const MessageId& message);

Result<std::optional<MessageStatus>> status(sql::Tx& tx, const std::string& org, const MessageId& message);

Result<std::optional<Topic>> find_topic(sql::Tx& tx, const std::string& org, const std::string& name);
Result<> insert_topic(sql::Tx& tx, const std::string& org, const Topic& topic);
Result<std::vector<Topic>> topics(sql::Tx& tx, const std::string& org, std::size_t limit);

Result<std::vector<Subscription>> subscriptions_of(sql::Tx& tx, const std::string& org, const std::string& topic);
Result<std::optional<Subscription>> find_subscription(sql::Tx& tx, const std::string& org,
                                                      const TopicSubscriptionId& id);
Result<> insert_subscription(sql::Tx& tx, const std::string& org, const Subscription& subscription);
Result<> delete_subscription(sql::Tx& tx, const std::string& org, const TopicSubscriptionId& id);
Result<std::vector<Subscription>> subscriptions_in(sql::Tx& tx, const std::string& org, const SandboxId& sandbox);

/// Deliveries that wait for `sandbox` alone.
Result<std::vector<DeliveryRow>> queued_in(sql::Tx& tx, const std::string& org, const SandboxId& sandbox);
/// Deliveries that wait though their message has expired, of every organization, with that organization.
struct Expired {
  std::string org;
  DeliveryRow row;
};
Result<std::vector<Expired>> expired(sql::Tx& tx, Instant now, std::size_t limit);
Result<std::int64_t> forget(sql::Tx& tx, Instant accepted_before, Instant expired_before);

}  // namespace creto::messaging::store
