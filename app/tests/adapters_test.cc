// Agents' endpoints over the real messaging service: what the runtime and invoices send and receive through.

#include "adapters.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "creto/authz/authz.h"
#include "creto/consensus/timestamp_source.h"
#include "creto/crypto/hash.h"
#include "creto/io/bus.h"
#include "creto/io/files.h"
#include "creto/io/http_server.h"
#include "creto/io/sql.h"
#include "creto/messaging/messaging.h"
#include "creto/nhi/nhi.h"
#include "creto/testing/databases.h"
#include "creto/testing/fake_clock.h"
#include "creto/testing/human.h"
#include "creto/testing/sealer.h"
#include "creto/testing/temp_dir.h"

namespace creto::app {
namespace {

class NoCosts final : public contracts::MessageCostTracker {
 public:
  Result<EventId> track_message_event(const Context&, const contracts::MessageBillableEvent&) override {
    return EventId::fresh(system_clock().now());
  }
  Result<contracts::QuotaDecision> check_message_quota(const Context&, const Identity&,
                                                       contracts::MessageEventType) override {
    return contracts::QuotaDecision();
  }
};

class AgentEndpointsTest : public ::testing::Test {
 protected:
  AgentEndpointsTest() {
    const Context test = as(*Identity::service("test"));
    EXPECT_TRUE(authz_->create_policy(test, "all", "permit (principal, action, resource);"));
    const creto::testing::Human ada(*nhi, "ada@example.com");
    for (const char* name : {"alice", "bob", "carol"})
      agents.push_back(nhi->register_agent(as(ada.identity), {.name = name}).value().identity);
    EXPECT_TRUE(messaging->create_topic(as(alice()), "news"));
  }

  static Context as(const Identity& identity) { return Context::of(identity, {identity}); }
  const Identity& alice() const { return agents[0]; }
  const Identity& bob() const { return agents[1]; }
  const Identity& carol() const { return agents[2]; }

  Result<contracts::ReceivedMessage> next_for(const Identity& agent) {
    auto waiting = CRETO_TRY(messaging->receive(as(agent), {}));
    if (waiting.empty()) return Error(Product::messaging, ErrorKind::not_found, "nothing waits");
    return std::move(waiting.front());
  }
  std::string text_for(const Identity& agent) {
    const auto next = next_for(agent);
    if (!next) return next.error().to_string();
    const auto opened = endpoints->open(as(agent), agent, *next);
    return opened ? opened->body : opened.error().to_string();
  }

  creto::testing::FakeClock clock{system_clock().now()};
  creto::testing::TestDatabase database{creto::testing::DatabaseKind::sqlite, clock};
  creto::testing::TestSealer sealer;
  NoCosts costs;
  std::unique_ptr<sql::Database> db = database.open();
  std::unique_ptr<nhi::Nhi> nhi = nhi::create_nhi(*db, sealer, clock).value();
  std::unique_ptr<authz::Authz> authz_ =
      authz::create_authz(*db, clock, no_telemetry(), {}, Secret(Bytes(32, 7))).value();
  std::unique_ptr<consensus::CeilingStore> ceiling = consensus::create_ceiling_store(*db, "test").value();
  std::unique_ptr<consensus::TimestampSource> timestamps =
      consensus::create_timestamp_source(*ceiling, clock, no_telemetry()).value();
  std::unique_ptr<bus::Bus> bus = bus::create_embedded_bus(*db, clock, no_telemetry()).value();
  std::unique_ptr<messaging::Messaging> messaging =
      messaging::create_messaging({*db, *bus, *nhi, *authz_, costs, *timestamps, clock, no_telemetry()}).value();
  std::unique_ptr<AgentEndpoints> endpoints = agent_endpoints(*db, sealer, *nhi, *messaging, clock);
  std::vector<Identity> agents;
};

TEST_F(AgentEndpointsTest, ATopicMessageOpensForEverySubscriber) {
  const auto nobody = endpoints->seal_for_topic(as(alice()), alice(), "news", "number 1");
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().kind(), ErrorKind::recipient_not_found);
  ASSERT_TRUE(messaging->subscribe(as(bob()), "news", {}));
  ASSERT_TRUE(messaging->subscribe(as(carol()), "news", {}));
  const auto sealed = endpoints->seal_for_topic(as(alice()), alice(), "news", "number 2");
  ASSERT_TRUE(sealed) << sealed.error().to_string();
  const auto sent = messaging->send(as(alice()), *sealed);
  ASSERT_TRUE(sent) << sent.error().to_string();
  EXPECT_EQ(text_for(bob()), "number 2");
  EXPECT_EQ(text_for(carol()), "number 2");
}

TEST_F(AgentEndpointsTest, WhatWasAcknowledgedIsForgotten) {
  const auto sealed = endpoints->seal(as(alice()), alice(), bob(), "hello");
  ASSERT_TRUE(sealed) << sealed.error().to_string();
  ASSERT_TRUE(messaging->send(as(alice()), *sealed));
  const auto received = next_for(bob()).value();
  EXPECT_EQ(endpoints->open(as(bob()), bob(), received).value().body, "hello");
  EXPECT_EQ(endpoints->open(as(bob()), bob(), received).value().body, "hello") << "kept until it is acknowledged";
  ASSERT_TRUE(endpoints->acknowledge(as(bob()), bob(), received.message.message_id));
  const auto again = endpoints->open(as(bob()), bob(), received);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().kind(), ErrorKind::conflict);
}

TEST_F(AgentEndpointsTest, PrekeysThatWereUsedUpOrAgedAreRenewed) {
  // Its first use publishes bob's keys.
  ASSERT_TRUE(endpoints->acknowledge(as(bob()), bob(), MessageId::fresh(clock.now())));
  const auto full = nhi->prekey_count(as(bob()), bob()).value().one_time;
  const auto before = nhi->take_key_bundle(as(alice()), bob()).value();
  EXPECT_LT(nhi->prekey_count(as(bob()), bob()).value().one_time, full);
  clock.advance(std::chrono::days(8));
  ASSERT_TRUE(endpoints->publish_keys(as(*Identity::service("creto"))));
  EXPECT_EQ(nhi->prekey_count(as(bob()), bob()).value().one_time, full);
  const auto after = nhi->take_key_bundle(as(alice()), bob()).value();
  EXPECT_NE(after.signed_prekey.id, before.signed_prekey.id);
}

TEST_F(AgentEndpointsTest, PrekeysFollowARotationOfTheKeys) {
  ASSERT_TRUE(endpoints->acknowledge(as(bob()), bob(), MessageId::fresh(clock.now())));
  const Context self = as(*Identity::service("creto"));
  const auto before = nhi->take_key_bundle(as(alice()), bob()).value();
  const auto rotated = nhi->rotate_keys(self, bob(), {.compromised = true});
  ASSERT_TRUE(rotated) << rotated.error().to_string();
  EXPECT_FALSE(nhi->take_key_bundle(as(alice()), bob())) << "what the stolen keys vouch for is not given out";
  ASSERT_TRUE(endpoints->follow_rotations(self));
  EXPECT_EQ(nhi->take_key_bundle(as(alice()), bob()).value().keys.key_id, rotated->key_id);
  const auto count = nhi->prekey_count(as(bob()), bob()).value().one_time;
  ASSERT_TRUE(endpoints->follow_rotations(self));
  EXPECT_EQ(nhi->prekey_count(as(bob()), bob()).value().one_time, count) << "nothing to follow";

  const auto sealed = endpoints->seal(as(alice()), alice(), bob(), "still you?");
  ASSERT_TRUE(sealed) << sealed.error().to_string();
  ASSERT_TRUE(messaging->send(as(alice()), *sealed));
  EXPECT_EQ(text_for(bob()), "still you?");
}

class Everyone final : public AccessControl {
 public:
  Result<> require(const Context&, std::string_view, std::string_view, std::string_view) override { return {}; }
};

class InvoicesTest : public AgentEndpointsTest {
 protected:
  InvoicesTest() {
    EXPECT_TRUE(nhi->ensure_service(self, *self.caller));
    storage::StorageOptions options;
    options.root = directory.path();
    storage = storage::create_storage(*db, io::real_files(), *keys, everyone, clock, no_telemetry(),
                                      Secret(Bytes(32, 5)), options)
                  .value();
    invoice.agent = bob().text();
    invoice.document = "{}";
  }
  std::unique_ptr<Invoices> invoices(const std::string& webhook_url) {
    auto webhook =
        webhook_url.empty() ? nullptr : oversight::create_webhook_notifier(webhook_url, Secret(Bytes(32, 9)), clock);
    auto made = Invoices::create(*storage, std::move(webhook), no_telemetry());
    made->send_messages_through(*messaging, *endpoints);
    return made;
  }

  std::unique_ptr<http::Server> webhook_that_answers() {
    return http::Server::start(
               {.port = 0},
               [this](const http::Request& request) {
                 ++calls;
                 last = request;
                 return http::Response::text(status, "");
               },
               no_telemetry())
        .value();
  }
  static std::string url_of(const http::Server& webhook) { return fmt::format("http://127.0.0.1:{}/", webhook.port()); }

  std::atomic<int> calls = 0;
  std::atomic<int> status = 204;
  http::Request last;  ///< read when the call has been answered
  const Context self = as(*Identity::service("metering"));
  creto::testing::TempDir directory;
  Everyone everyone;
  std::unique_ptr<storage::OwnerKeys> keys = owner_keys_of(*nhi);
  std::unique_ptr<storage::Storage> storage;
  metering::Invoice invoice{.id = InvoiceId::fresh(clock.now()), .subscription = SubscriptionId::fresh(clock.now())};
};

TEST_F(InvoicesTest, ADeliveryThatIsRepeatedIsOneMessage) {
  ASSERT_TRUE(invoices("")->send(self, invoice, {}));
  const auto again = invoices("")->send(self, invoice, {});
  EXPECT_TRUE(again) << again.error().to_string();
  const auto waiting = messaging->receive(as(bob()), {}).value();
  ASSERT_EQ(waiting.size(), 1u);
  EXPECT_THAT(text_for(bob()), ::testing::HasSubstr(invoice.id.to_string()));
}

TEST_F(InvoicesTest, WhoIsGoneIsToldByTheWebhookAlone) {
  const auto webhook = webhook_that_answers();
  ASSERT_TRUE(nhi->revoke_agent(self, bob(), "gone"));
  const auto told = invoices(url_of(*webhook))->send(self, invoice, {});
  EXPECT_TRUE(told) << told.error().to_string();
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(invoices("")->send(self, invoice, {})) << "nobody was told";
}

TEST_F(InvoicesTest, TheWebhookIsSigned) {
  const auto webhook = webhook_that_answers();
  ASSERT_TRUE(invoices(url_of(*webhook))->send(self, invoice, {}));
  EXPECT_EQ(last.header("webhook-id"), invoice.id.to_string());
  const std::string content =
      fmt::format("{}.{}.{}", last.header("webhook-id"), last.header("webhook-timestamp"), last.body);
  EXPECT_EQ(last.header("webhook-signature"), "v1," + base64(crypto::hmac_sha256(Bytes(32, 9), as_bytes(content))));
}

TEST_F(InvoicesTest, AWebhookThatIsDownKeepsNobodyFromHisMessage) {
  const auto webhook = webhook_that_answers();
  status = 503;
  const auto sent = invoices(url_of(*webhook))->send(self, invoice, {});
  ASSERT_FALSE(sent);
  EXPECT_TRUE(sent.error().retryable());
  EXPECT_THAT(text_for(bob()), ::testing::HasSubstr(invoice.id.to_string()));
  status = 204;
  EXPECT_TRUE(invoices(url_of(*webhook))->send(self, invoice, {}));
  EXPECT_EQ(messaging->receive(as(bob()), {}).value().size(), 1u) << "one message";
  status = 410;
  invoice.id = InvoiceId::fresh(clock.now());
  EXPECT_TRUE(invoices(url_of(*webhook))->send(self, invoice, {})) << "it will never be taken there";
}

}  // namespace
}  // namespace creto::app
