// Every library of ours that speaks TLS must use the same OpenSSL, and it must be one that knows ML-DSA and ML-KEM: a
// mixed pair of libssl and libcrypto rejects ML-DSA certificates at run time only.
#include <curl/curl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <libpq-fe.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <fstream>
#include <set>
#include <string>
#include <string_view>

namespace {

using ::testing::SizeIs;
using ::testing::StartsWith;

/// The files mapped into this process whose name begins with `prefix`.
std::set<std::string> mapped(std::string_view prefix) {
  std::set<std::string> files;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto slash = line.find('/');
    if (slash == std::string::npos) continue;
    const std::string file = line.substr(slash);
    if (file.substr(file.rfind('/') + 1).starts_with(prefix)) files.insert(file);
  }
  return files;
}

class OneOpenSsl : public ::testing::Test {
 protected:
  // Calls into each, so that none of them is left out of the executable.
  void SetUp() override {
    ASSERT_FALSE(grpc::Version().empty());
    ASSERT_NE(PQlibVersion(), 0);
    ASSERT_NE(curl_version(), nullptr);
  }
};

TEST_F(OneOpenSsl, IsMappedWhateverAsksForIt) {
  EXPECT_THAT(mapped("libcrypto.so"), SizeIs(1));
  EXPECT_THAT(mapped("libssl.so"), SizeIs(1));
}

TEST_F(OneOpenSsl, IsAtLeastTheOneWeWereCompiledFor) {
  static_assert(OPENSSL_VERSION_NUMBER >= 0x30500000L);
  EXPECT_GE(OpenSSL_version_num(), OPENSSL_VERSION_NUMBER);
}

TEST_F(OneOpenSsl, IsWhatCurlUses) {
  EXPECT_THAT(curl_version_info(CURLVERSION_NOW)->ssl_version,
              StartsWith(std::string("OpenSSL/") + OpenSSL_version(OPENSSL_VERSION_STRING)));
}

TEST_F(OneOpenSsl, KnowsPostQuantumAlgorithms) {
  for (const char* name : {"ML-DSA-65", "ML-KEM-768"}) {
    EVP_PKEY_CTX* context = EVP_PKEY_CTX_new_from_name(nullptr, name, nullptr);
    EXPECT_NE(context, nullptr) << name;
    EVP_PKEY_CTX_free(context);
  }
}

}  // namespace
