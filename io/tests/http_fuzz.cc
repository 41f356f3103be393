// What REST and the gateway decode before they know who asks: targets, queries, error documents, configuration.

#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/io/config.h"
#include "creto/io/http_server.h"
#include "creto/io/tls.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 5) {
    case 0: {
      http::Request request;
      request.target = text;
      (void)request.query_parameters();
      break;
    }
    case 1: {
      auto decoded = http::percent_decode(text, false);
      if (decoded) CRETO_ASSERT(http::percent_decode(http::percent_encode(*decoded), false).value() == *decoded);
      break;
    }
    case 2: {
      auto error = http::error_from_json(text);
      if (error) CRETO_ASSERT(http::error_from_json(http::error_to_json(*error)).value().code() == error->code());
      break;
    }
    case 3:
    case 4: {
      std::string name = "creto";
      std::int64_t port = 1;
      ConfigSchema schema;
      schema.add("name", name, "a name");
      schema.add("grpc.port", port, "a port");
      (void)schema.load_text(text, data[0] % 5 == 3 ? "f.toml" : "f.yaml", {});
      break;
    }
  }
  return 0;
}
