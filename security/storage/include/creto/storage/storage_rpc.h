#pragma once

#include <memory>

#include "creto/io/http_server.h"
#include "creto/storage/storage.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::storage {

/// Registers creto.storage.v1.StorageService. All must outlive the serving.
void register_storage(rpc::Dispatcher& dispatcher, Storage& storage, const Clock& clock);

/// The same interface over the wire. `presigned_get`, `presigned_put` and `sweep` are `unavailable` there: they belong
/// to the process that has the files.
std::unique_ptr<Storage> create_storage_client(std::shared_ptr<rpc::Channel> channel);

/// Answers GET and PUT of presigned URLs. `path_prefix` is where to mount it.
inline constexpr std::string_view presigned_path_prefix = "/v1/presigned/";
http::Handler presigned_handler(Storage& storage);

}  // namespace creto::storage
