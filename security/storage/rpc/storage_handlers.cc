#include <fmt/format.h>

#include <algorithm>

#include "creto/io/rpc.h"
#include "creto/storage/storage_rpc.h"
#include "rpc/convert.h"
#include "rpc/upload_table.h"

namespace creto::storage {
namespace {

constexpr std::size_t unary_bytes_max = 4u << 20;

template <class Out, class In>
Out as_proto(const In& in) {
  Out out;
  to_proto(in, out);
  return out;
}

Error too_large(std::string_view what) {
  return Error(Product::platform, ErrorKind::too_large, fmt::format("over {} bytes: {}", unary_bytes_max, what));
}

void send_object(Storage& storage, const Context& ctx, const StorageRef& ref,
                 const rpc::Stream<v1::RetrieveChunk>& stream) {
  auto metadata = storage.get_metadata(ctx, ref);
  if (!metadata) return stream.finish(std::move(metadata).error());
  v1::RetrieveChunk first;
  to_proto(*metadata, *first.mutable_metadata());
  stream.send(first);
  // The very version whose metadata was sent, also where a newer one comes meanwhile.
  auto read = storage.retrieve_stream(ctx, metadata->ref, [&](BytesView piece) -> Result<> {
    v1::RetrieveChunk chunk;
    chunk.set_data(std::string(as_text(piece)));
    if (!stream.send(chunk))
      return Error(Product::platform, ErrorKind::cancelled, "the reader is gone or too far behind");
    return {};
  });
  if (!read) return stream.finish(std::move(read).error());
  stream.finish();
}

}  // namespace

// Whose objects one may touch is decided by the service itself, per object: the dispatcher only asks who is calling.
void register_storage(rpc::Dispatcher& dispatcher, Storage& storage, const Clock& clock) {
  auto service = dispatcher.service("creto.storage.v1.StorageService");
  constexpr auto own = rpc::Access::authenticated;
  const auto uploads = std::make_shared<UploadTable>(clock);

  service.unary<v1::StoreRequest, v1::ObjectMetadata>(
      "Store", {.access = own},
      [&storage](const Context& ctx, const v1::StoreRequest& r) -> Result<v1::ObjectMetadata> {
        if (r.data().size() > unary_bytes_max) return too_large("send it in chunks");
        const auto object = CRETO_TRY(from_proto(ctx, r.spec()));
        const auto stored = CRETO_TRY(storage.store(ctx, object, as_bytes(r.data())));
        return as_proto<v1::ObjectMetadata>(stored);
      });
  service.unary<v1::BeginStoreRequest, v1::BeginStoreResponse>(
      "BeginStore", {.access = own},
      [&storage, uploads](const Context& ctx, const v1::BeginStoreRequest& r) -> Result<v1::BeginStoreResponse> {
        const auto object = CRETO_TRY(from_proto(ctx, r.spec()));
        auto upload = CRETO_TRY(storage.begin_upload(ctx, object));
        v1::BeginStoreResponse response;
        const auto id = CRETO_TRY(uploads->add(ctx, std::move(upload)));
        response.set_upload_id(id);
        return response;
      });
  service.unary<v1::StoreChunkRequest, v1::StoreChunkResponse>(
      "StoreChunk", {.access = own, .idempotent = true},
      [uploads](const Context& ctx, const v1::StoreChunkRequest& r) -> Result<v1::StoreChunkResponse> {
        if (r.data().size() > unary_bytes_max) return too_large("send smaller chunks");
        const auto size = CRETO_TRY(uploads->append(ctx, r.upload_id(), r.offset(), as_bytes(r.data())));
        v1::StoreChunkResponse response;
        response.set_size(size);
        return response;
      });
  service.unary<v1::FinishStoreRequest, v1::ObjectMetadata>(
      "FinishStore", {.access = own},
      [uploads](const Context& ctx, const v1::FinishStoreRequest& r) -> Result<v1::ObjectMetadata> {
        const auto stored = CRETO_TRY(uploads->finish(ctx, r.upload_id()));
        return as_proto<v1::ObjectMetadata>(stored);
      });
  service.unary<v1::RetrieveRequest, v1::Object>(
      "Retrieve", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::RetrieveRequest& r) -> Result<v1::Object> {
        const auto metadata = CRETO_TRY(storage.get_metadata(ctx, from_proto(r.reference())));
        if (metadata.size_bytes > unary_bytes_max) return too_large("read it as a stream");
        const auto object = CRETO_TRY(storage.retrieve(ctx, metadata.ref));
        v1::Object response;
        to_proto(object.metadata, *response.mutable_metadata());
        response.set_data(std::string(as_text(object.data)));
        return response;
      });
  service.stream<v1::RetrieveRequest, v1::RetrieveChunk>(
      "RetrieveStream", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::RetrieveRequest& r, const rpc::Stream<v1::RetrieveChunk>& stream) {
        send_object(storage, ctx, from_proto(r.reference()), stream);
      });
  service.unary<v1::GetMetadataRequest, v1::ObjectMetadata>(
      "GetMetadata", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::GetMetadataRequest& r) -> Result<v1::ObjectMetadata> {
        const auto metadata = CRETO_TRY(storage.get_metadata(ctx, from_proto(r.reference())));
        return as_proto<v1::ObjectMetadata>(metadata);
      });
  service.unary<v1::UpdateMetadataRequest, v1::ObjectMetadata>(
      "UpdateMetadata", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::UpdateMetadataRequest& r) -> Result<v1::ObjectMetadata> {
        const std::map<std::string, std::string> custom(r.metadata().begin(), r.metadata().end());
        const auto metadata = CRETO_TRY(storage.update_metadata(ctx, from_proto(r.reference()), custom));
        return as_proto<v1::ObjectMetadata>(metadata);
      });
  service.unary<v1::DeleteRequest, v1::DeleteResponse>(
      "Delete", {.access = own},
      [&storage](const Context& ctx, const v1::DeleteRequest& r) -> Result<v1::DeleteResponse> {
        CRETO_TRY(storage.remove(ctx, from_proto(r.reference())));
        return v1::DeleteResponse();
      });
  service.unary<v1::ListRequest, v1::ListResponse>(
      "List", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::ListRequest& r) -> Result<v1::ListResponse> {
        const auto query = CRETO_TRY(from_proto(ctx, r));
        const auto page = CRETO_TRY(storage.list(ctx, query));
        return as_proto<v1::ListResponse>(page);
      });
  service.unary<v1::ListVersionsRequest, v1::ListResponse>(
      "ListVersions", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::ListVersionsRequest& r) -> Result<v1::ListResponse> {
        const auto versions = CRETO_TRY(storage.versions(ctx, StorageRef{r.bucket(), r.key(), ""}));
        return as_proto<v1::ListResponse>(ListPage{versions, ""});
      });
  service.unary<v1::GetQuotaRequest, v1::Quota>(
      "GetQuota", {.access = own, .idempotent = true},
      [&storage](const Context& ctx, const v1::GetQuotaRequest& r) -> Result<v1::Quota> {
        const auto owner = CRETO_TRY(owner_of(ctx, r.owner()));
        const auto use = CRETO_TRY(storage.quota(ctx, owner));
        v1::Quota response;
        response.set_used_bytes(use.used_bytes);
        response.set_limit_bytes(use.limit_bytes);
        return response;
      });
  service.unary<v1::PresignedUrlRequest, v1::PresignedUrlResponse>(
      "GeneratePresignedUrl", {.access = own},
      [&storage](const Context& ctx, const v1::PresignedUrlRequest& r) -> Result<v1::PresignedUrlResponse> {
        PresignedOperation operation = PresignedGet{};
        if (r.has_put()) {
          const auto classification = CRETO_TRY(from_proto(r.put().classification()));
          operation = PresignedPut{r.put().content_type(), r.put().size_max(), classification};
        }
        Nanos ttl = std::chrono::hours(1);
        if (r.has_ttl()) ttl = CRETO_TRY(proto::from_duration(r.ttl(), "ttl"));
        const auto url = CRETO_TRY(storage.presigned_url(ctx, from_proto(r.reference()), operation, ttl));
        v1::PresignedUrlResponse response;
        response.set_url(url);
        return response;
      });
}

namespace {

constexpr std::string_view presigned_path_prefix = "/v1/presigned/";
constexpr std::size_t presigned_get_bytes_max = 64 << 20;

http::Handler presigned_handler(Storage& storage) {
  return [&storage](const http::Request& request) -> http::Response {
    if (request.method == "GET") {
      http::Response response;
      auto metadata = storage.presigned_get(request.target, [&](BytesView piece) -> Result<> {
        if (response.body.size() + piece.size() > presigned_get_bytes_max)
          return Error(Product::platform, ErrorKind::too_large, "over 64 MiB: take it with RetrieveStream");
        response.body += as_text(piece);
        return {};
      });
      if (!metadata) return http::error_response(metadata.error());
      // Whatever was stored, a browser shall not take it for a page of ours.
      response.headers = {{"Content-Type", metadata->content_type},
                          {"Content-Disposition", "attachment"},
                          {"X-Content-Type-Options", "nosniff"},
                          {"ETag", "\"" + hex(metadata->content_hash) + "\""}};
      return response;
    }
    if (request.method != "PUT") {
      return http::error_response(
          Error(Product::platform, ErrorKind::invalid_input, "only GET and PUT are served here"));
    }
    std::size_t sent = 0;
    auto metadata = storage.presigned_put(
        request.target, request.header("content-type"), [&](std::span<std::uint8_t> buffer) -> Result<std::size_t> {
          const auto size = std::min(buffer.size(), request.body.size() - sent);
          std::copy_n(request.body.begin() + static_cast<std::ptrdiff_t>(sent), size, buffer.begin());
          sent += size;
          return size;
        });
    if (!metadata) return http::error_response(metadata.error());
    return http::Response{201, {{"ETag", "\"" + hex(metadata->content_hash) + "\""}}, ""};
  };
}

}  // namespace

void mount_presigned(rpc::Dispatcher& dispatcher, Storage& storage) {
  dispatcher.mount(std::string(presigned_path_prefix), presigned_handler(storage));
}

}  // namespace creto::storage
