#include <string>

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kdf.h"
#include "testing/vectors.h"

namespace creto::crypto {
namespace {

using testing::unhex;
using testing::vector_json;

void check_aead(const std::string& file, AeadAlgorithm algorithm) {
  int checked = 0;
  for (const auto& group : vector_json(file).at("testGroups")) {
    for (const auto& test : group.at("tests")) {
      const Bytes key = unhex(test, "key");
      const Bytes nonce = unhex(test, "iv");
      const Bytes tag = unhex(test, "tag");
      // Our one form: keys of 256, nonces of 96 and tags of 128 bits.
      if (key.size() != aead_key_size || nonce.size() != aead_nonce_size || tag.size() != aead_tag_size) continue;
      SCOPED_TRACE(file + " " + std::to_string(test.at("tcId").get<int>()));
      auto aead = AeadKey::create(algorithm, Secret::copy_of(BytesView(key)));
      ASSERT_TRUE(aead);
      Ciphertext ciphertext;
      ciphertext.algorithm = algorithm;
      std::ranges::copy(nonce, ciphertext.nonce.begin());
      ciphertext.bytes = unhex(test, "ct");
      ciphertext.bytes.insert(ciphertext.bytes.end(), tag.begin(), tag.end());
      const Bytes aad = unhex(test, "aad");
      const Bytes message = unhex(test, "msg");
      const auto opened = aead->open(ciphertext, aad);
      if (test.at("result") == "valid") {
        ASSERT_TRUE(opened);
        EXPECT_EQ(to_bytes(opened->reveal()), message);
        EXPECT_EQ(aead->seal_with_nonce(message, aad, ciphertext.nonce), ciphertext);
      } else {
        ASSERT_FALSE(opened);
        EXPECT_EQ(opened.error().kind(), ErrorKind::decryption_failed);
      }
      ++checked;
    }
  }
  EXPECT_GT(checked, 50);
}

TEST(AeadVectors, AesGcmAgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  check_aead("aes-gcm/aes_gcm_test.json", AeadAlgorithm::aes_256_gcm);
}

TEST(AeadVectors, ChaCha20Poly1305AgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  check_aead("chacha20poly1305/chacha20_poly1305_test.json", AeadAlgorithm::chacha20_poly1305);
}

TEST(HashVectors, Blake3AgreesWithItsAuthors) {
  CRETO_NEEDS_VECTORS();
  const auto vectors = vector_json("blake3/test_vectors.json");
  ByteArray<32> key;
  std::ranges::copy(vectors.at("key").get<std::string>(), key.begin());
  const auto context = vectors.at("context_string").get<std::string>();
  for (const auto& test : vectors.at("cases")) {
    Bytes input(test.at("input_len").get<std::size_t>());
    for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<std::uint8_t>(i % 251);
    SCOPED_TRACE(input.size());
    EXPECT_EQ(hex(blake3(input)), test.at("hash").get<std::string>().substr(0, 64));
    EXPECT_EQ(hex(blake3_keyed(key, input)), test.at("keyed_hash").get<std::string>().substr(0, 64));
    EXPECT_EQ(hex(blake3_derive(context, input, 131).reveal()), test.at("derive_key").get<std::string>());
    Hasher hasher(HashAlgorithm::blake3);
    hasher.update(BytesView(input).first(input.size() / 3));
    hasher.update(BytesView(input).subspan(input.size() / 3));
    EXPECT_EQ(hex(hasher.finish()), test.at("hash").get<std::string>().substr(0, 64));
  }
}

TEST(MacVectors, HmacSha256AgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  int checked = 0;
  for (const auto& group : vector_json("hmac/hmac_sha256_test.json").at("testGroups")) {
    for (const auto& test : group.at("tests")) {
      SCOPED_TRACE(test.at("tcId").get<int>());
      const Bytes tag = unhex(test, "tag");
      const Hash256 mac = hmac_sha256(unhex(test, "key"), unhex(test, "msg"));
      EXPECT_EQ(std::ranges::equal(BytesView(mac).first(tag.size()), tag), test.at("result") == "valid");
      if (tag.size() == mac.size()) {
        EXPECT_EQ(verify_hmac_sha256(unhex(test, "key"), unhex(test, "msg"), tag), test.at("result") == "valid");
      } else {
        EXPECT_FALSE(verify_hmac_sha256(unhex(test, "key"), unhex(test, "msg"), tag)) << "a truncated mac";
      }
      ++checked;
    }
  }
  EXPECT_EQ(checked, 174);
}

TEST(KdfVectors, HkdfSha256AgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  int checked = 0;
  for (const auto& group : vector_json("hkdf/hkdf_sha256_test.json").at("testGroups")) {
    for (const auto& test : group.at("tests")) {
      SCOPED_TRACE(test.at("tcId").get<int>());
      const auto made =
          hkdf_sha256(unhex(test, "ikm"), unhex(test, "salt"), unhex(test, "info"), test.at("size").get<std::size_t>());
      ASSERT_EQ(made.has_value(), test.at("result") == "valid");
      if (made) {
        EXPECT_EQ(to_bytes(made->reveal()), unhex(test, "okm"));
      }
      ++checked;
    }
  }
  EXPECT_EQ(checked, 86);
}

}  // namespace
}  // namespace creto::crypto
