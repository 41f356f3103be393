#include "rpc/errors.h"

#include <gtest/gtest.h>

#include "creto/common/v1/common.pb.h"
#include "creto/io/http_server.h"
#include "creto/io/tls.h"
#include "google/rpc/status.pb.h"

namespace creto {
namespace {

TEST(RpcErrors, TakeNoDelayThatTimeCannotHold) {
  for (const char* delay : {"9223372036854775807", "-9223372036854775808", "-1", "9223372035001"}) {
    const auto error = http::error_from_json(
        std::string(R"({"code":"RT-429","kind":"quota_exceeded","message":"m","product":"runtime","retry_after_ms":)") +
        delay + "}");
    ASSERT_TRUE(error.has_value()) << delay;
    EXPECT_EQ(error->retry_after(), std::nullopt) << delay;
  }
  for (const std::int64_t seconds : {INT64_MAX, INT64_MIN, std::int64_t{-1}}) {
    common::v1::EnablementError sent;
    sent.set_message("m");
    sent.mutable_retry_after()->set_seconds(seconds);
    google::rpc::Status status;
    status.add_details()->PackFrom(sent);
    const auto error = rpc::from_status_details(status.SerializeAsString());
    ASSERT_TRUE(error.has_value()) << seconds;
    EXPECT_EQ(error->retry_after(), std::nullopt) << seconds;
  }
}

TEST(Tls, KnowsTheEndOfACertificateThatHasNone) {
  constexpr std::string_view without_end =
      "-----BEGIN CERTIFICATE-----\n"
      "MIIBbzCCARWgAwIBAgIUEybYrrDublt80LI619J1H4Jub+IwCgYIKoZIzj0EAwIw\n"
      "DDEKMAgGA1UEAwwBZTAgFw0yNjExMzAwNzI3MTlaGA85OTY2MTEwNTA3MjcxOVow\n"
      "DDEKMAgGA1UEAwwBZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNXaeidfHPff\n"
      "AlE+bFUiZE1JrPHV5ePTqCDsSfpBcxESW0kqqSdTqYQ+1qJf98cgYMwtjAlHnm10\n"
      "1EB1j11OAO+jUzBRMB0GA1UdDgQWBBRDHYRLg4ZuJSPxW0irCDncy05x7jAfBgNV\n"
      "HSMEGDAWgBRDHYRLg4ZuJSPxW0irCDncy05x7jAPBgNVHRMBAf8EBTADAQH/MAoG\n"
      "CCqGSM49BAMCA0gAMEUCIHbP42HV3cM3gMHI+VVdzfEGvDqCXW94e65bBiSb4fYa\n"
      "AiEAs9ye80NG9kDqxYouJdfEi1mshQf2T6VySye1rU6dX8o=\n"
      "-----END CERTIFICATE-----\n";
  EXPECT_EQ(tls::facts_of(without_end).value().ends, Instant::max());
}

TEST(Tls, AsksNobodyForThePassphraseOfACertificate) {
  constexpr std::string_view encrypted =
      "-----BEGIN CERTIFICATE-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n"
      "AAAAAAAAAAAAAAAAAAAAAA==\n-----END CERTIFICATE-----\n";
  EXPECT_EQ(tls::facts_of(encrypted).error().kind(), ErrorKind::invalid_input);
}

}  // namespace
}  // namespace creto
