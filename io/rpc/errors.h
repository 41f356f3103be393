#pragma once

#include <string>

#include "creto/common/error.h"

namespace creto::common::v1 {
class EnablementError;
}

namespace creto::rpc {

/// The number of a grpc::StatusCode; total.
int to_grpc_status(ErrorKind kind);
/// Where a peer sent no EnablementError.
ErrorKind kind_of_grpc_status(int status);

/// What a caller may know: an internal error loses its message and causes, which are logged instead.
Error without_internals(const Error& error);

/// A serialized google.rpc.Status whose detail is the EnablementError.
std::string to_status_details(const Error& error, int grpc_status);
/// None where `details` holds none of ours.
std::optional<Error> from_status_details(std::string_view details);

}  // namespace creto::rpc
