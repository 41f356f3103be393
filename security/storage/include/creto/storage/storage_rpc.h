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

/// Answers GET and PUT of presigned URLs below "/v1/presigned/"; the URL itself is the permission. An object over 64
/// MiB is refused with `too_large`: it is held in memory whole, and is for RetrieveStream.
void mount_presigned(rpc::Dispatcher& dispatcher, Storage& storage);

}  // namespace creto::storage
