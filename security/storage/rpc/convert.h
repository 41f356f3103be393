#pragma once

#include "creto/io/proto.h"
#include "creto/storage/storage.h"
#include "creto/storage/v1/storage.pb.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::storage {

void to_proto(const StorageRef& from, v1::StorageRef& to);
void to_proto(const ObjectMetadata& from, v1::ObjectMetadata& to);
void to_proto(const NewObject& from, v1::ObjectSpec& to);
void to_proto(const ListQuery& from, v1::ListRequest& to);
void to_proto(const ListPage& from, v1::ListResponse& to);
v1::Classification to_proto(Classification from);

StorageRef from_proto(const v1::StorageRef& from);
Result<ObjectMetadata> from_proto(const v1::ObjectMetadata& from);
/// An empty owner is the caller.
Result<Identity> owner_of(const Context& ctx, const std::string& text);
Result<NewObject> from_proto(const Context& ctx, const v1::ObjectSpec& from);
Result<ListQuery> from_proto(const Context& ctx, const v1::ListRequest& from);
Result<ListPage> from_proto(const v1::ListResponse& from);
Result<Classification> from_proto(v1::Classification from);

}  // namespace creto::storage
