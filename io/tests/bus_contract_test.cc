#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "bus/subject.h"
#include "creto/io/bus.h"
#include "creto/testing/databases.h"

namespace creto::bus {
namespace {

using namespace std::chrono_literals;

class BusContract : public ::testing::TestWithParam<testing::DatabaseKind> {
 protected:
  void publish(std::string_view subject, std::string_view id, std::string_view body = "{}") {
    auto done = sql::write(*db, ctx, [&](sql::Tx& tx) { return bus::publish(tx, ctx, subject, id, body); });
    ASSERT_TRUE(done) << done.error().to_string();
  }
  void open() { bus = std::move(*create_embedded_bus(*db, system_clock(), no_telemetry(), {.poll_interval = 20ms})); }
  void subscribe(std::string name, std::string pattern, Handler handler, ConsumerOptions options = {}) {
    options.backoff_initial = 1ms;
    auto done = bus->subscribe(std::move(name), std::move(pattern), std::move(handler), options);
    ASSERT_TRUE(done) << done.error().to_string();
  }
  Handler collect() {
    return [this](const BusMessage& message) -> Result<> {
      std::lock_guard lock(mutex);
      received.push_back(message.message_id);
      return {};
    };
  }
  void settle() {
    auto done = bus->wait_until_idle(30s);
    ASSERT_TRUE(done) << done.error().to_string();
  }

  testing::TestDatabase store{GetParam()};
  std::unique_ptr<sql::Database> db = store.open();
  Context ctx;
  std::mutex mutex;
  std::vector<std::string> received;
  std::unique_ptr<Bus> bus;
};

TEST_P(BusContract, DeliversInOrderWhatTheConsumerAskedFor) {
  open();
  subscribe("c", "metering.*", collect());
  std::vector<std::string> expected;
  for (int i = 0; i < 50; ++i) {
    publish("metering.events", "m" + std::to_string(i));
    publish("runtime.lifecycle", "r" + std::to_string(i));
    expected.push_back("m" + std::to_string(i));
  }
  settle();
  EXPECT_EQ(received, expected);
}

TEST_P(BusContract, SendsNothingOfATransactionThatDidNotCommit) {
  open();
  subscribe("c", ">", collect());
  const auto failed = sql::write(*db, ctx, [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(bus::publish(tx, ctx, "a.b", "never", "{}"));
    return Error(Product::platform, ErrorKind::conflict, "no");
  });
  EXPECT_FALSE(failed);
  publish("a.b", "yes");
  settle();
  EXPECT_EQ(received, std::vector<std::string>{"yes"});
}

TEST_P(BusContract, DropsAMessageIdThatWasSentBefore) {
  open();
  subscribe("c", ">", collect());
  publish("a.b", "same");
  settle();
  publish("a.b", "same");
  publish("a.b", "other");
  settle();
  EXPECT_EQ(received, (std::vector<std::string>{"same", "other"}));
}

TEST_P(BusContract, CarriesOrganizationBodyAndTrace) {
  ctx.org = "acme";
  ctx.trace = {.trace_id = "4bf92f3577b34da6a3ce929d0e0e4736", .span_id = "00f067aa0ba902b7", .sampled = true};
  open();
  BusMessage got;
  subscribe("c", "a.>", [&](const BusMessage& message) -> Result<> {
    got = message;
    return {};
  });
  publish("a.b.c", "id", R"({"x":"ü"})");
  settle();
  EXPECT_EQ(got.org, "acme");
  EXPECT_EQ(got.subject, "a.b.c");
  EXPECT_EQ(got.body, R"({"x":"ü"})");
  EXPECT_EQ(got.trace.trace_id, ctx.trace.trace_id);
  EXPECT_EQ(got.trace.span_id, ctx.trace.span_id);
  EXPECT_TRUE(got.trace.sampled);
  EXPECT_EQ(got.attempt, 1u);
}

TEST_P(BusContract, DeliversAgainInPlaceUntilItSucceeds) {
  open();
  std::vector<std::string> seen;
  subscribe("c", ">", [&](const BusMessage& message) -> Result<> {
    seen.push_back(message.message_id + std::to_string(message.attempt));
    if (message.message_id == "b" && message.attempt < 3) {
      return Error(Product::platform, ErrorKind::unavailable, "not yet");
    }
    return {};
  });
  publish("s.t", "a");
  publish("s.t", "b");
  publish("s.t", "c");
  settle();
  EXPECT_EQ(seen, (std::vector<std::string>{"a1", "b1", "b2", "b3", "c1"}));
}

TEST_P(BusContract, PutsWhatNeverSucceedsWithTheDeadLettersAndGoesOn) {
  open();
  std::atomic<int> tries = 0;
  subscribe("c", ">",
            [&](const BusMessage& message) -> Result<> {
              if (message.message_id == "poison") {
                ++tries;
                return Error(Product::platform, ErrorKind::unavailable, "never");
              }
              if (message.message_id == "wrong") return Error(Product::platform, ErrorKind::invalid_input, "bad");
              return collect()(message);
            },
            {.attempts_max = 4});
  publish("s.t", "poison", "the body");
  publish("s.t", "wrong");
  publish("s.t", "good");
  settle();
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(received, std::vector<std::string>{"good"});
  const auto letters = *bus->dead_letters("default");
  ASSERT_EQ(letters.size(), 2u);
  const auto poison =
      std::find_if(letters.begin(), letters.end(), [](auto& l) { return l.message.message_id == "poison"; });
  EXPECT_EQ(poison->consumer, "c");
  EXPECT_EQ(poison->message.body, "the body");
  EXPECT_EQ(poison->message.attempt, 4u);
  EXPECT_NE(poison->error.find("never"), std::string::npos);
}

TEST_P(BusContract, DeliversWhatArrivedTogetherAtOnce) {
  for (int i = 0; i < 30; ++i) {
    publish("s.t", fmt::format("m{:02}", i));
    publish("other", "o" + std::to_string(i));
  }
  open();
  std::vector<std::string> batches;
  const auto done =
      bus->subscribe_batches("c", "s.*",
                             [&](std::span<const BusMessage> batch) {
                               std::vector<Result<>> results;
                               std::string said;
                               for (const BusMessage& message : batch) {
                                 said += message.message_id + " ";
                                 if (message.message_id == "m10" && message.attempt < 3) {
                                   results.emplace_back(Error(Product::platform, ErrorKind::unavailable, "not yet"));
                                 } else if (message.message_id == "m05" || message.message_id == "m29") {
                                   results.emplace_back(Error(Product::platform, ErrorKind::invalid_input, "bad"));
                                 } else {
                                   results.emplace_back();
                                   if (batch.size() == 1 || batch.front().message_id != "m00")
                                     received.push_back(message.message_id);
                                 }
                               }
                               batches.push_back(std::move(said));
                               return results;
                             },
                             {.attempts_max = 4, .backoff_initial = 1ms});
  ASSERT_TRUE(done);
  settle();
  // One with all that was there, the one that failed alone until it was taken, and the rest again.
  ASSERT_EQ(batches.size(), 4u);
  EXPECT_EQ(batches[0].size(), 30u * 4);
  EXPECT_EQ(batches[1], "m10 ");
  EXPECT_EQ(batches[2], "m10 ");
  EXPECT_EQ(batches[3].size(), 19u * 4);
  EXPECT_EQ(received.size(), 19u);
  const auto letters = *bus->dead_letters("default");
  ASSERT_EQ(letters.size(), 2u);
  publish("s.t", "more");
  settle();
  EXPECT_EQ(batches.back(), "more ");
}

TEST_P(BusContract, GoesOnWhereItStoodAfterARestart) {
  open();
  subscribe("c", ">", collect());
  publish("s.t", "a");
  settle();
  bus.reset();
  publish("s.t", "b");
  open();
  subscribe("c", ">", collect());
  subscribe("late", ">", collect(), {.start = ConsumerOptions::Start::newest});
  settle();
  EXPECT_EQ(received, (std::vector<std::string>{"a", "b"}));
}

TEST_P(BusContract, GivesEachConsumerEverything) {
  open();
  std::atomic<int> first = 0, second = 0;
  subscribe("one", ">", [&](const BusMessage&) -> Result<> { return ++first, Result<>(); });
  subscribe("two", "s.*", [&](const BusMessage&) -> Result<> { return ++second, Result<>(); });
  for (int i = 0; i < 20; ++i) publish("s.t", "m" + std::to_string(i));
  settle();
  EXPECT_EQ(first, 20);
  EXPECT_EQ(second, 20);
  EXPECT_FALSE(bus->subscribe("one", ">", collect()));
}

TEST_P(BusContract, LosesNothingOfConcurrentPublishers) {
  open();
  subscribe("c", ">", collect());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) publish("s.t", std::to_string(t) + "-" + std::to_string(i));
    });
  }
  for (auto& thread : threads) thread.join();
  settle();
  ASSERT_EQ(received.size(), 100u);
  // In order for each publisher, because each waited for its commit.
  for (int t = 0; t < 4; ++t) {
    int next = 0;
    for (const auto& id : received) {
      if (id.starts_with(std::to_string(t) + "-")) {
        EXPECT_EQ(id, std::to_string(t) + "-" + std::to_string(next));
        ++next;
      }
    }
  }
}

TEST_P(BusContract, LosesNothingWhenTheProcessIsKilled) {
  // The child publishes, acknowledges over the pipe what has committed, consumes at the same time, and is killed.
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  db.reset();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    db = store.open();
    open();
    static_cast<void>(bus->subscribe("c", ">", [](const BusMessage&) -> Result<> { return {}; }, {}));
    for (std::uint32_t i = 0;; ++i) {
      auto done =
          sql::write(*db, ctx, [&](sql::Tx& tx) { return bus::publish(tx, ctx, "s.t", std::to_string(i), "{}"); });
      if (!done || ::write(pipe_ends[1], &i, sizeof i) != sizeof i) ::_exit(1);
    }
  }
  ::close(pipe_ends[1]);
  std::uint32_t last = 0;
  while (last < 40 && ::read(pipe_ends[0], &last, sizeof last) == sizeof last) {
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  while (::read(pipe_ends[0], &last, sizeof last) == sizeof last) {
  }
  ::close(pipe_ends[0]);
  ASSERT_GE(last, 40u);

  db = store.open();
  open();
  // A consumer that had not met the bus sees everything that was acknowledged, once and in order.
  subscribe("fresh", ">", collect());
  subscribe("c", ">", [](const BusMessage&) -> Result<> { return {}; });
  settle();
  ASSERT_GE(received.size(), last + 1u);
  for (std::size_t i = 0; i < received.size(); ++i) EXPECT_EQ(received[i], std::to_string(i));
}

INSTANTIATE_TEST_SUITE_P(, BusContract, both_databases(), database_name);

TEST(Subject, MatchesByToken) {
  EXPECT_TRUE(matches("a.b", "a.b"));
  EXPECT_FALSE(matches("a.b", "a.bc"));
  EXPECT_FALSE(matches("a.b", "a"));
  EXPECT_FALSE(matches("a", "a.b"));
  EXPECT_TRUE(matches("a.*", "a.b"));
  EXPECT_FALSE(matches("a.*", "a.b.c"));
  EXPECT_TRUE(matches("a.>", "a.b.c"));
  EXPECT_FALSE(matches("a.>", "a"));
  EXPECT_TRUE(matches(">", "a"));
  EXPECT_TRUE(matches("*.b", "a.b"));
}

TEST(Subject, RefusesWhatNatsWouldRefuse) {
  for (const char* bad : {"", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "ä", "1.2.3.4.5.6.7.8.9"}) {
    EXPECT_FALSE(is_valid_subject(bad)) << bad;
  }
  EXPECT_TRUE(is_valid_subject("metering.events.runtime"));
  EXPECT_TRUE(is_valid_pattern("metering.*.runtime"));
  EXPECT_FALSE(is_valid_pattern("metering.>.runtime"));
  EXPECT_FALSE(is_valid_pattern("metering.a*"));
}

}  // namespace
}  // namespace creto::bus
