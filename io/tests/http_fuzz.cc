// What is read before it is known who asks, or from whom: targets, queries, errors, names in certificates;
// configuration.

#include <cstddef>
#include <cstdint>

#include "creto/common/assert.h"
#include "creto/io/config.h"
#include "creto/io/http_server.h"
#include "creto/io/tls.h"
#include "creto/testing/fuzz_seeds.h"
#include "rpc/errors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  if (size == 0) return 0;
  std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 8) {
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
      std::vector<std::string> names;
      ConfigSchema schema;
      schema.add("name", name, "a name");
      schema.add("grpc.port", port, "a port");
      schema.add("names", names, "names");
      (void)schema.load_text(text, data[0] % 8 == 3 ? "f.toml" : "f.yaml", {});
      break;
    }
    case 5:
      if (const auto identity = tls::identity_from_uri(text))
        CRETO_ASSERT(tls::identity_from_uri(tls::identity_uri(*identity)).value() == *identity);
      break;
    case 6:
      (void)tls::facts_of(text);
      break;
    default:
      if (const auto error = rpc::from_status_details(text)) {
        const auto details = rpc::to_status_details(*error, rpc::to_grpc_status(error->kind()));
        CRETO_ASSERT(rpc::from_status_details(details).value().to_string() == error->to_string());
      }
      break;
  }
  return 0;
}

CRETO_FUZZ_SEEDS(
    "0/v1/agents?a=b%20c&d=+", "1a%2Fb+c",
    R"(2{"code":"RT-429","kind":"quota_exceeded","message":"m","product":"runtime","context":["a"],"caused_by":{"code":"MT-429","message":"n","product":"metering"},"retryable":true,"retry_after_ms":5,"trace_id":""})",
    "3name = \"a\"\nnames = [\"x\"]\n[grpc]\nport = 5\n", "4name: a\nnames: [x, 'y']\ngrpc: {port: 5}\n",
    "5creto:human:ada%40example.com",
    "6-----BEGIN CERTIFICATE-----\n"
    "MIIBbzCCARWgAwIBAgIUEybYrrDublt80LI619J1H4Jub+IwCgYIKoZIzj0EAwIw\n"
    "DDEKMAgGA1UEAwwBZTAgFw0yNjExMzAwNzI3MTlaGA85OTY2MTEwNTA3MjcxOVow\n"
    "DDEKMAgGA1UEAwwBZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNXaeidfHPff\n"
    "AlE+bFUiZE1JrPHV5ePTqCDsSfpBcxESW0kqqSdTqYQ+1qJf98cgYMwtjAlHnm10\n"
    "1EB1j11OAO+jUzBRMB0GA1UdDgQWBBRDHYRLg4ZuJSPxW0irCDncy05x7jAfBgNV\n"
    "HSMEGDAWgBRDHYRLg4ZuJSPxW0irCDncy05x7jAPBgNVHRMBAf8EBTADAQH/MAoG\n"
    "CCqGSM49BAMCA0gAMEUCIHbP42HV3cM3gMHI+VVdzfEGvDqCXW94e65bBiSb4fYa\n"
    "AiEAs9ye80NG9kDqxYouJdfEi1mshQf2T6VySye1rU6dX8o=\n"
    "-----END CERTIFICATE-----\n")
