#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/result.h"
#include "creto/common/telemetry.h"
#include "creto/common/time.h"
#include "creto/io/sql.h"

/// Consensus time (CO1, CO3): a hybrid logical clock whose ceiling is saved ahead of use.
namespace creto::consensus {

struct ClusterStatus {
  std::string node{};
  std::string mode{};  ///< "embedded"
  bool healthy = true;
  std::string reason{};         ///< empty when healthy
  std::int64_t ceiling_ns = 0;  ///< saved; no timestamp at or above it has been handed out
};

/// Hands out timestamps. Thread-safe.
///
/// Invariant 1: timestamps of one source are unique and grow, across threads, restarts and clocks that jump back.
/// Invariant 2: one that is not `degraded` is below a ceiling that was durable before.
class TimestampSource {
 public:
  virtual ~TimestampSource() = default;

  /// Never fails, never waits: memory only, lock-free. Follows the wall clock; where that went back or ran ahead of the
  /// ceiling, grows from the last timestamp on. Where the ceiling cannot be renewed (one retry), the timestamp has
  /// `degraded` set: it follows the local clock and grows within this process only.
  virtual Timestamp now() = 0;

  /// Places a batch in one order: sorts by (physical, logical, node); returns the indices of `events` in that order.
  /// Errors: conflict where two are the same timestamp (002 §1.3.4).
  virtual Result<std::vector<std::size_t>> order(std::span<const Timestamp> events) = 0;

  virtual ClusterStatus status() = 0;
};

/// The order of `TimestampSource::order`, for who has no source at hand.
Result<std::vector<std::size_t>> order_events(std::span<const Timestamp> events);

/// Where the ceiling is kept.
class CeilingStore {
 public:
  virtual ~CeilingStore() = default;
  /// 0 where none was ever saved.
  virtual Result<std::int64_t> load() = 0;
  /// Durable on success. Never lowers what is saved. Errors: conflict where another process has saved more.
  virtual Result<> save(std::int64_t expected, std::int64_t ceiling_ns) = 0;
};

struct TimestampOptions {
  std::string node = "local";             ///< 1 to 15 characters, so that a timestamp allocates nothing
  Nanos ahead = std::chrono::seconds(5);  ///< how far the ceiling is saved ahead; renewed when half of it is used
  bool renew_in_background = true;        ///< false: the owner calls `renew` (tests, simulation)
};

/// The source of a single process.
class EmbeddedSource : public TimestampSource {
 public:
  /// Saves a new ceiling now, with one retry; what the background thread does.
  virtual Result<> renew() = 0;
};

/// Starts at max(wall clock, saved ceiling + 1 ms). `store`, `clock` and `telemetry` must outlive it.
/// Errors: invalid_input for the node; those of the store: without a first ceiling nothing starts.
Result<std::unique_ptr<EmbeddedSource>> create_timestamp_source(CeilingStore& store, const Clock& clock,
                                                                Telemetry& telemetry, TimestampOptions options = {});

/// The ceiling as a row of `db`, one per node.
Result<std::unique_ptr<CeilingStore>> create_ceiling_store(sql::Database& db, std::string node);

}  // namespace creto::consensus
