#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/access.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/signature.h"
#include "creto/common/telemetry.h"
#include "creto/contracts/cost_trigger.h"
#include "creto/contracts/message_cost_tracker.h"
#include "creto/contracts/spending.h"
#include "creto/metering/billing.h"
#include "creto/metering/model_price.h"
#include "creto/metering/plan.h"
#include "creto/metering/quota.h"
#include "creto/metering/usage.h"

namespace creto::sql {
class Database;
}
namespace creto::bus {
class Bus;
}
namespace creto::io {
class FileSystem;
}
namespace creto::nhi {
class Nhi;
}
namespace creto::audit {
class AuditLog;
}
namespace creto::authz {
class Extension;
}
namespace creto::consensus {
class TimestampSource;
}

namespace creto::metering {

/// On an `Agent`: to correct events of it that another has reported. What one has reported oneself, one may correct.
inline constexpr std::string_view correct_action = "usage.correct";

/// What became of an event that was accepted. A repetition is a success and returns the first event's id.
struct Ingested {
  EventId id;
  bool duplicate = false;
  /// Of an event in an envelope: a charge of the plan that it is billed by cannot reckon with it, and leaves it out. It
  /// counts for everything else.
  bool left_out = false;
};

/// Usage in bulk: encoded creto.metering.v1.UsageRecord each (docs/formats.md, "Usage record"), for any agents.
struct RecordBatch {
  std::vector<std::string> records;  ///< at most 10 000, together at most 16 MiB
  std::string reporter{};            ///< who vouches for them; empty: the caller
  /// Of the reporter over the batch's Merkle root. Not needed where a service or human reports for itself, whom the
  /// connection has authenticated.
  std::optional<Signature> signature{};
};

/// What a recount of all events found.
struct UsageVerification {
  std::uint64_t events = 0;             ///< that are held
  std::uint64_t batches = 0;            ///< whose signatures were verified
  std::uint64_t envelopes = 0;          ///< of single events; likewise, and that the log keeps what they say
  std::uint64_t counters = 0;           ///< that were compared
  std::uint64_t sums = 0;               ///< of columns, which queries read; likewise
  std::uint64_t heads = 0;              ///< ends of the log that the audit log has recorded; likewise
  Hash256 head{};                       ///< of the usage log
  std::vector<std::string> problems;    ///< at most 100; empty: all agrees
  std::uint64_t events_cut = 0;         ///< that are no longer held: the count began with what was counted of them
  std::optional<Instant> held_since{};  ///< when the last of those arrived
};

/// What an import of prices has done.
struct PriceImport {
  std::size_t models = 0;    ///< that have prices from then on
  std::size_t left_out = 0;  ///< that have none by the token
  Instant from{};
};

/// An event that could not be taken and waits for a human.
struct RejectedEvent {
  std::string id;     ///< event id, or the bus' message id where there is none
  std::string error;  ///< "MT-404: ..."
  std::string body;   ///< as received
  Instant when{};
};

/// What will have been spent at the end of a period.
struct CostForecast {
  Instant until{};
  Money so_far;
  Money expected;
  Money low;
  Money high;
  double confidence = 0;    ///< that the end lies between low and high, were hours independent of each other
  double hours_learnt = 0;  ///< by which the rest is judged; 0: nothing is known, and nothing expected
};

/// Meters what agents use, limits what they may, prices it, and bills it.
///
/// Thread-safe. Every change of what is said is audited in its transaction; usage, which may be a million events a
/// second, by the hash of the usage log's end. Organizations do not see each other.
///
/// Events never change. One that was wrong is taken out by another event that refers to it, or replaced by that
/// (docs/formats.md, "Corrections"): not_found (MT-404) where nothing is known of what it refers to, permission_denied
/// (MT-403) where that is another agent's, or was reported by another and policy does not permit `usage.correct` on
/// the agent, conflict (MT-409) where it was taken out before or is itself only a void.
///
/// Invariant 1: an event counts once, however often it is delivered. Invariant 2: an invoice depends on which events
/// were accepted before it, not on their order. Invariant 3: no reservation passes the limit of a quota that blocks.
///
/// Checks and reservations live in memory and come back from the usage log at start. Open reservations do not: after a
/// crash what they held is free again, and what was used arrives as events. Usage counts when it is durable.
///
/// Errors of every call: invalid_input naming the field; not_found; unavailable.
class Metering : public Billing,
                 public contracts::CostTrigger,
                 public contracts::MessageCostTracker,
                 public contracts::SpendingLimits {
 public:
  // --- events (docs/formats.md, "Usage event")
  /// Takes one EventEnvelope with a "runtime_usage" or "message_usage" payload, as received: canonical JSON, signed by
  /// the agent it is about. Event, idempotency key and attribution become durable together. Errors:
  /// signature_invalid (MT-401); not_found (MT-404: unknown agent); conflict (MT-409: the key was used with other
  /// content; names the first id); too_large over 64 KiB.
  virtual Result<Ingested> ingest(const Context& ctx, std::string_view envelope) = 0;
  /// One answer per event, in order; those that are accepted commit together. At most 1 000.
  virtual Result<std::vector<Result<Ingested>>> ingest_batch(const Context& ctx,
                                                             std::span<const std::string> envelopes) = 0;
  /// Usage of any agents by one reporter, signed as a whole: a signed event costs a hash. One answer per record, in
  /// order. Errors: signature_invalid (MT-401) where the batch's signature does not verify; nothing was taken then.
  virtual Result<std::vector<Result<Ingested>>> ingest_records(const Context& ctx, const RecordBatch& batch) = 0;
  using NextBatch = std::function<std::optional<RecordBatch>()>;
  using BatchAnswer = std::function<void(Result<std::vector<Result<Ingested>>>)>;
  /// The same for one batch after another, until `next` gives none: `answered` is called for each, in their order, when
  /// it is durable or refused. Several may be under way, which pays; they are taken in no order. `answered` runs on
  /// this thread, `next` perhaps on another. Errors: the stream ended early: what was not answered is unknown, and to
  /// repeat it is harmless.
  virtual Result<> ingest_stream(const Context& ctx, const NextBatch& next, const BatchAnswer& answered) = 0;
  /// Events from the bus that were given up, newest first; at most `limit` (1..1 000).
  virtual Result<std::vector<RejectedEvent>> rejected_events(const Context& ctx, std::size_t limit) = 0;
  /// Tries one again; where it is taken now, it leaves the list.
  virtual Result<Ingested> replay_rejected(const Context& ctx, std::string_view id) = 0;
  /// Gives one up for good.
  virtual Result<> drop_rejected(const Context& ctx, std::string_view id) = 0;

  /// Reads the whole usage log again: every block's hash, every signature of a batch or an event, no key twice, every
  /// end of it that the audit log knows; counts all events anew, after what was counted of those that are no longer
  /// held, and compares with what was counted as they came and with what queries read. Takes as long as the log is
  /// large; events are taken meanwhile.
  virtual Result<UsageVerification> verify_usage(const Context& ctx) = 0;

  // --- what models cost
  /// Takes the public table of prices (import_model_prices), in force from `effective` (default: now). Uses of models
  /// that come without a cost get theirs when they arrive, by the prices in force at their time; what came before keeps
  /// its cost. Prices of the same model and moment are replaced. Errors: invalid_input; too_large.
  virtual Result<PriceImport> import_prices(const Context& ctx, std::string_view table,
                                            std::optional<Instant> effective) = 0;
  /// Of one model, oldest first; empty: of every model what is in force or the first to come, by name.
  virtual Result<std::vector<ModelPrice>> list_prices(const Context& ctx, std::string_view model) = 0;

  // --- limits
  /// Creates or replaces. Use so far stays counted. Errors: resource_exhausted over 256 quotas of one subject.
  virtual Result<Quota> set_quota(const Context& ctx, const Quota& quota) = 0;
  virtual Result<> delete_quota(const Context& ctx, std::string_view id) = 0;
  /// Of one subject unless empty; by id.
  virtual Result<std::vector<Quota>> list_quotas(const Context& ctx, std::string_view subject) = 0;
  /// `subject`: which one, of a quota for each of a kind.
  virtual Result<QuotaState> quota_state(const Context& ctx, std::string_view id, std::string_view subject) = 0;
  Result<QuotaState> quota_state(const Context& ctx, std::string_view id) { return quota_state(ctx, id, {}); }
  /// Whether `units` more would be granted to `agent`, by the limits of all who are above it by what nhi says. Consumes
  /// nothing; but for the first question about an agent memory only, < 10 us at p99.
  virtual Result<contracts::QuotaDecision> check_quota(const Context& ctx, const Identity& agent,
                                                       std::string_view event_type, std::int64_t units) = 0;
  virtual Result<SubjectThreshold> set_threshold(const Context& ctx, const SubjectThreshold& threshold) = 0;
  virtual Result<> delete_threshold(const Context& ctx, std::string_view id) = 0;
  virtual Result<std::vector<SubjectThreshold>> list_thresholds(const Context& ctx, std::string_view subject) = 0;
  /// By the hours so far, and the hours of the week where the agent has a cost threshold of its own. `period`: hour,
  /// day or month of UTC. Errors: not_found where the agent has never been seen.
  virtual Result<CostForecast> forecast_cost(const Context& ctx, const Identity& agent,
                                             contracts::BillingPeriod period) = 0;

  /// What was used, added up; an event counts as soon as it is accepted. Errors: resource_exhausted over a million
  /// groups.
  virtual Result<UsageReport> usage(const Context& ctx, const UsageQuery& query) = 0;
  /// The events themselves. What arrives while pages are read is on the last of them, or not yet.
  virtual Result<UsageEventsPage> usage_events(const Context& ctx, const UsageEventsQuery& query) = 0;
};

/// The service in this process.
class LocalMetering : public Metering {
 public:
  /// Refuses by quota inside authorization checks; "quota_enforcer", priority 100. Lives as long as the service.
  virtual authz::Extension& quota_enforcer() = 0;
  /// Subscribes to metering.events.> , metering.invoices and oversight.decisions. Call once.
  virtual Result<> attach(bus::Bus& bus) = 0;
  /// What is due: holds that end, invoices, their signatures, events that are past the retention. Call it every few
  /// minutes.
  virtual Result<> tick() = 0;
  virtual HealthStatus health() = 0;
};

struct MeteringOptions {
  /// Of quotas of money, cost totals and anomalies; other costs meet thresholds in their own currency. Another one than
  /// before: all is counted again.
  Currency currency = Currency::usd();
  /// From arrival; 1 minute to 366 days. A longer one than before does not bring back keys that were forgotten.
  Nanos idempotency_window = std::chrono::hours(24 * 7);
  Nanos event_age_max = std::chrono::hours(24 * 366);  ///< older events are refused; at least 1 hour
  Nanos event_ahead_max = std::chrono::hours(1);       ///< likewise events from the future; at most a day
  Nanos hold_max = std::chrono::hours(24 * 7);         ///< longest reservation; 1 minute to 366 days
  /// How long events are held after they arrived; 0: for ever; else at least 32 days and the idempotency window. They
  /// stay longer as long as an invoice or the window of a limit may ask for them, and until their segment is full or an
  /// eighth of this old. What was counted of them stays.
  Nanos retention{};
  std::uint32_t segment_events_max = 1'000'000;  ///< of a segment of the usage log; 1 to 10 000 000
  bool detect_anomalies = true;
  /// How sure it must be that an agent's hour is none of its usual ones for people to be told, once an hour; 0.5 up to,
  /// not including, 1. Hours that cost less than three times the mean, or six standard deviations more than it, never
  /// are.
  double anomaly_confidence = 0.97;
  /// What was recorded of the usage log's end, for `verify_usage`; none: that is not compared. Must outlive the
  /// service.
  audit::AuditLog* audit = nullptr;
  /// Who may correct what another has reported; none: nobody. Must outlive the service.
  AccessControl* access = nullptr;
  BillingParty issuer{};  ///< who bills
  /// Where the PDF's fonts for texts beyond Latin-1 are (Debian's fonts-dejavu-core).
  std::filesystem::path fonts = "/usr/share/fonts/truetype/dejavu";
  /// Which use of an authorization request counts against which quota; an action not named here counts under its own
  /// name.
  std::vector<std::pair<std::string, std::string>> actions = {{"sandbox.spawn", "sandbox_allocated"},
                                                              {"inference.call", "inference_tokens"},
                                                              {"network.egress", "network_egress"},
                                                              {"message.send", "message_sent"}};
};

/// The service over its tables in `database`, which it migrates, and the usage log: in `directory`, or in the database
/// where that is PostgreSQL; the directory then only has what follows from the log. Counts again what was used. All
/// references must outlive it. One process owns a log: whoever opens it last. Errors: invalid_input naming the option.
Result<std::unique_ptr<LocalMetering>> create_metering(sql::Database& database, io::FileSystem& files,
                                                       const std::filesystem::path& directory, nhi::Nhi& nhi,
                                                       consensus::TimestampSource& timestamps,
                                                       InvoiceDelivery& delivery, const Clock& clock,
                                                       Telemetry& telemetry, MeteringOptions options = {});

}  // namespace creto::metering
