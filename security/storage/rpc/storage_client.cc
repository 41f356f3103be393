#include <algorithm>

#include "creto/io/rpc_channel.h"
#include "creto/storage/storage_rpc.h"
#include "rpc/convert.h"

namespace creto::storage {
namespace {

constexpr rpc::CallOptions repeatable{.idempotent = true};
constexpr std::size_t piece_bytes = 1u << 20;
constexpr std::uint64_t retrieve_bytes_max = 64u << 20;

Error only_there(std::string_view what) {
  return Error(Product::platform, ErrorKind::unavailable, std::string(what) + " belongs to the storage service itself");
}

class RemoteUpload final : public Upload {
 public:
  RemoteUpload(rpc::Channel& channel, Context ctx, std::string id)
      : channel_(channel), ctx_(std::move(ctx)), id_(std::move(id)) {}

  Result<> append(BytesView data) override {
    while (!data.empty()) {
      const auto piece = data.first(std::min(data.size(), piece_bytes));
      v1::StoreChunkRequest request;
      request.set_upload_id(id_);
      request.set_offset(size_);
      request.set_data(std::string(as_text(piece)));
      CRETO_TRY((channel_.call<v1::StoreChunkRequest, v1::StoreChunkResponse>(
          ctx_, "/creto.storage.v1.StorageService/StoreChunk", request, repeatable)));
      size_ += piece.size();
      data = data.subspan(piece.size());
    }
    return {};
  }

  Result<ObjectMetadata> finish() override {
    v1::FinishStoreRequest request;
    request.set_upload_id(id_);
    const auto stored = CRETO_TRY((channel_.call<v1::FinishStoreRequest, v1::ObjectMetadata>(
        ctx_, "/creto.storage.v1.StorageService/FinishStore", request)));
    return from_proto(stored);
  }

 private:
  rpc::Channel& channel_;
  const Context ctx_;
  const std::string id_;
  std::uint64_t size_ = 0;
};

class StorageClient final : public Storage {
 public:
  explicit StorageClient(std::shared_ptr<rpc::Channel> channel) : channel_(std::move(channel)) {}

  Result<ObjectMetadata> store(const Context& ctx, const NewObject& object, BytesView data) override {
    if (data.size() > piece_bytes) {
      auto upload = CRETO_TRY(begin_upload(ctx, object));
      CRETO_TRY(upload->append(data));
      return upload->finish();
    }
    v1::StoreRequest request;
    to_proto(object, *request.mutable_spec());
    request.set_data(std::string(as_text(data)));
    const auto stored = CRETO_TRY((call<v1::ObjectMetadata>(ctx, "Store", request)));
    return from_proto(stored);
  }

  Result<ObjectMetadata> store_stream(const Context& ctx, const NewObject& object, const ChunkSource& source) override {
    auto upload = CRETO_TRY(begin_upload(ctx, object));
    Secret buffer(piece_bytes);
    while (true) {
      const auto size = CRETO_TRY(source(buffer.writable()));
      if (size == 0) break;
      CRETO_TRY(upload->append(buffer.reveal().first(size)));
    }
    return upload->finish();
  }

  Result<std::unique_ptr<Upload>> begin_upload(const Context& ctx, const NewObject& object) override {
    v1::BeginStoreRequest request;
    to_proto(object, *request.mutable_spec());
    const auto begun = CRETO_TRY((call<v1::BeginStoreResponse>(ctx, "BeginStore", request)));
    return std::make_unique<RemoteUpload>(*channel_, ctx, begun.upload_id());
  }

  Result<Object> retrieve(const Context& ctx, const StorageRef& ref) override {
    Bytes data;
    auto metadata = CRETO_TRY(retrieve_stream(ctx, ref, [&](BytesView piece) -> Result<> {
      if (data.size() + piece.size() > retrieve_bytes_max) {
        return Error(Product::platform, ErrorKind::too_large, "the object is over 64 MiB: stream it");
      }
      data.insert(data.end(), piece.begin(), piece.end());
      return {};
    }));
    return Object{std::move(metadata), std::move(data)};
  }

  Result<ObjectMetadata> retrieve_stream(const Context& ctx, const StorageRef& ref, const ChunkSink& sink) override {
    v1::RetrieveRequest request;
    to_proto(ref, *request.mutable_reference());
    Result<> outcome;
    std::optional<v1::ObjectMetadata> metadata;
    auto read = channel_->stream<v1::RetrieveChunk>(ctx, "/creto.storage.v1.StorageService/RetrieveStream", request,
                                                    [&](const v1::RetrieveChunk& chunk) {
                                                      if (chunk.has_metadata()) metadata = chunk.metadata();
                                                      if (!chunk.data().empty()) outcome = sink(as_bytes(chunk.data()));
                                                      return outcome.has_value();
                                                    });
    if (!outcome) return std::move(outcome).error();
    if (!read) return std::move(read).error();
    if (!metadata) return Error(Product::platform, ErrorKind::unavailable, "the stream held no object");
    return from_proto(*metadata);
  }

  Result<ObjectMetadata> get_metadata(const Context& ctx, const StorageRef& ref) override {
    v1::GetMetadataRequest request;
    to_proto(ref, *request.mutable_reference());
    const auto metadata = CRETO_TRY((call<v1::ObjectMetadata>(ctx, "GetMetadata", request, repeatable)));
    return from_proto(metadata);
  }

  Result<ObjectMetadata> update_metadata(const Context& ctx, const StorageRef& ref,
                                         const std::map<std::string, std::string>& metadata) override {
    v1::UpdateMetadataRequest request;
    to_proto(ref, *request.mutable_reference());
    request.mutable_metadata()->insert(metadata.begin(), metadata.end());
    const auto changed = CRETO_TRY((call<v1::ObjectMetadata>(ctx, "UpdateMetadata", request, repeatable)));
    return from_proto(changed);
  }

  Result<> remove(const Context& ctx, const StorageRef& ref) override {
    v1::DeleteRequest request;
    to_proto(ref, *request.mutable_reference());
    CRETO_TRY((call<v1::DeleteResponse>(ctx, "Delete", request)));
    return {};
  }

  Result<ListPage> list(const Context& ctx, const ListQuery& query) override {
    v1::ListRequest request;
    to_proto(query, request);
    const auto page = CRETO_TRY((call<v1::ListResponse>(ctx, "List", request, repeatable)));
    return from_proto(page);
  }

  Result<std::vector<ObjectMetadata>> versions(const Context& ctx, const StorageRef& ref) override {
    v1::ListVersionsRequest request;
    request.set_bucket(ref.bucket);
    request.set_key(ref.key);
    const auto found = CRETO_TRY((call<v1::ListResponse>(ctx, "ListVersions", request, repeatable)));
    auto page = CRETO_TRY(from_proto(found));
    return std::move(page.objects);
  }

  Result<QuotaUse> quota(const Context& ctx, const Identity& owner) override {
    v1::GetQuotaRequest request;
    request.set_owner(owner.text());
    const auto use = CRETO_TRY((call<v1::Quota>(ctx, "GetQuota", request, repeatable)));
    return QuotaUse{use.used_bytes(), use.limit_bytes()};
  }

  Result<std::string> presigned_url(const Context& ctx, const StorageRef& ref, const PresignedOperation& operation,
                                    Nanos ttl) override {
    v1::PresignedUrlRequest request;
    to_proto(ref, *request.mutable_reference());
    proto::set_duration(request.mutable_ttl(), ttl);
    if (const auto* put = std::get_if<PresignedPut>(&operation)) {
      request.mutable_put()->set_content_type(put->content_type);
      request.mutable_put()->set_size_max(put->size_max);
      request.mutable_put()->set_classification(to_proto(put->classification));
    }
    const auto made = CRETO_TRY((call<v1::PresignedUrlResponse>(ctx, "GeneratePresignedUrl", request)));
    return made.url();
  }

  Result<ObjectMetadata> presigned_get(std::string_view, const ChunkSink&) override {
    return only_there("serving presigned URLs");
  }
  Result<ObjectMetadata> presigned_put(std::string_view, std::string_view, const ChunkSource&) override {
    return only_there("serving presigned URLs");
  }
  Result<std::size_t> sweep(const Context&) override { return only_there("sweeping"); }

  /// Whether the service answers at all; its own health is at its health endpoint.
  HealthStatus health() override {
    v1::GetQuotaRequest request;
    auto answered = call<v1::Quota>(Context(), "GetQuota", request);
    if (!answered && answered.error().category() == ErrorCategory::transient) {
      return {Health::unhealthy, "storage does not answer"};
    }
    return {};
  }

 private:
  template <class Res, class Req>
  Result<Res> call(const Context& ctx, std::string_view method, const Req& request, rpc::CallOptions options = {}) {
    return channel_->call<Req, Res>(ctx, "/creto.storage.v1.StorageService/" + std::string(method), request, options);
  }

  const std::shared_ptr<rpc::Channel> channel_;
};

}  // namespace

std::unique_ptr<Storage> create_storage_client(std::shared_ptr<rpc::Channel> channel) {
  return std::make_unique<StorageClient>(std::move(channel));
}

}  // namespace creto::storage
