#pragma once

#include <string_view>
#include <vector>

#include "creto/authz/authz.h"
#include "creto/testing/bench.h"

namespace creto::authz {

/// Requests that the bench's policies permit.
std::vector<CheckRequest> ten_thousand_requests();

/// Check over gRPC at 5 000 calls a second, in turns with a bare generated service: what the machine and gRPC take of
/// the time, each takes of both. The callers are another process, as they are in life. False where a call failed.
bool over_grpc(creto::testing::BenchReport& report, Authz& authz);

/// The type of a product's resources, and the action on them that `asking_a_product` permits.
inline constexpr std::string_view product_type = "Owned", product_action = "own";
inline constexpr std::string_view asking_a_product =
    "permit(principal, action == Action::\"own\", resource is Owned) when { resource.owner == principal };";
/// Likewise, 1 000 calls a second, of checks that ask a product.
bool over_grpc_asking(creto::testing::BenchReport& report, Authz& authz);

/// That other process: `argv[1]` is `calling`. Writes what each call took, in seconds, to standard output.
inline constexpr std::string_view calling = "--calling";
int call_the_server(int argc, char** argv);

}  // namespace creto::authz
