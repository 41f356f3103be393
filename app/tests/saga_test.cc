#include "saga.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "creto/io/sql.h"
#include "creto/testing/databases.h"

namespace creto::app {
namespace {

struct Killed {};

/// Steps `a`, `b` and `c` that write down what they do, and that fail or die where a test wants it.
class SagaTest : public ::testing::Test {
 protected:
  SagaTest() { open(); }

  /// A new process on the same database.
  void open() {
    std::vector<SagaStep> steps;
    for (const std::string name : {"a", "b", "c"})
      steps.push_back({name, [this, name](const Context& ctx, Json& data) { return act("make " + name, ctx, &data); },
                       [this, name](const Context& ctx, const Json&) { return act("undo " + name, ctx, nullptr); }});
    auto made = Sagas::create(*database_, no_telemetry(), "test", std::move(steps));
    ASSERT_TRUE(made) << made.error().to_string();
    sagas_ = std::move(*made);
  }

  Result<> act(const std::string& what, const Context& ctx, Json* data) {
    keys_.push_back(ctx.idempotency_key);
    if (what == fails_at_ && failures_-- > 0) {
      if (data != nullptr) (*data)["waits_for"] = what;
      return Error(Product::platform, failure_, "it does not work");
    }
    done_.push_back(what);
    if (data != nullptr) (*data)["seen"] = data->value("seen", std::string()) + what.back();
    if (what == dies_at_) throw Killed();
    return {};
  }

  Result<Saga> run() { return sagas_->run(ctx_, Json{{"wanted", "all"}}); }

  void dies_at(const std::string& what) {
    dies_at_ = what;
    EXPECT_THROW(static_cast<void>(run()), Killed);
    dies_at_.clear();
    open();
  }

  creto::testing::TestDatabase store_{creto::testing::DatabaseKind::sqlite};
  std::unique_ptr<sql::Database> database_ = store_.open();
  std::unique_ptr<Sagas> sagas_;
  Context ctx_ = [] {
    Context ctx = Context::of_service(Identity::service("test").value());
    ctx.idempotency_key = "once";
    return ctx;
  }();
  std::vector<std::string> done_, keys_;
  std::string fails_at_, dies_at_;
  ErrorKind failure_ = ErrorKind::conflict;
  int failures_ = 1;
};

using Steps = std::vector<std::string>;

TEST_F(SagaTest, MakesItsStepsInOrderAndHandsOnWhatTheyLearn) {
  const auto saga = run();
  ASSERT_TRUE(saga) << saga.error().to_string();
  EXPECT_EQ(saga->state, SagaState::made);
  EXPECT_EQ(done_, (Steps{"make a", "make b", "make c"}));
  EXPECT_EQ(saga->data.at("seen"), "abc");
}

TEST_F(SagaTest, ARepetitionWithTheSameKeyMakesNothingMore) {
  const auto first = run();
  const auto second = run();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->id, second->id);
  EXPECT_EQ(done_.size(), 3u);
  EXPECT_TRUE(sagas_->run(ctx_, Json{{"wanted", "all"}, {"signed", "anew"}}));
  const auto other = sagas_->run(ctx_, Json{{"wanted", "something else"}});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().kind(), ErrorKind::conflict);
}

TEST_F(SagaTest, WhereAStepFailsThoseBeforeItAreUndoneInReverseOrder) {
  const std::vector<std::pair<std::string, Steps>> cases = {
      {"make a", {}}, {"make b", {"make a", "undo a"}}, {"make c", {"make a", "make b", "undo b", "undo a"}}};
  for (const auto& [where, expected] : cases) {
    done_.clear();
    fails_at_ = where;
    failures_ = 1;
    ctx_.idempotency_key = "fails at " + where;
    const auto saga = run();
    ASSERT_FALSE(saga);
    EXPECT_EQ(saga.error().kind(), ErrorKind::conflict) << saga.error().to_string();
    EXPECT_EQ(done_, expected) << where;
    // What is undone stays undone, and the answer is the same.
    const auto again = run();
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().to_string(), saga.error().to_string());
    EXPECT_EQ(done_, expected) << where;
  }
}

TEST_F(SagaTest, AFailureThatMayPassUndoesNothingAndIsTriedAgain) {
  fails_at_ = "make b";
  failure_ = ErrorKind::unavailable;
  const auto first = run();
  ASSERT_FALSE(first);
  EXPECT_TRUE(first.error().retryable());
  open();
  const auto second = run();
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(done_, (Steps{"make a", "make b", "make c"}));
  EXPECT_EQ(second->data.at("waits_for"), "make b") << "what it learned is there for the next try";
}

TEST_F(SagaTest, AfterACrashInAStepTheNextProcessGoesOnUnderTheSameKey) {
  for (const std::string where : {"make a", "make b", "make c"}) {
    done_.clear();
    keys_.clear();
    ctx_.idempotency_key = "dies at " + where;
    dies_at(where);
    ASSERT_TRUE(sagas_->resume());
    EXPECT_EQ(done_.back(), "make c");
    EXPECT_EQ(std::ranges::count(done_, where), 2) << where;
    EXPECT_EQ(done_.size(), 4u) << "no other step runs twice";
    const std::set<std::string> different(keys_.begin(), keys_.end());
    EXPECT_EQ(different.size(), 3u) << "a step that runs again has the same key";
    const auto saga = run();
    ASSERT_TRUE(saga);
    EXPECT_EQ(saga->data.at("seen"), "abc");
  }
}

TEST_F(SagaTest, AfterACrashWhileUndoingTheNextProcessUndoesTheRest) {
  fails_at_ = "make c";
  dies_at("undo b");
  ASSERT_TRUE(sagas_->resume());
  EXPECT_EQ(done_, (Steps{"make a", "make b", "undo b", "undo b", "undo a"}));
  const auto saga = run();
  ASSERT_FALSE(saga);
  EXPECT_EQ(saga.error().kind(), ErrorKind::conflict);
}

TEST_F(SagaTest, WhatCannotBeUndoneNowIsUndoneLater) {
  fails_at_ = "make c";
  dies_at("undo b");
  fails_at_ = "undo b";
  failures_ = 1;
  ASSERT_TRUE(sagas_->resume());
  EXPECT_EQ(done_.back(), "undo b") << "`a` waits until `b` is undone";
  ASSERT_TRUE(sagas_->resume());
  EXPECT_EQ(done_.back(), "undo a");
}

}  // namespace
}  // namespace creto::app
