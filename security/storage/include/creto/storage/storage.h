#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "creto/common/access.h"
#include "creto/common/clock.h"
#include "creto/common/context.h"
#include "creto/common/health.h"
#include "creto/common/id.h"
#include "creto/common/secret.h"
#include "creto/common/telemetry.h"

namespace creto::sql {
class Database;
}
namespace creto::io {
class FileSystem;
}

namespace creto::storage {

/// What an object is for; decides its size limit, its life and who may delete it (003 §3.3, §3.6).
///
///   agent_data 50 MB · sandbox_state 1 GB · message_payload 100 MB · artifact 1 GB · sensitive 50 MB ·
///   compliance 10 MB, kept 7 years: deleting or shortening it is refused
enum class Classification : std::uint8_t {
  agent_data,
  sandbox_state,
  message_payload,
  artifact,
  sensitive,
  compliance
};
std::string_view to_string(Classification classification);
Result<Classification> classification_from_string(std::string_view text);
/// In bytes.
std::uint64_t size_limit_of(Classification classification);

/// Names one version of an object. An empty version is the latest.
struct StorageRef {
  std::string bucket;   ///< [a-z0-9][a-z0-9.-]{0,62}
  std::string key;      ///< 1 to 512 printable characters, no "..", no leading or double '/'
  std::string version;  ///< "obj-…"
  std::string text() const { return bucket + "/" + key + (version.empty() ? "" : "@" + version); }
  friend bool operator==(const StorageRef&, const StorageRef&) = default;
};

struct NewObject {
  std::string bucket = "default";
  std::string key;  ///< empty: one is made. An existing key gets a new version
  Identity owner;
  Classification classification = Classification::agent_data;
  std::string content_type = "application/octet-stream";
  std::map<std::string, std::string> metadata;  ///< up to 64 entries, 8 KiB together
  std::optional<Nanos> ttl;                     ///< none: 90 days, but 7 years for compliance; zero: for ever
  std::optional<Hash256> expected_hash;         ///< BLAKE3; another content is refused with hash_mismatch
};

struct ObjectMetadata {
  StorageRef ref;
  Identity owner;
  Classification classification = Classification::agent_data;
  std::string content_type;
  std::map<std::string, std::string> metadata;
  std::uint64_t size_bytes = 0;
  Hash256 content_hash{};  ///< BLAKE3 of the plaintext
  Instant created_at{};
  std::optional<Instant> expires_at;
  std::optional<Instant> retained_until;  ///< compliance only
};

struct Object {
  ObjectMetadata metadata;
  Bytes data;
};

/// Fills the span from its beginning; the number of bytes, 0 at the end.
using ChunkSource = std::function<Result<std::size_t>(std::span<std::uint8_t>)>;
/// Takes the plaintext in order, in pieces of up to `chunk_bytes`.
using ChunkSink = std::function<Result<>(BytesView)>;

/// An object that is being written. Not thread-safe. Dropped before `finish`: nothing is kept.
class Upload {
 public:
  virtual ~Upload() = default;
  /// Errors: too_large; quota_exceeded; resource_exhausted. After an error only dropping it makes sense.
  virtual Result<> append(BytesView data) = 0;
  /// The object exists when this returns. Call it once.
  virtual Result<ObjectMetadata> finish() = 0;
};

struct PresignedGet {};
struct PresignedPut {
  std::string content_type;
  std::uint64_t size_max = 0;
  Classification classification = Classification::agent_data;
};
using PresignedOperation = std::variant<PresignedGet, PresignedPut>;

struct ListQuery {
  Identity owner;
  std::optional<Classification> classification;
  std::string bucket;  ///< empty: all
  std::string key_prefix;
  std::string cursor;       ///< from the page before; empty: from the start
  std::size_t limit = 100;  ///< 1 to 1000
};
struct ListPage {
  std::vector<ObjectMetadata> objects;  ///< the latest version of each, by bucket and key
  std::string next_cursor;              ///< empty on the last page
};

struct QuotaUse {
  std::uint64_t used_bytes = 0;
  std::uint64_t limit_bytes = 0;
};

/// Who holds the owners' key pairs (nhi; app wires it in). The private half never leaves it. Thread-safe.
class OwnerKeys {
 public:
  virtual ~OwnerKeys() = default;
  struct WrappingKey {
    std::string key_id;     ///< names this very key, so that objects survive a rotation
    std::string algorithm;  ///< "x-wing"; "ml-kem-768" is understood too
    Bytes public_key;
  };
  /// Errors: not_found where `owner` has no encryption key
  virtual Result<WrappingKey> wrapping_key(const Context& ctx, const Identity& owner) = 0;
  /// The shared secret that `kem_ciphertext` holds for the owner's key `key_id`.
  virtual Result<Secret> decapsulate(const Context& ctx, const Identity& owner, std::string_view key_id,
                                     BytesView kem_ciphertext) = 0;
};

struct StorageOptions {
  std::filesystem::path root;               ///< objects live in files below it; made where missing
  std::uint64_t quota_bytes = 10ull << 30;  ///< per owner
  Nanos default_ttl = std::chrono::days(90);
  Nanos compliance_retention = std::chrono::days(2555);
  std::string public_url = "http://127.0.0.1:8081";  ///< what presigned URLs begin with
  Nanos presign_ttl_max = std::chrono::days(7);
  std::uint64_t presigned_put_bytes_max = 4 << 20;  ///< what the HTTP server behind `public_url` takes in one request
  std::size_t chunk_bytes = 1u << 20;               ///< 4 KiB to 16 MiB; each object keeps its own
  Nanos sweep_grace = std::chrono::hours(1);        ///< files younger than this may belong to a running upload
};

/// Keeps objects encrypted for their owner.
///
/// A call is done for `ctx.caller`: the owner itself, or whom policy permits storage.write, storage.read,
/// storage.delete on Object::"bucket/key" (or on Agent::"owner" for `list`). What was stored survives a crash; what was
/// not acknowledged is never visible. Every change is audited in its transaction. Thread-safe.
///
/// Errors of every call: permission_denied; not_found; invalid_input; unavailable; resource_exhausted (disk full)
class Storage {
 public:
  virtual ~Storage() = default;

  /// Errors: too_large (class limit); quota_exceeded (owner's quota); hash_mismatch; encryption_failed
  virtual Result<ObjectMetadata> store(const Context& ctx, const NewObject& object, BytesView data) = 0;
  /// Holds one chunk in memory at a time. Nothing is kept where `source` fails.
  virtual Result<ObjectMetadata> store_stream(const Context& ctx, const NewObject& object,
                                              const ChunkSource& source) = 0;
  /// The same, pushed instead of pulled. The upload must not outlive the storage.
  virtual Result<std::unique_ptr<Upload>> begin_upload(const Context& ctx, const NewObject& object) = 0;

  /// Errors: hash_mismatch where the file was changed, cut or exchanged; decryption_failed; too_large (over 64 MiB:
  /// stream)
  virtual Result<Object> retrieve(const Context& ctx, const StorageRef& ref) = 0;
  /// Each piece is authenticated before `sink` sees it; the end is: an error after pieces were handed over means that
  /// the rest is missing or changed.
  virtual Result<ObjectMetadata> retrieve_stream(const Context& ctx, const StorageRef& ref, const ChunkSink& sink) = 0;

  virtual Result<ObjectMetadata> get_metadata(const Context& ctx, const StorageRef& ref) = 0;
  /// Replaces the custom metadata.
  virtual Result<ObjectMetadata> update_metadata(const Context& ctx, const StorageRef& ref,
                                                 const std::map<std::string, std::string>& metadata) = 0;
  /// One version, or all where `ref` names none. Errors: conflict while it must be retained
  virtual Result<> remove(const Context& ctx, const StorageRef& ref) = 0;
  virtual Result<ListPage> list(const Context& ctx, const ListQuery& query) = 0;
  /// Newest first.
  virtual Result<std::vector<ObjectMetadata>> versions(const Context& ctx, const StorageRef& ref) = 0;
  virtual Result<QuotaUse> quota(const Context& ctx, const Identity& owner) = 0;

  /// A URL that lets its bearer do one thing to one object until it expires, in the name of the caller.
  virtual Result<std::string> presigned_url(const Context& ctx, const StorageRef& ref,
                                            const PresignedOperation& operation, Nanos ttl) = 0;
  /// `target` is path and query of such a URL. What it permits is checked against policy once more, for who asked for
  /// the URL. Errors: permission_denied (changed, or no longer permitted), expired
  virtual Result<ObjectMetadata> presigned_get(std::string_view target, const ChunkSink& sink) = 0;
  virtual Result<ObjectMetadata> presigned_put(std::string_view target, std::string_view content_type,
                                               const ChunkSource& source) = 0;

  /// Removes what has expired and files that belong to no object (left by a crash); the number of both. Call it at
  /// start and every few minutes. Never removes what must be retained.
  virtual Result<std::size_t> sweep(const Context& ctx) = 0;

  virtual HealthStatus health() = 0;
};

/// Everything passed in must outlive the result. `url_key` (32 bytes) authenticates presigned URLs. Runs its
/// migrations.
Result<std::unique_ptr<Storage>> create_storage(sql::Database& database, io::FileSystem& files, OwnerKeys& keys,
                                                AccessControl& access, const Clock& clock, Telemetry& telemetry,
                                                Secret url_key, StorageOptions options);

}  // namespace creto::storage
