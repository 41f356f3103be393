#include "creto/storage/storage.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "creto/audit/audit_log.h"
#include "creto/common/json.h"
#include "creto/io/files.h"
#include "creto/io/sql.h"
#include "sealed_object.h"
#include "storage_codec.h"
#include "storage_store.h"

namespace creto::storage {
namespace {

constexpr std::uint64_t retrieve_bytes_max = 64u << 20;
constexpr std::size_t sweep_batch = 500;
constexpr std::int64_t kept_for_ever = 0;

Error storage_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }
Error no_object(const StorageRef& ref) {
  return storage_error(ErrorKind::not_found, fmt::format("there is no object `{}`", ref.text()));
}
Error changed(const StorageRef& ref, std::string_view how) {
  return storage_error(ErrorKind::hash_mismatch, fmt::format("object `{}` {}", ref.text(), how));
}
Error quota_exceeded(std::uint64_t used, std::uint64_t limit) {
  return storage_error(ErrorKind::quota_exceeded, fmt::format("storage quota exceeded: {}/{} bytes", used, limit));
}

struct Probe {
  explicit Probe(Telemetry& telemetry)
      : stored(telemetry.counter("creto_storage_objects_stored_total", "Objects stored")),
        stored_bytes(telemetry.counter("creto_storage_bytes_stored_total", "Bytes of plaintext stored")),
        retrieved(telemetry.counter("creto_storage_objects_retrieved_total", "Objects retrieved")),
        tampered(telemetry.counter("creto_storage_tampered_total", "Objects that were found changed")),
        swept(telemetry.counter("creto_storage_swept_total", "Expired objects and left-over files removed")) {}
  Counter& stored;
  Counter& stored_bytes;
  Counter& retrieved;
  Counter& tampered;
  Counter& swept;
};

/// Where the files are: root/objects/<last two digits of the version>/<version>, and root/tmp/<version> while written.
struct Layout {
  std::filesystem::path root;
  std::filesystem::path temporary_directory() const { return root / "tmp"; }
  std::filesystem::path temporary(const std::string& version) const { return temporary_directory() / version; }
  std::filesystem::path directory(const std::string& version) const {
    return root / "objects" / version.substr(version.size() - 2);
  }
  std::filesystem::path file(const std::string& version) const { return directory(version) / version; }
};

class StorageService;

class UploadImpl final : public Upload {
 public:
  UploadImpl(StorageService& service, Context ctx, ObjectMetadata metadata, std::optional<Hash256> expected,
             std::uint64_t size_max, std::uint64_t quota_left, ObjectWriter writer,
             std::unique_ptr<io::WritableFile> file)
      : service_(service),
        ctx_(std::move(ctx)),
        metadata_(std::move(metadata)),
        expected_(expected),
        size_max_(size_max),
        quota_left_(quota_left),
        writer_(std::move(writer)),
        file_(std::move(file)) {}
  ~UploadImpl() override;

  Result<> append(BytesView data) override;
  Result<ObjectMetadata> finish() override;

 private:
  StorageService& service_;
  const Context ctx_;
  ObjectMetadata metadata_;
  const std::optional<Hash256> expected_;
  const std::uint64_t size_max_;
  const std::uint64_t quota_left_;
  ObjectWriter writer_;
  std::unique_ptr<io::WritableFile> file_;
  bool broken_ = false;
};

class StorageService final : public Storage {
 public:
  StorageService(sql::Database& database, io::FileSystem& files, OwnerKeys& keys, AccessControl& access,
                 const Clock& clock, Telemetry& telemetry, Secret url_key, StorageOptions options)
      : database_(database),
        files_(files),
        keys_(keys),
        access_(access),
        clock_(clock),
        telemetry_(telemetry),
        probe_(telemetry),
        url_key_(std::move(url_key)),
        options_(std::move(options)),
        layout_{options_.root} {}

  Result<> prepare() {
    CRETO_TRY(files_.create_directories(layout_.temporary_directory()));
    // All 256 now, so that storing never has to make one.
    for (int i = 0; i < 256; ++i) CRETO_TRY(files_.create_directories(layout_.directory(fmt::format("{:02x}", i))));
    return {};
  }

  Result<ObjectMetadata> store(const Context& ctx, const NewObject& object, BytesView data) override {
    auto upload = CRETO_TRY(begin(ctx, object));
    while (!data.empty()) {
      const auto piece = data.first(std::min(data.size(), options_.chunk_bytes));
      CRETO_TRY(upload->append(piece));
      data = data.subspan(piece.size());
    }
    return upload->finish();
  }

  Result<ObjectMetadata> store_stream(const Context& ctx, const NewObject& object, const ChunkSource& source) override {
    auto upload = CRETO_TRY(begin(ctx, object));
    Secret buffer(options_.chunk_bytes);
    while (true) {
      const auto size = CRETO_TRY(source(buffer.writable()));
      if (size == 0) break;
      CRETO_ASSERT(size <= buffer.size());
      CRETO_TRY(upload->append(buffer.reveal().first(size)));
    }
    return upload->finish();
  }

  Result<std::unique_ptr<Upload>> begin_upload(const Context& ctx, const NewObject& object) override {
    return begin(ctx, object);
  }

  Result<Object> retrieve(const Context& ctx, const StorageRef& ref) override {
    const auto stored = CRETO_TRY(permitted(ctx, ref, "storage.read"));
    if (stored.metadata.size_bytes > retrieve_bytes_max) {
      return storage_error(ErrorKind::too_large,
                           fmt::format("object `{}` has {} bytes: stream it", ref.text(), stored.metadata.size_bytes));
    }
    Object object{stored.metadata, {}};
    object.data.reserve(stored.metadata.size_bytes);
    CRETO_TRY(read(ctx, stored, [&](BytesView piece) -> Result<> {
      object.data.insert(object.data.end(), piece.begin(), piece.end());
      return {};
    }));
    return object;
  }

  Result<ObjectMetadata> retrieve_stream(const Context& ctx, const StorageRef& ref, const ChunkSink& sink) override {
    const auto stored = CRETO_TRY(permitted(ctx, ref, "storage.read"));
    CRETO_TRY(read(ctx, stored, sink));
    return stored.metadata;
  }

  Result<ObjectMetadata> get_metadata(const Context& ctx, const StorageRef& ref) override {
    const auto stored = CRETO_TRY(permitted(ctx, ref, "storage.read"));
    return stored.metadata;
  }

  Result<ObjectMetadata> update_metadata(const Context& ctx, const StorageRef& ref,
                                         const std::map<std::string, std::string>& metadata) override {
    CRETO_TRY(check_metadata(metadata));
    auto stored = CRETO_TRY(permitted(ctx, ref, "storage.write"));
    const auto text = CRETO_TRY(texts_to_json(metadata));
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      const auto there = CRETO_TRY(store::find(tx, ctx, stored.metadata.ref, clock_.now()));
      if (!there) return no_object(ref);
      CRETO_TRY(store::set_metadata(tx, ctx, stored.metadata.ref, text));
      return record(tx, ctx, "storage.update_metadata", stored.metadata);
    }));
    stored.metadata.metadata = metadata;
    return stored.metadata;
  }

  Result<> remove(const Context& ctx, const StorageRef& ref) override {
    const auto latest = CRETO_TRY(permitted(ctx, ref, "storage.delete"));
    return database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      const auto now = clock_.now();
      auto all = CRETO_TRY(store::versions(tx, ctx, ref));
      if (!ref.version.empty()) {
        std::erase_if(all, [&](const StoredObject& o) { return o.metadata.ref.version != ref.version; });
      }
      if (all.empty()) return no_object(ref);
      for (const auto& object : all) {
        const auto& m = object.metadata;
        if (m.owner != latest.metadata.owner) return no_object(ref);
        if (m.retained_until && *m.retained_until > now) {
          return storage_error(ErrorKind::conflict, fmt::format("object `{}` must be kept until {}", m.ref.text(),
                                                                to_rfc3339(*m.retained_until)));
        }
      }
      for (const auto& object : all) {
        CRETO_TRY(store::erase(tx, ctx, object));
        CRETO_TRY(record(tx, ctx, "storage.delete", object.metadata));
        // A file that a crash leaves behind here is found by `sweep`.
        tx.after_commit([this, version = object.metadata.ref.version] { drop_file(version); });
      }
      return {};
    });
  }

  Result<ListPage> list(const Context& ctx, const ListQuery& query) override {
    if (query.limit == 0 || query.limit > 1000)
      return storage_error(ErrorKind::invalid_input, "`limit` must be 1 to 1000");
    if (!query.bucket.empty()) CRETO_TRY(check_bucket(query.bucket));
    if (query.key_prefix.size() > 512 || !is_valid_utf8(query.key_prefix)) {
      return storage_error(ErrorKind::invalid_input, "`key_prefix` must be at most 512 bytes of UTF-8");
    }
    std::pair<std::string, std::string> after;
    if (!query.cursor.empty()) {
      const auto decoded = from_base64url(query.cursor);
      const auto text = decoded ? as_text(*decoded) : std::string_view();
      const auto slash = text.find('/');
      if (slash == std::string_view::npos || text.size() > 1024 || !is_valid_utf8(text)) {
        return storage_error(ErrorKind::invalid_input, "`cursor` is none of ours");
      }
      after = {std::string(text.substr(0, slash)), std::string(text.substr(slash + 1))};
    }
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    if (caller != query.owner) CRETO_TRY(access_.require(ctx, "storage.list", "Agent", query.owner.text()));
    const auto found = CRETO_TRY(
        sql::read(database_, ctx, [&](sql::Tx& tx) { return store::list(tx, ctx, query, after, clock_.now()); }));
    ListPage page;
    for (const auto& object : found) {
      if (page.objects.size() == query.limit) {
        const auto& last = page.objects.back().ref;
        page.next_cursor = base64url(as_bytes(last.bucket + "/" + last.key));
        break;
      }
      page.objects.push_back(object.metadata);
    }
    return page;
  }

  Result<std::vector<ObjectMetadata>> versions(const Context& ctx, const StorageRef& ref) override {
    const auto latest = CRETO_TRY(permitted(ctx, StorageRef{ref.bucket, ref.key, ""}, "storage.read"));
    const auto all = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::versions(tx, ctx, ref); }));
    const auto now = clock_.now();
    std::vector<ObjectMetadata> out;
    for (const auto& object : all) {
      const auto& m = object.metadata;
      if (m.owner == latest.metadata.owner && (!m.expires_at || *m.expires_at > now)) out.push_back(m);
    }
    return out;
  }

  Result<QuotaUse> quota(const Context& ctx, const Identity& owner) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    if (caller != owner) CRETO_TRY(access_.require(ctx, "storage.list", "Agent", owner.text()));
    const auto used =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::used_bytes(tx, ctx, owner); }));
    return QuotaUse{used, options_.quota_bytes};
  }

  Result<std::string> presigned_url(const Context& ctx, const StorageRef& ref, const PresignedOperation& operation,
                                    Nanos ttl) override {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    if (ttl < std::chrono::seconds(1) || ttl > options_.presign_ttl_max) {
      return storage_error(ErrorKind::invalid_input,
                           fmt::format("`ttl` must be 1s to {}", creto::to_string(options_.presign_ttl_max)));
    }
    const auto expires = std::chrono::floor<std::chrono::seconds>((clock_.now() + ttl).time_since_epoch());
    Grant grant{ctx.org, caller, ref, operation, expires.count()};
    if (const auto* put = std::get_if<PresignedPut>(&operation)) {
      CRETO_TRY(check_bucket(ref.bucket));
      CRETO_TRY(check_key(ref.key));
      CRETO_TRY(check_content_type(put->content_type));
      const std::uint64_t limit = std::min(size_limit_of(put->classification), options_.presigned_put_bytes_max);
      if (put->size_max == 0 || put->size_max > limit) {
        return storage_error(ErrorKind::invalid_input,
                             fmt::format("`size_max` must be 1 to {} for {}", limit, to_string(put->classification)));
      }
      grant.ref.version.clear();
    } else {
      const auto stored = CRETO_TRY(permitted(ctx, ref, "storage.read"));
      grant.ref = stored.metadata.ref;
    }
    CRETO_TRY(database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      auto entry = audit::AuditRecord::of(ctx, "storage.presign", "object:" + grant.ref.text());
      entry.metadata = fmt::format(R"({{"expires_at":"{}","operation":"{}"}})", grant.expires_s,
                                   std::holds_alternative<PresignedPut>(operation) ? "put" : "get");
      CRETO_TRY(audit::record(tx, ctx, std::move(entry)));
      return {};
    }));
    return options_.public_url + sign_target(grant, url_key_.reveal());
  }

  Result<ObjectMetadata> presigned_get(std::string_view target, const ChunkSink& sink) override {
    const auto grant = CRETO_TRY(redeem(target));
    if (!std::holds_alternative<PresignedGet>(grant.operation)) {
      return storage_error(ErrorKind::permission_denied, "the presigned URL is for storing");
    }
    return retrieve_stream(context_of(grant), grant.ref, sink);
  }

  Result<ObjectMetadata> presigned_put(std::string_view target, std::string_view content_type,
                                       const ChunkSource& source) override {
    const auto grant = CRETO_TRY(redeem(target));
    const auto* put = std::get_if<PresignedPut>(&grant.operation);
    if (put == nullptr) return storage_error(ErrorKind::permission_denied, "the presigned URL is for reading");
    if (content_type != put->content_type) {
      return storage_error(ErrorKind::permission_denied,
                           fmt::format("the presigned URL is for content of type `{}`", put->content_type));
    }
    NewObject object{grant.ref.bucket, grant.ref.key, grant.as, put->classification, put->content_type, {}, {}, {}};
    std::uint64_t total = 0;
    return store_stream(context_of(grant), object, [&](std::span<std::uint8_t> buffer) -> Result<std::size_t> {
      const auto size = CRETO_TRY(source(buffer));
      total += size;
      if (total > put->size_max) {
        return storage_error(ErrorKind::too_large,
                             fmt::format("over the {} bytes that the presigned URL permits", put->size_max));
      }
      return size;
    });
  }

  Result<std::size_t> sweep(const Context& ctx) override {
    std::size_t removed = 0;
    while (true) {
      const auto batch = CRETO_TRY(sql::write(database_, ctx, [&](sql::Tx& tx) -> Result<std::size_t> {
        const auto gone = CRETO_TRY(store::expired(tx, clock_.now(), sweep_batch));
        for (const auto& [org, object] : gone) {
          Context as = ctx;
          as.org = org;
          CRETO_TRY(store::erase(tx, as, object));
          CRETO_TRY(record(tx, as, "storage.expire", object.metadata));
          tx.after_commit([this, version = object.metadata.ref.version] { drop_file(version); });
        }
        return gone.size();
      }));
      removed += batch;
      if (batch < sweep_batch) break;
    }
    const auto left_over = CRETO_TRY(sweep_directory(ctx, layout_.temporary_directory(), false));
    removed += left_over;
    for (int i = 0; i < 256; ++i) {
      const auto orphans = CRETO_TRY(sweep_directory(ctx, layout_.directory(fmt::format("{:02x}", i)), true));
      removed += orphans;
    }
    probe_.swept.add(removed);
    return removed;
  }

  HealthStatus health() override {
    auto there = files_.exists(layout_.temporary_directory());
    if (!there || !*there) return {Health::unhealthy, "the directory of the objects is not there"};
    auto answered = database_.read(Context(), [](sql::Tx& tx) -> Result<> {
      CRETO_TRY(tx.query("SELECT 1 FROM storage_usage LIMIT 1"));
      return {};
    });
    if (!answered) return {Health::unhealthy, "the database does not answer"};
    return {};
  }

 private:
  friend class UploadImpl;

  static Result<std::reference_wrapper<const Identity>> caller_of(const Context& ctx) {
    if (!ctx.caller) return storage_error(ErrorKind::unauthenticated, "no caller");
    return std::cref(*ctx.caller);
  }

  static Context context_of(const Grant& grant) {
    auto ctx = Context::of(grant.as, {grant.as});
    ctx.org = grant.org;
    return ctx;
  }

  static std::string binding(const Context& ctx, const ObjectMetadata& metadata) {
    return fmt::format("storage:{}\n{}\n{}", ctx.org, metadata.owner.text(), metadata.ref.text());
  }

  static Result<> record(sql::Tx& tx, const Context& ctx, std::string_view what, const ObjectMetadata& metadata) {
    auto entry = audit::AuditRecord::of(ctx, std::string(what), "object:" + metadata.ref.text());
    entry.metadata = fmt::format(R"({{"classification":"{}","content_hash":"{}","owner":"{}","size_bytes":"{}"}})",
                                 to_string(metadata.classification), hex(metadata.content_hash), metadata.owner.text(),
                                 metadata.size_bytes);
    CRETO_TRY(audit::record(tx, ctx, std::move(entry)));
    return {};
  }

  Result<Grant> redeem(std::string_view target) const {
    auto grant = CRETO_TRY(verify_target(target, url_key_.reveal()));
    if (unix_ns(clock_.now()) / 1'000'000'000 >= grant.expires_s) {
      return storage_error(ErrorKind::expired, "the presigned URL has expired");
    }
    return grant;
  }

  /// The object, if the caller owns it or policy permits `action` on it. Without permission nobody learns whether it is
  /// there.
  Result<StoredObject> permitted(const Context& ctx, const StorageRef& ref, std::string_view action) {
    CRETO_TRY(check_bucket(ref.bucket));
    CRETO_TRY(check_key(ref.key));
    if (!ref.version.empty()) CRETO_TRY(ObjectId::parse(ref.version));
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    auto found =
        CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::find(tx, ctx, ref, clock_.now()); }));
    if (!found || found->metadata.owner != caller) {
      CRETO_TRY(access_.require(ctx, action, "Object", ref.bucket + "/" + ref.key));
    }
    if (!found) return no_object(ref);
    return std::move(*found);
  }

  Result<std::unique_ptr<UploadImpl>> begin(const Context& ctx, const NewObject& object) {
    const Identity& caller = CRETO_TRY(caller_of(ctx));
    const auto now = clock_.now();
    const auto version = ObjectId::fresh(now).to_string();
    StorageRef ref{object.bucket, object.key.empty() ? version : object.key, version};
    CRETO_TRY(check_bucket(ref.bucket));
    CRETO_TRY(check_key(ref.key));
    CRETO_TRY(check_content_type(object.content_type));
    CRETO_TRY(check_metadata(object.metadata));
    ObjectMetadata metadata{
        ref, object.owner, object.classification, object.content_type, object.metadata, 0, {}, now, {}, {}};
    CRETO_TRY(set_life(object, metadata));
    if (caller != object.owner) CRETO_TRY(access_.require(ctx, "storage.write", "Object", ref.bucket + "/" + ref.key));
    const auto used = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) -> Result<std::uint64_t> {
      CRETO_TRY(check_same_owner(tx, ctx, metadata));
      return store::used_bytes(tx, ctx, object.owner);
    }));
    if (used >= options_.quota_bytes) return quota_exceeded(used, options_.quota_bytes);
    const auto key = CRETO_TRY(keys_.wrapping_key(ctx, object.owner));
    const auto algorithm = CRETO_TRY(crypto::parse_kem_algorithm(key.algorithm));
    const auto public_key = CRETO_TRY(crypto::KemPublicKey::parse(algorithm, key.public_key));
    auto writer = CRETO_TRY(ObjectWriter::create(public_key, key.key_id, binding(ctx, metadata), options_.chunk_bytes));
    {
      const std::scoped_lock lock(mutex_);
      running_.insert(version);
    }
    auto file = files_.create(layout_.temporary(version), 0600);
    if (!file) {
      ended(version);
      return std::move(file).error();
    }
    auto upload = std::make_unique<UploadImpl>(*this, ctx, std::move(metadata), object.expected_hash,
                                               size_limit_of(object.classification), options_.quota_bytes - used,
                                               std::move(writer), std::move(*file));
    return upload;
  }

  Result<> set_life(const NewObject& object, ObjectMetadata& metadata) const {
    const bool retained = object.classification == Classification::compliance;
    if (object.ttl && (*object.ttl < Nanos::zero() || *object.ttl > std::chrono::days(36'500))) {
      return storage_error(ErrorKind::invalid_input, "`ttl` must be 0 (for ever) to 100 years");
    }
    if (retained) metadata.retained_until = metadata.created_at + options_.compliance_retention;
    if (!object.ttl) {
      metadata.expires_at = metadata.created_at + (retained ? options_.compliance_retention : options_.default_ttl);
    } else if (object.ttl->count() != kept_for_ever) {
      metadata.expires_at = metadata.created_at + *object.ttl;
    }
    if (retained && metadata.expires_at && *metadata.expires_at < *metadata.retained_until) {
      return storage_error(ErrorKind::invalid_input, fmt::format("`ttl` of a compliance object must be at least {}",
                                                                 creto::to_string(options_.compliance_retention)));
    }
    return {};
  }

  /// A key belongs to whose first object it held.
  Result<> check_same_owner(sql::Tx& tx, const Context& ctx, const ObjectMetadata& metadata) const {
    const auto there =
        CRETO_TRY(store::find(tx, ctx, StorageRef{metadata.ref.bucket, metadata.ref.key, ""}, clock_.now()));
    if (there && there->metadata.owner != metadata.owner) {
      return storage_error(ErrorKind::already_exists,
                           fmt::format("`{}/{}` belongs to somebody else", metadata.ref.bucket, metadata.ref.key));
    }
    return {};
  }

  Result<> read(const Context& ctx, const StoredObject& stored, const ChunkSink& sink) {
    auto done = read_file(ctx, stored, sink);
    if (!done && done.error().kind() == ErrorKind::hash_mismatch) {
      probe_.tampered.add();
      telemetry_.log(LogLevel::error, "storage", "object_tampered", &ctx,
                     {{"object", stored.metadata.ref.text()}, {"reason", done.error().message()}});
    }
    if (done) probe_.retrieved.add();
    return done;
  }

  Result<> read_file(const Context& ctx, const StoredObject& stored, const ChunkSink& sink) {
    const auto& m = stored.metadata;
    const auto path = layout_.file(m.ref.version);
    auto start = files_.read_at(path, 0, header_bytes_max);
    if (!start) {
      if (start.error().kind() == ErrorKind::not_found) return changed(m.ref, "has lost its file");
      return std::move(start).error();
    }
    std::size_t header_size = 0;
    const auto header = ObjectHeader::parse(*start, header_size);
    if (!header) {
      if (header.error().kind() == ErrorKind::unsupported_algorithm) return header.error();
      return changed(m.ref, "has a damaged header");
    }
    if (crypto::blake3(BytesView(*start).first(header_size)) != stored.header_hash)
      return changed(m.ref, "has another header");
    const auto shared = CRETO_TRY(keys_.decapsulate(ctx, m.owner, header->key_id, header->kem_ciphertext));
    auto reader = CRETO_TRY(ObjectReader::create(*header, shared, binding(ctx, m)));
    crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
    std::uint64_t offset = header_size;
    std::uint64_t left = m.size_bytes;
    while (true) {
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left, header->chunk_bytes));
      const bool last = left <= header->chunk_bytes;
      const auto ciphertext = CRETO_TRY(files_.read_at(path, offset, size + chunk_overhead));
      if (ciphertext.size() != size + chunk_overhead) return changed(m.ref, "was cut off");
      const auto plaintext = CRETO_TRY(reader.chunk(ciphertext, last));
      hasher.update(plaintext.reveal());
      if (!plaintext.empty()) CRETO_TRY(sink(plaintext.reveal()));
      offset += ciphertext.size();
      left -= size;
      if (last) break;
    }
    const auto size = CRETO_TRY(files_.size(path));
    if (size != offset) return changed(m.ref, "has something behind its end");
    if (hasher.finish() != m.content_hash) return changed(m.ref, "has another content than was stored");
    return {};
  }

  Result<ObjectMetadata> commit(const Context& ctx, ObjectMetadata metadata, const Hash256& header_hash) {
    const auto& version = metadata.ref.version;
    const auto target = layout_.file(version);
    CRETO_TRY(files_.rename(layout_.temporary(version), target));
    auto synced = files_.sync_directory(layout_.directory(version));
    if (!synced) {
      drop_file(version);
      return std::move(synced).error();
    }
    auto done = database_.transaction(ctx, [&](sql::Tx& tx) -> Result<> {
      CRETO_TRY(check_same_owner(tx, ctx, metadata));
      const auto used =
          CRETO_TRY(store::add_used(tx, ctx, metadata.owner, static_cast<std::int64_t>(metadata.size_bytes)));
      if (used > options_.quota_bytes) return quota_exceeded(used, options_.quota_bytes);
      CRETO_TRY(store::insert(tx, ctx, StoredObject{metadata, header_hash}));
      return record(tx, ctx, "storage.store", metadata);
    });
    if (!done) {
      // Where the connection broke during the commit it may have happened: then the file must stay, and `sweep`
      // decides.
      if (done.error().kind() != ErrorKind::unavailable && done.error().kind() != ErrorKind::timeout)
        drop_file(version);
      return std::move(done).error();
    }
    probe_.stored.add();
    probe_.stored_bytes.add(metadata.size_bytes);
    return metadata;
  }

  void drop_file(const std::string& version) {
    auto removed = files_.remove(layout_.file(version));
    if (!removed) {
      telemetry_.warn("storage", "file_not_removed", {{"version", version}, {"reason", removed.error().message()}});
    }
  }

  void ended(const std::string& version) {
    const std::scoped_lock lock(mutex_);
    running_.erase(version);
  }

  Result<std::size_t> sweep_directory(const Context& ctx, const std::filesystem::path& directory, bool ask_database) {
    const auto names = CRETO_TRY(files_.list(directory));
    std::size_t removed = 0;
    for (const auto& name : names) {
      // A name that is none of ours was put there by somebody, and is left to him.
      const auto id = ObjectId::parse(name);
      if (!id || clock_.now() - made_at(*id) < options_.sweep_grace) continue;
      {
        const std::scoped_lock lock(mutex_);
        if (running_.contains(name)) continue;
      }
      if (ask_database) {
        const auto known = CRETO_TRY(sql::read(database_, ctx, [&](sql::Tx& tx) { return store::is_known(tx, name); }));
        if (known) continue;
      }
      CRETO_TRY(files_.remove(directory / name));
      ++removed;
    }
    return removed;
  }

  /// A UUIDv7 begins with its time in milliseconds.
  static Instant made_at(const ObjectId& id) {
    std::int64_t ms = 0;
    for (std::size_t i = 0; i < 6; ++i) ms = ms << 8 | id.bytes()[i];
    return Instant(std::chrono::milliseconds(ms));
  }

  sql::Database& database_;
  io::FileSystem& files_;
  OwnerKeys& keys_;
  AccessControl& access_;
  const Clock& clock_;
  Telemetry& telemetry_;
  Probe probe_;
  const Secret url_key_;
  const StorageOptions options_;
  const Layout layout_;
  std::mutex mutex_;
  std::set<std::string> running_;  ///< versions being written; never swept
};

UploadImpl::~UploadImpl() {
  if (file_) {
    file_.reset();
    auto removed = service_.files_.remove(service_.layout_.temporary(metadata_.ref.version));
    // What stays is swept later.
    static_cast<void>(removed);
  }
  service_.ended(metadata_.ref.version);
}

Result<> UploadImpl::append(BytesView data) {
  CRETO_ASSERT(file_ != nullptr);
  if (broken_) return storage_error(ErrorKind::conflict, "the upload has failed");
  const auto fail = [&](Error error) {
    broken_ = true;
    return error;
  };
  const auto size = writer_.size() + data.size();
  if (size > size_max_) {
    return fail(storage_error(ErrorKind::too_large, fmt::format("object too large: over the {} bytes of {}", size_max_,
                                                                to_string(metadata_.classification))));
  }
  if (size > quota_left_) {
    const auto limit = service_.options_.quota_bytes;
    return fail(quota_exceeded(limit - quota_left_ + size, limit));
  }
  if (file_->size() == 0) {
    auto written = file_->append(writer_.header());
    if (!written) return fail(std::move(written).error());
  }
  auto written = file_->append(writer_.update(data));
  if (!written) return fail(std::move(written).error());
  return {};
}

Result<ObjectMetadata> UploadImpl::finish() {
  CRETO_ASSERT(file_ != nullptr);
  CRETO_TRY(append({}));
  CRETO_TRY(file_->append(writer_.finish()));
  if (expected_ && *expected_ != writer_.content_hash()) {
    return storage_error(ErrorKind::hash_mismatch, fmt::format("hash mismatch: expected {}, got {}", hex(*expected_),
                                                               hex(writer_.content_hash())));
  }
  CRETO_TRY(file_->sync());
  metadata_.size_bytes = writer_.size();
  metadata_.content_hash = writer_.content_hash();
  auto stored = service_.commit(ctx_, metadata_, crypto::blake3(writer_.header()));
  if (stored) file_.reset();
  return stored;
}

}  // namespace

Result<std::unique_ptr<Storage>> create_storage(sql::Database& database, io::FileSystem& files, OwnerKeys& keys,
                                                AccessControl& access, const Clock& clock, Telemetry& telemetry,
                                                Secret url_key, StorageOptions options) {
  if (url_key.size() != 32)
    return storage_error(ErrorKind::invalid_input, "the key of presigned URLs must have 32 bytes");
  if (options.root.empty()) return storage_error(ErrorKind::invalid_input, "`root` is empty");
  if (options.chunk_bytes < chunk_bytes_min || options.chunk_bytes > chunk_bytes_max) {
    return storage_error(ErrorKind::invalid_input, "`chunk_bytes` must be 4096 to 16777216");
  }
  CRETO_TRY(audit::prepare(database));
  CRETO_TRY(store::migrate(database));
  auto service = std::make_unique<StorageService>(database, files, keys, access, clock, telemetry, std::move(url_key),
                                                  std::move(options));
  CRETO_TRY(service->prepare());
  return service;
}

}  // namespace creto::storage
