#include <gtest/gtest.h>

#include "creto/common/bytes.h"
#include "creto/common/circuit_breaker.h"
#include "creto/common/result.h"
#include "creto/common/retry.h"

namespace creto {
namespace {

using namespace std::chrono_literals;

Error quota_error() {
  return Error(Product::metering, ErrorKind::quota_exceeded, "monthly quota of `sandbox_allocated` exceeded (100/100)")
      .with_retry_after(24h);
}

TEST(Error, CarriesTheChainOfTheSpecificationsExample) {
  const Error error =
      Error(Product::runtime, ErrorKind::quota_exceeded, "cannot spawn sandbox").with_cause(quota_error());
  EXPECT_EQ(error.code(), "RT-429");
  ASSERT_NE(error.caused_by(), nullptr);
  EXPECT_EQ(error.caused_by()->code(), "MT-429");
  EXPECT_EQ(error.to_string(),
            "RT-429: cannot spawn sandbox (MT-429: monthly quota of `sandbox_allocated` exceeded (100/100))");
}

TEST(Error, CopiesTheWholeChain) {
  const Error original = Error(Product::runtime, ErrorKind::internal, "a").with_cause(quota_error());
  const Error copy = original;
  EXPECT_NE(copy.caused_by(), original.caused_by());
  EXPECT_EQ(copy.to_string(), original.to_string());
}

TEST(Error, SaysUtf8WhateverItQuotes) {
  const Error error =
      Error(Product::platform, ErrorKind::invalid_input, std::string("`\xE2\x82` and \0", 11)).with_context("\xFF");
  EXPECT_TRUE(is_valid_utf8(error.to_string()));
  EXPECT_EQ(error.to_string().find('\0'), std::string::npos);
}

TEST(Error, IsOnePointerOnTheSuccessPath) { EXPECT_EQ(sizeof(Error), sizeof(void*)); }

TEST(Try, ReturnsTheErrorOfTheFirstFailure) {
  const auto half = [](int n) -> Result<int> {
    if (n % 2 != 0) return Error(Product::platform, ErrorKind::invalid_input, "odd");
    return n / 2;
  };
  const auto quarter = [&](int n) -> Result<int> {
    const int once = CRETO_TRY(half(n));
    return half(once);
  };
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_EQ(quarter(6).error().message(), "odd");
}

TEST(Retry, FollowsTheCategoriesOfTheSpecification) {
  const RetryStrategy quota = retry_strategy(quota_error());
  EXPECT_EQ(delay_before(quota, 2, 0.0), std::optional<std::chrono::nanoseconds>(24h));
  EXPECT_EQ(delay_before(quota, 3, 0.0), std::nullopt);
  const RetryStrategy transient = retry_strategy(Error(Product::platform, ErrorKind::unavailable, "down"));
  EXPECT_EQ(delay_before(transient, 2, 0.0), std::optional<std::chrono::nanoseconds>(50ms));
  EXPECT_LE(*delay_before(transient, 5, 0.999), 30s);
  EXPECT_EQ(delay_before(transient, 6, 0.0), std::nullopt);
  EXPECT_EQ(delay_before(retry_strategy(Error(Product::runtime, ErrorKind::not_found, "gone")), 2, 0.0), std::nullopt);
}

class SteppedClock final : public Clock {
 public:
  Instant now() const override { return Instant(time); }
  Monotonic monotonic() const override { return Monotonic(time); }
  Nanos time{0};
};

TEST(CircuitBreaker, OpensAfterTheThresholdAndClosesAfterGoodTrials) {
  SteppedClock clock;
  CircuitBreaker breaker("nhi", {.failure_threshold = 2, .reset_timeout = 10s, .half_open_requests = 1}, clock);
  int calls = 0;
  bool up = false;
  const auto call = [&]() -> Result<int> {
    ++calls;
    if (!up) return Error(Product::platform, ErrorKind::unavailable, "down");
    return 1;
  };
  EXPECT_FALSE(breaker.run(call));
  EXPECT_FALSE(breaker.run(call));
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::open);
  EXPECT_EQ(breaker.run(call).error().retry_after(), std::optional<std::chrono::nanoseconds>(10s));
  EXPECT_EQ(calls, 2);
  clock.time += 10s;
  EXPECT_FALSE(breaker.run(call));
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::open);
  clock.time += 10s;
  up = true;
  EXPECT_TRUE(breaker.run(call));
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::closed);
}

TEST(CircuitBreaker, TakesACallersMistakeForNoFailure) {
  SteppedClock clock;
  CircuitBreaker breaker("nhi", {.failure_threshold = 1}, clock);
  const auto bad_request = []() -> Result<> { return Error(Product::platform, ErrorKind::invalid_input, "bad"); };
  EXPECT_FALSE(breaker.run(bad_request));
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::closed);
}

}  // namespace
}  // namespace creto
