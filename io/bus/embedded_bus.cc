#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "bus/subject.h"
#include "creto/io/bus.h"

namespace creto::bus {
namespace {

constexpr std::int64_t relay_batch = 500;
constexpr std::int64_t delivery_batch = 100;
constexpr std::size_t id_length_max = 255;
// Acknowledgements closer together than this share a commit; after a crash what lies between is delivered again.
constexpr Nanos acknowledge_interval = std::chrono::milliseconds(20);
// What is published closer together than this leaves the outbox together: each time, publishers wait their turn behind
// it.
constexpr Nanos relay_interval = std::chrono::milliseconds(5);
constexpr Nanos prune_interval = std::chrono::minutes(1);
constexpr Nanos trouble_pause = std::chrono::milliseconds(500);

constexpr const char* outbox_signal = "io.outbox";
constexpr const char* bus_signal = "io.bus";

Error refusal(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

std::string to_text(const Trace& trace) {
  if (trace.trace_id.empty()) return {};
  return fmt::format("{}-{}-{}", trace.trace_id, trace.span_id, trace.sampled ? 1 : 0);
}

Trace trace_from(const std::string& text) {
  Trace trace;
  const auto first = text.find('-');
  const auto second = first == std::string::npos ? first : text.find('-', first + 1);
  if (second == std::string::npos) return trace;
  trace.trace_id = text.substr(0, first);
  trace.span_id = text.substr(first + 1, second - first - 1);
  trace.sampled = text.substr(second + 1) == "1";
  return trace;
}

/// Columns: sequence, org, subject, message_id, body, trace, published_at.
BusMessage message_from(const sql::Row& row) {
  return {.org = row.text(1),
          .subject = row.text(2),
          .message_id = row.text(3),
          .body = row.text(4),
          .sequence = row.integer(0),
          .attempt = 1,
          .published = row.instant(6),
          .trace = trace_from(row.text(5))};
}

class EmbeddedBus;

/// One durable consumer: a thread that walks along the bus.
class Consumer {
 public:
  Consumer(EmbeddedBus& bus, std::string name, std::string pattern, BatchHandler handler, std::size_t batch_max,
           ConsumerOptions options)
      : bus_(bus),
        name_(std::move(name)),
        pattern_(std::move(pattern)),
        handler_(std::move(handler)),
        batch_max_(batch_max),
        options_(options) {}
  ~Consumer() { stop(); }

  Result<> start();
  void stop();
  /// Everything up to here is acknowledged in the database.
  std::int64_t acknowledged() const { return acknowledged_.load(); }

 private:
  void run();
  Result<bool> step();
  Result<> deliver(std::span<BusMessage> batch);
  Result<> acknowledge();
  Result<> retry_later(const BusMessage& message, const Error& error);
  Result<> give_up(const BusMessage& message, const Error& error);
  void pause(Nanos duration);
  bool stopping() const { return stopping_.load(); }

  EmbeddedBus& bus_;
  const std::string name_;
  const std::string pattern_;
  const BatchHandler handler_;
  const std::size_t batch_max_;
  const ConsumerOptions options_;

  // The consumer's thread alone, once it runs.
  std::int64_t position_ = 0;
  std::uint32_t failures_ = 0;
  Instant retry_at_{};
  Monotonic last_acknowledge_{};

  std::atomic<std::int64_t> acknowledged_ = 0;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::condition_variable stopped_;
  std::thread thread_;
};

class EmbeddedBus final : public Bus {
 public:
  EmbeddedBus(sql::Database& db, const Clock& clock, Telemetry& telemetry, BusOptions options)
      : db_(db),
        clock_(clock),
        telemetry_(telemetry),
        options_(options),
        relayed_(telemetry.counter("creto_bus_messages_total", "Messages that left the outbox")),
        dead_(telemetry.counter("creto_bus_dead_letters_total", "Messages a consumer gave up")) {}

  ~EmbeddedBus() override {
    {
      std::lock_guard lock(mutex_);
      consumers_.clear();
    }
    stopping_ = true;
    db_.signal(outbox_signal).raise();
    if (relay_.joinable()) relay_.join();
  }

  void start() {
    relay_ = std::thread([this] { relay(); });
  }

  Result<> subscribe(std::string name, std::string pattern, Handler handler, ConsumerOptions options) override {
    const auto one = [handler = std::move(handler)](std::span<const BusMessage> batch) {
      return std::vector<Result<>>{handler(batch.front())};
    };
    return add(std::move(name), std::move(pattern), one, 1, options);
  }

  Result<> subscribe_batches(std::string name, std::string pattern, BatchHandler handler,
                             ConsumerOptions options) override {
    return add(std::move(name), std::move(pattern), std::move(handler), delivery_batch, options);
  }

  Result<> add(std::string name, std::string pattern, BatchHandler handler, std::size_t batch_max,
               ConsumerOptions options) {
    if (name.empty() || name.size() > id_length_max)
      return refusal(ErrorKind::invalid_input, "consumer name is empty or too long");
    if (!is_valid_pattern(pattern))
      return refusal(ErrorKind::invalid_input, fmt::format("`{}` is not a subject pattern", pattern));
    std::lock_guard lock(mutex_);
    if (consumers_.contains(name)) {
      return refusal(ErrorKind::already_exists, fmt::format("there is a consumer `{}` already", name));
    }
    auto consumer = std::make_unique<Consumer>(*this, name, std::move(pattern), std::move(handler), batch_max, options);
    CRETO_TRY(consumer->start());
    consumers_.emplace(std::move(name), std::move(consumer));
    return {};
  }

  void unsubscribe(std::string_view name) override {
    std::unique_ptr<Consumer> gone;
    std::lock_guard lock(mutex_);
    if (auto found = consumers_.find(name); found != consumers_.end()) {
      gone = std::move(found->second);
      consumers_.erase(found);
    }
  }

  Result<> wait_until_idle(Nanos timeout) override {
    const Monotonic deadline = system_clock().monotonic() + timeout;
    while (CRETO_TRY(relay_once())) {
    }
    const std::int64_t last = CRETO_TRY(last_sequence());
    for (;;) {
      const std::uint64_t seen = db_.signal(bus_signal).count();
      {
        std::lock_guard lock(mutex_);
        if (std::all_of(consumers_.begin(), consumers_.end(),
                        [&](const auto& consumer) { return consumer.second->acknowledged() >= last; })) {
          return {};
        }
      }
      const Nanos left = deadline - system_clock().monotonic();
      if (left <= Nanos::zero()) return refusal(ErrorKind::timeout, "consumers are still at work");
      db_.signal(bus_signal).wait(seen, std::min(left, Nanos(std::chrono::milliseconds(50))));
    }
  }

  Result<std::vector<DeadLetter>> dead_letters(std::string_view org, std::size_t limit) override {
    return sql::read(db_, Context(), [&](sql::Tx& tx) -> Result<std::vector<DeadLetter>> {
      const auto rows = CRETO_TRY(tx.query(
          "SELECT sequence, org, subject, message_id, body, trace, published_at, consumer, attempts, error, failed_at "
          "FROM bus_dead_letters WHERE org = $1 ORDER BY failed_at DESC, sequence DESC LIMIT $2",
          {org, static_cast<std::int64_t>(limit)}));
      std::vector<DeadLetter> letters;
      for (const auto row : rows) {
        DeadLetter letter{row.text(7), message_from(row), row.text(9), row.instant(10)};
        letter.message.attempt = static_cast<std::uint32_t>(row.integer(8));
        letters.push_back(std::move(letter));
      }
      return letters;
    });
  }

  /// Moves one batch out of the outbox; whether there was any. What is undone by a power cut is still in the outbox,
  /// and nobody's position is beyond it: a position is committed after what it stands for.
  Result<bool> relay_once() {
    std::int64_t moved = 0;
    auto result = db_.transaction(
        Context(),
        [&](sql::Tx& tx) -> Result<> {
          moved = 0;
          if (CRETO_TRY(tx.query("SELECT 1 FROM outbox LIMIT 1")).empty()) return {};
          const auto turn = CRETO_TRY(
              tx.query("UPDATE bus_relay SET last_sequence = last_sequence WHERE one = 1 RETURNING last_sequence"));
          std::int64_t sequence = turn.front().integer(0);
          const auto rows = CRETO_TRY(tx.query(
              "SELECT id, org, subject, message_id, body, trace, published_at FROM outbox ORDER BY id LIMIT $1",
              {relay_batch}));
          for (const auto row : rows) {
            const auto added = CRETO_TRY(tx.exec(
                "INSERT INTO bus_messages (sequence, org, subject, message_id, body, trace, published_at) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, message_id) DO NOTHING",
                {sequence + 1, row.text(1), row.text(2), row.text(3), row.text(4), row.text(5), row.integer(6)}));
            sequence += added;
            CRETO_TRY(tx.exec("DELETE FROM outbox WHERE id = $1", {row.integer(0)}));
            ++moved;
          }
          CRETO_TRY(tx.exec("UPDATE bus_relay SET last_sequence = $1 WHERE one = 1", {sequence}));
          return {};
        },
        {sql::Isolation::read_committed, sql::Durability::ordered});
    if (!result) return std::move(result).error();
    if (moved > 0) {
      relayed_.add(static_cast<std::uint64_t>(moved));
      db_.signal(bus_signal).raise();
    }
    return moved > 0;
  }

  Result<std::int64_t> last_sequence() {
    return sql::read(db_, Context(), [&](sql::Tx& tx) -> Result<std::int64_t> {
      return CRETO_TRY(tx.query("SELECT last_sequence FROM bus_relay WHERE one = 1")).front().integer(0);
    });
  }

  sql::Database& db() { return db_; }
  const Clock& clock() const { return clock_; }
  Telemetry& telemetry() { return telemetry_; }
  const BusOptions& options() const { return options_; }
  void count_dead() { dead_.add(); }

 private:
  void relay() {
    Monotonic pruned{};
    while (!stopping_) {
      const std::uint64_t seen = db_.signal(outbox_signal).count();
      auto more = relay_once();
      if (!more) {
        telemetry_.warn("io", "bus_relay_failed", {{"error", more.error().to_string()}});
        db_.signal(outbox_signal).wait(db_.signal(outbox_signal).count(), trouble_pause);
        continue;
      }
      const auto now = system_clock().monotonic();
      if (*more) {
        pause_until(now + relay_interval);
        continue;
      }
      if (now - pruned > prune_interval) {
        pruned = now;
        prune();
      }
      db_.signal(outbox_signal).wait(seen, options_.poll_interval);
    }
  }

  void pause_until(Monotonic end) {
    sql::Signal& published = db_.signal(outbox_signal);
    for (Nanos left = relay_interval; left > Nanos::zero() && !stopping_; left = end - system_clock().monotonic())
      published.wait(published.count(), left);
  }

  void prune() {
    auto result = db_.transaction(Context(), [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(
          tx.exec("DELETE FROM bus_messages WHERE published_at < $1 AND sequence <= "
                  "(SELECT COALESCE(MIN(position), 0) FROM bus_consumers)",
                  {tx.now() - options_.retention}));
      return {};
    });
    if (!result) telemetry_.warn("io", "bus_prune_failed", {{"error", result.error().to_string()}});
  }

  sql::Database& db_;
  const Clock& clock_;
  Telemetry& telemetry_;
  const BusOptions options_;
  Counter& relayed_;
  Counter& dead_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Consumer>, std::less<>> consumers_;
  std::atomic<bool> stopping_ = false;
  std::thread relay_;
};

Result<> Consumer::start() {
  if (options_.start == ConsumerOptions::Start::newest) {
    // What is still in the outbox was published before, too.
    while (CRETO_TRY(bus_.relay_once())) {
    }
  }
  CRETO_TRY(sql::write(bus_.db(), Context(), [&](sql::Tx& tx) -> Result<> {
    std::int64_t first = 0;
    if (options_.start == ConsumerOptions::Start::newest) {
      first = CRETO_TRY(tx.query("SELECT last_sequence FROM bus_relay WHERE one = 1")).front().integer(0);
    }
    const auto rows = CRETO_TRY(
        tx.query("INSERT INTO bus_consumers (name, pattern, position) VALUES ($1, $2, $3) "
                 "ON CONFLICT (name) DO UPDATE SET pattern = excluded.pattern RETURNING position, failures, retry_at",
                 {name_, pattern_, first}));
    position_ = rows.front().integer(0);
    failures_ = static_cast<std::uint32_t>(rows.front().integer(1));
    retry_at_ = rows.front().instant(2);
    return {};
  }));
  acknowledged_ = position_;
  thread_ = std::thread([this] { run(); });
  return {};
}

void Consumer::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  bus_.db().signal(bus_signal).raise();
  if (!thread_.joinable()) return;
  CRETO_ASSERT(thread_.get_id() != std::this_thread::get_id());
  thread_.join();
}

void Consumer::pause(Nanos duration) {
  std::unique_lock lock(mutex_);
  stopped_.wait_for(lock, duration, [&] { return stopping(); });
}

void Consumer::run() {
  while (!stopping()) {
    const std::uint64_t seen = bus_.db().signal(bus_signal).count();
    auto more = step();
    if (!more) {
      bus_.telemetry().warn("io", "bus_consumer_failed", {{"consumer", name_}, {"error", more.error().to_string()}});
      pause(trouble_pause);
    } else if (!*more) {
      bus_.db().signal(bus_signal).wait(seen, bus_.options().poll_interval);
    }
  }
  if (auto kept = acknowledge(); !kept) {
    bus_.telemetry().warn("io", "bus_consumer_failed", {{"consumer", name_}, {"error", kept.error().to_string()}});
  }
}

/// Delivers one batch; whether there may be more at once.
Result<bool> Consumer::step() {
  if (failures_ > 0) {
    const Nanos left = retry_at_ - bus_.clock().now();
    if (left > Nanos::zero()) {
      pause(std::min(left, bus_.options().poll_interval));
      return true;
    }
  }
  const auto rows = CRETO_TRY(sql::read(bus_.db(), Context(), [&](sql::Tx& tx) -> Result<sql::Rows> {
    return tx.query(
        "SELECT sequence, org, subject, message_id, body, trace, published_at FROM bus_messages "
        "WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        {position_, delivery_batch});
  }));
  std::vector<BusMessage> batch;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (stopping()) return false;
    const auto row = rows[i];
    if (matches(pattern_, row.text(2))) batch.push_back(message_from(row));
    // What failed comes again alone: others would only be repeated with it.
    const bool full = batch.size() == (failures_ > 0 ? 1 : batch_max_);
    if (full || (!batch.empty() && i + 1 == rows.size())) {
      CRETO_TRY(deliver(batch));
      if (failures_ > 0) return true;
      batch.clear();
    }
    if (batch.empty()) position_ = row.integer(0);
  }
  CRETO_TRY(acknowledge());
  return !rows.empty();
}

Result<> Consumer::deliver(std::span<BusMessage> batch) {
  batch.front().attempt = failures_ + 1;
  const auto results = handler_(batch);
  CRETO_ASSERT(results.size() == batch.size());
  bool had_failed = failures_ > 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const BusMessage& message = batch[i];
    if (!results[i]) {
      const Error& error = results[i].error();
      if (message.attempt < options_.attempts_max && error.retryable()) return retry_later(message, error);
      CRETO_TRY(give_up(message, error));
      had_failed = false;
    } else {
      position_ = message.sequence;
      failures_ = 0;
    }
  }
  const Monotonic now = system_clock().monotonic();
  if (had_failed || now - last_acknowledge_ >= acknowledge_interval) return acknowledge();
  return {};
}

Result<> Consumer::acknowledge() {
  if (acknowledged_ == position_) return {};
  CRETO_TRY(bus_.db().transaction(
      Context(),
      [&](sql::Tx& tx) -> Result<> {
        // Never back: another process may run the same consumer and be ahead.
        CRETO_TRY(tx.exec(
            "UPDATE bus_consumers SET position = $2, failures = 0, retry_at = 0 WHERE name = $1 AND position < $2",
            {name_, position_}));
        return {};
      },
      {.durability = sql::Durability::ordered}));
  last_acknowledge_ = system_clock().monotonic();
  acknowledged_ = position_;
  bus_.db().signal(bus_signal).raise();
  return {};
}

Result<> Consumer::retry_later(const BusMessage& message, const Error& error) {
  CRETO_TRY(acknowledge());
  const auto doublings = std::min(failures_, 20U);
  Nanos delay = std::min(options_.backoff_max, options_.backoff_initial * (std::int64_t{1} << doublings));
  if (const auto asked = error.retry_after()) delay = std::max(delay, *asked);
  failures_ = message.attempt;
  retry_at_ = bus_.clock().now() + delay;
  bus_.telemetry().warn("io", "bus_delivery_failed",
                        {{"consumer", name_},
                         {"message_id", message.message_id},
                         {"attempt", message.attempt},
                         {"error", error.to_string()}});
  return sql::write(bus_.db(), Context(), [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(tx.exec("UPDATE bus_consumers SET failures = $2, retry_at = $3 WHERE name = $1",
                      {name_, failures_, retry_at_}));
    return {};
  });
}

Result<> Consumer::give_up(const BusMessage& message, const Error& error) {
  CRETO_TRY(sql::write(bus_.db(), Context(), [&](sql::Tx& tx) -> Result<> {
    CRETO_TRY(
        tx.exec("INSERT INTO bus_dead_letters (org, consumer, sequence, subject, message_id, body, trace, "
                "published_at, attempts, "
                "error, failed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) "
                "ON CONFLICT (org, consumer, sequence) DO NOTHING",
                {message.org, name_, message.sequence, message.subject, message.message_id, message.body,
                 to_text(message.trace), message.published, message.attempt, error.to_string(), tx.now()}));
    CRETO_TRY(
        tx.exec("UPDATE bus_consumers SET position = $2, failures = 0, retry_at = 0 WHERE name = $1 AND position < $2",
                {name_, message.sequence}));
    return {};
  }));
  failures_ = 0;
  position_ = message.sequence;
  acknowledged_ = position_;
  bus_.count_dead();
  bus_.telemetry().error("io", "bus_dead_letter",
                         {{"consumer", name_}, {"message_id", message.message_id}, {"error", error.to_string()}});
  bus_.db().signal(bus_signal).raise();
  return {};
}

}  // namespace

Result<> publish(sql::Tx& tx, const Context& ctx, std::string_view subject, std::string_view message_id,
                 std::string_view body) {
  if (!is_valid_subject(subject))
    return refusal(ErrorKind::invalid_input, "subject is not dotted tokens of [a-zA-Z0-9_-]");
  if (message_id.empty() || message_id.size() > id_length_max) {
    return refusal(ErrorKind::invalid_input, "message_id must have 1 to 255 characters");
  }
  if (body.size() > body_bytes_max) return refusal(ErrorKind::too_large, "message body is over 1 MiB");
  CRETO_TRY(tx.exec(
      "INSERT INTO outbox (org, subject, message_id, body, trace, published_at) VALUES ($1, $2, $3, $4, $5, $6)",
      {ctx.org, subject, message_id, body, to_text(ctx.trace), tx.now()}));
  tx.after_commit([&signal = tx.database().signal(outbox_signal)] { signal.raise(); });
  return {};
}

Result<std::unique_ptr<Bus>> create_embedded_bus(sql::Database& db, const Clock& clock, Telemetry& telemetry,
                                                 BusOptions options) {
  auto bus = std::make_unique<EmbeddedBus>(db, clock, telemetry, options);
  bus->start();
  return std::unique_ptr<Bus>(std::move(bus));
}

}  // namespace creto::bus
