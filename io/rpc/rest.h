#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "creto/io/proto_json.h"
#include "rpc/call.h"

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
}  // namespace google::protobuf

namespace google::api {
class HttpRule;
}

namespace creto::rpc {

/// One path of one method, from its google.api.http annotation.
struct Route {
  struct Segment {
    std::string literal;  ///< empty: a variable
    std::string field;    ///< the request's field path that the variable sets; "*" alone sets none
    bool rest = false;    ///< "**": everything that remains
  };
  std::string verb;  ///< HTTP method
  std::vector<Segment> segments;
  std::string suffix;  ///< the ":revoke" of the last segment, without the colon
  std::string body;    ///< "", "*" or a field name
  std::string path;    ///< as written, for OpenAPI
  const Entry* entry = nullptr;
};

/// Every route of a method: its annotation's, or POST /<package.Service>/<Method>.
std::vector<Route> routes_of(const Entry& entry);

class Router {
 public:
  void add(const Entry& entry);
  void serve(DispatcherImpl& dispatcher, http::Request request, http::Respond respond) const;
  /// That the method at this path has for itself; 0: none.
  std::size_t body_bytes_max(const http::Request& head) const;

 private:
  std::vector<Route> routes_;  ///< more specific first
};

}  // namespace creto::rpc
