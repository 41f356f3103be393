#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "creto/audit/tlog.h"
#include "creto/common/context.h"
#include "creto/common/id.h"
#include "creto/common/signature.h"
#include "creto/common/telemetry.h"
#include "creto/common/time.h"
#include "creto/crypto/signing.h"
#include "creto/io/files.h"
#include "creto/io/sql.h"

/// Who did what to which thing, on whose behalf, why, and how it ended: a log nobody can change afterwards (AU1-AU3).
namespace creto::audit {

CRETO_ID(AuditId, "aud");

enum class Outcome : std::uint8_t { success, failure, denied, timeout };
std::string_view to_string(Outcome outcome);
Result<Outcome> outcome_from_string(std::string_view text);

/// One entry. In the log it is the canonical JSON described in docs/formats.md, "Audit record", at most 65 535 bytes.
struct AuditRecord {
  std::optional<AuditId> id{};  ///< given by the log where absent
  std::string who{};            ///< identity text; empty only for a caller that could not be authenticated
  std::vector<std::string> delegation_chain{};
  std::string what{};      ///< "sandbox_spawned", "egress_denied", "nhi.register_agent"; 1..256 characters
  std::string resource{};  ///< "runtime:sandbox:sb-…"; up to 2 048 characters
  std::string why{};       ///< reasoning, policy or request that led to it; may be empty
  Outcome outcome = Outcome::success;
  std::string outcome_detail{};          ///< of failure and denied: error code and message
  Timestamp timestamp{};                 ///< taken from the transaction's clock where `physical_ns` is 0
  std::optional<Signature> signature{};  ///< the caller's, over its own document; kept as it came
  std::string metadata = "{}";           ///< a JSON object of the event's own
  std::string trace_id{};

  /// An entry about `ctx.caller` acting: fills who, chain and trace.
  static AuditRecord of(const Context& ctx, std::string what, std::string resource, Outcome outcome = Outcome::success);
};

/// Writes the record as part of `tx`: it is in the log if and only if `tx` commits, and then it stays (it waits in
/// `audit_pending` until the sequencer has put it into the tiles). Where the disk is full the transaction fails (AU3).
/// Needs the tables of `prepare`.
/// Errors: invalid_input (names the field), too_large; else those of sql::Tx.
Result<AuditId> record(sql::Tx& tx, const Context& ctx, AuditRecord record);

/// Brings the audit tables to date. `create_audit_log` does it too; for who records without running the log.
Result<> prepare(sql::Database& db);

struct AuditFilter {
  std::optional<std::string> who{};       ///< anywhere in the chain: `who` itself or one it acted for
  std::optional<std::string> what{};      ///< exact, or a prefix where it ends with '*'
  std::optional<std::string> resource{};  ///< exact, or a prefix where it ends with '*'
  std::optional<Outcome> outcome{};
  std::optional<Instant> from{};   ///< inclusive
  std::optional<Instant> until{};  ///< exclusive
  std::string cursor{};            ///< `next_cursor` of the page before; empty for the first
  std::uint32_t limit = 100;       ///< 1..1 000
  bool newest_first = true;
};

struct AuditEntry {
  std::uint64_t index;  ///< place in the log
  AuditRecord record;
  std::string bytes;  ///< the entry as it stands in the log
};

struct AuditPage {
  std::vector<AuditEntry> entries;
  std::string next_cursor;  ///< empty on the last page
};

/// Shows that `leaf_hash` is entry `index` of the tree that `checkpoint` signs.
struct InclusionProof {
  AuditId id;
  std::uint64_t index;
  std::uint64_t tree_size;
  Hash256 leaf_hash;
  Hash256 root;
  std::vector<Hash256> path;  ///< leaf to root, RFC 6962
  std::string checkpoint;     ///< the signed note
};

struct AuditStatus {
  std::uint64_t size = 0;     ///< entries in the signed log
  std::uint64_t pending = 0;  ///< recorded, not yet sequenced
  std::string origin;
  std::string verifier_keys;  ///< vkey lines, as in the file `creto audit verify --key` takes
  std::string problem;        ///< why the sequencer cannot go on; empty when it can
};

/// The audit service. Thread-safe.
class AuditLog {
 public:
  virtual ~AuditLog() = default;

  /// Records in a transaction of its own. The record's signature, if any, is kept with it (log_signed of 002 §1.4).
  virtual Result<AuditId> log(const Context& ctx, const AuditRecord& record) = 0;
  /// All or none, at most 1 000.
  virtual Result<std::vector<AuditId>> log_batch(const Context& ctx, const std::vector<AuditRecord>& records) = 0;

  /// Entries of ctx.org that are in the log (not the pending ones), by index.
  /// Errors: invalid_input for limit or cursor.
  virtual Result<AuditPage> query(const Context& ctx, const AuditFilter& filter) = 0;
  /// Errors: not_found; unavailable where it is recorded but not yet sequenced (repeat after retry_after).
  virtual Result<AuditEntry> get(const Context& ctx, const AuditId& id) = 0;
  /// Errors: as `get`.
  virtual Result<InclusionProof> proof(const Context& ctx, const AuditId& id) = 0;
  /// That the tree of `old_size` is a prefix of the current one.
  /// Errors: invalid_input where `old_size` is larger than the log.
  virtual Result<std::vector<Hash256>> consistency(const Context& ctx, std::uint64_t old_size) = 0;
  /// Whether the entry is in the tree with that root. False rather than an error where the proof does not hold.
  virtual Result<bool> verify(const Context& ctx, const AuditId& id, const InclusionProof& proof,
                              const Hash256& root) = 0;

  /// The newest signed checkpoint.
  virtual Result<std::string> checkpoint(const Context& ctx) = 0;
  virtual Result<AuditStatus> status(const Context& ctx) = 0;

  /// Sequences everything committed before the call and returns the checkpoint that covers it.
  /// Errors: timeout (ctx.deadline), what keeps the sequencer from going on.
  virtual Result<std::string> flush(const Context& ctx) = 0;
};

struct AuditOptions {
  std::filesystem::path directory{};                ///< of the log: `checkpoint`, `tile/…`; created where absent
  std::string origin{};                             ///< "creto.local/audit/<org>": the log's name, for ever
  std::uint32_t batch_max = 100;                    ///< entries at once (AU3); more wait for the next batch
  Nanos interval = std::chrono::milliseconds(500);  ///< how long an entry waits for others at most (AU3: 1 s)
  bool sequence_in_background = true;               ///< false: only `flush` sequences (tests)
};

/// Signs checkpoints. The Ed25519 signature is what any tool for transparency logs verifies; ML-DSA-65 stands beside
/// it.
struct AuditKeys {
  crypto::SigningKey ed25519;
  crypto::SigningKey ml_dsa_65;
};

/// Opens the log: finishes what a crash interrupted, checks that the files and the database belong together, rebuilds
/// the index where it is behind, and starts the sequencer. One process at a time may own a directory. `db`, `files`,
/// `clock` and `telemetry` must outlive it. Errors: conflict (the directory is another log's, or holds less
/// than the database says was signed); hash_mismatch; those of db and files.
Result<std::unique_ptr<AuditLog>> create_audit_log(sql::Database& db, io::FileSystem& files, const Clock& clock,
                                                   Telemetry& telemetry, AuditKeys keys, AuditOptions options);

/// What `creto audit verify` runs: the log below `directory`, by the keys of `key_file` alone. Checks every entry to be
/// an audit record too. `on_record`, if any, sees each as it was logged (canonical JSON), in order; what it saw is
/// proven only where the call succeeds. Errors: as tlog::verify_log; those of `on_record`.
Result<tlog::VerifiedLog> verify_directory(const std::filesystem::path& directory, std::string_view key_file,
                                           const std::function<Result<>(std::string_view record)>& on_record = {});

}  // namespace creto::audit
