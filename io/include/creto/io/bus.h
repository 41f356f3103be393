#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/telemetry.h"
#include "creto/io/sql.h"

/// Events between modules: a state change and its event commit in one transaction (the outbox), a relay hands the event
/// to the bus, consumers get it at least once and in order.
namespace creto::bus {

struct BusMessage {
  std::string org;
  std::string subject;     ///< "runtime.lifecycle"
  std::string message_id;  ///< what a consumer deduplicates by
  std::string body;
  std::int64_t sequence = 0;  ///< place in the bus; grows
  std::uint32_t attempt = 1;  ///< 1 at the first delivery to this consumer
  Instant published{};
  Trace trace;
};

inline constexpr std::size_t body_bytes_max = 1 << 20;

/// Writes a message to the outbox as part of `tx`. It leaves if and only if `tx` commits. A `message_id` that was
/// published before (same organization, within the bus' retention) is dropped silently by the relay, so repeating is
/// safe. `subject`: 1 to 8 tokens of [a-zA-Z0-9_-], joined by '.', 255 characters at most. Errors: invalid_input,
/// too_large; else those of sql::Tx.
Result<> publish(sql::Tx& tx, const Context& ctx, std::string_view subject, std::string_view message_id,
                 std::string_view body);

/// Success acknowledges. An error delivers the message again after a growing delay; a permanent error (not
/// `retryable()`) and the last attempt put it with the dead letters, and the consumer goes on. Must be idempotent.
/// Exceptions must not leave it.
using Handler = std::function<Result<>(const BusMessage&)>;
/// The same for messages that have arrived together, at most 100: a result for each, in order. What comes after a
/// message that is to be delivered again is delivered again too, after it. Requires: as many results as messages.
using BatchHandler = std::function<std::vector<Result<>>(std::span<const BusMessage>)>;

struct ConsumerOptions {
  enum class Start : std::uint8_t { oldest, newest };
  Start start = Start::oldest;  ///< where a consumer begins that the bus has not met before
  std::uint32_t attempts_max = 10;
  Nanos backoff_initial = std::chrono::milliseconds(100);
  Nanos backoff_max = std::chrono::seconds(30);
};

struct DeadLetter {
  std::string consumer;
  BusMessage message;
  std::string error;
  Instant when{};
};

/// Thread-safe. Destroying it stops all deliveries after the handlers that run have returned.
class Bus {
 public:
  virtual ~Bus() = default;

  /// Delivers every message whose subject matches `subject_pattern` to `handler`, one at a time, in the order of the
  /// bus, on a thread of its own. What was acknowledged under `durable_name` is not delivered again, also after a
  /// restart. A pattern is a subject in which `*` stands for one token and a last `>` for one or more. Errors:
  /// already_exists where this Bus already has a consumer of that name.
  virtual Result<> subscribe(std::string durable_name, std::string subject_pattern, Handler handler,
                             ConsumerOptions options = {}) = 0;

  virtual Result<> subscribe_batches(std::string durable_name, std::string subject_pattern, BatchHandler handler,
                                     ConsumerOptions options = {}) = 0;

  /// Stops that consumer's deliveries; its place is kept. Returns after a running handler has.
  virtual void unsubscribe(std::string_view durable_name) = 0;

  /// Waits until everything that was committed before the call has been acknowledged or given up by every consumer
  /// here. Errors: timeout.
  virtual Result<> wait_until_idle(Nanos timeout) = 0;

  virtual Result<std::vector<DeadLetter>> dead_letters(std::string_view org, std::size_t limit = 100) = 0;
};

struct BusOptions {
  Nanos poll_interval = std::chrono::milliseconds(250);  ///< for messages other processes committed
  Nanos retention = std::chrono::hours(24 * 7);  ///< acknowledged messages stay this long; also the dedupe window
};

/// The bus in the same database as the state. `db`, `clock` and `telemetry` must outlive it.
Result<std::unique_ptr<Bus>> create_embedded_bus(sql::Database& db, const Clock& clock, Telemetry& telemetry,
                                                 BusOptions options = {});

}  // namespace creto::bus
