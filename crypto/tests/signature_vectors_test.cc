#include <openssl/evp.h>

#include <set>
#include <string>

#include "creto/crypto/signing.h"
#include "crypto/openssl.h"
#include "testing/vectors.h"

namespace creto::crypto {
namespace {

using nlohmann::json;
using testing::has;
using testing::unhex;
using testing::vector_json;

constexpr auto ed25519 = SignatureAlgorithm::ed25519;
constexpr auto ml_dsa_65 = SignatureAlgorithm::ml_dsa_65;
constexpr auto hybrid = SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;

Signature named(SignatureAlgorithm algorithm, Bytes value) {
  return {std::string(to_string(algorithm)), std::move(value)};
}

/// Parsing the key and verifying, as one yes or no.
bool holds(SignatureAlgorithm algorithm, BytesView key, BytesView message, Bytes signature, BytesView context = {}) {
  const auto parsed = VerifyingKey::parse(algorithm, key);
  return parsed && parsed->verify(message, named(algorithm, std::move(signature)), context).has_value();
}

TEST(Ed25519Vectors, AgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  int checked = 0;
  for (const auto& group : vector_json("ed25519/ed25519_test.json").at("testGroups")) {
    const Bytes key = unhex(group.at("publicKey"), "pk");
    for (const auto& test : group.at("tests")) {
      EXPECT_EQ(holds(ed25519, key, unhex(test, "msg"), unhex(test, "sig")), test.at("result") == "valid")
          << test.at("tcId") << " " << test.at("comment");
      ++checked;
    }
  }
  EXPECT_EQ(checked, 151);
}

TEST(Ed25519Vectors, RefusesSmallOrderKeysAndChecksWithoutTheCofactor) {
  CRETO_NEEDS_VECTORS();
  for (const auto& test : vector_json("cctv/ed25519_edge_vectors.json")) {
    std::set<std::string> flags;
    if (!test.at("flags").is_null()) flags = test.at("flags").get<std::set<std::string>>();
    const bool expected =
        !flags.contains("low_order_A") && !flags.contains("low_order_residue") && !flags.contains("non_canonical_R");
    const auto message = test.at("msg").get<std::string>();
    EXPECT_EQ(holds(ed25519, unhex(test, "key"), as_bytes(message), unhex(test, "sig")), expected)
        << test.at("number") << " " << test.at("flags");
    EXPECT_EQ(VerifyingKey::parse(ed25519, unhex(test, "key")).has_value(), !flags.contains("low_order_A"))
        << test.at("number");
  }
}

void check_ml_dsa_signing(const json& test, const PKey& key, BytesView public_key) {
  const Bytes expected = unhex(test, "sig");
  MessageForm form;
  const Bytes context = unhex(test, "ctx");
  const Bytes entropy = unhex(test, "rnd");
  form.context = context;
  form.deterministic = entropy.empty();
  form.test_entropy = entropy;
  form.external_mu = !has(test, "msg");
  const Bytes message = unhex(test, form.external_mu ? "mu" : "msg");
  if (test.at("result") == "valid") {
    ASSERT_TRUE(key);
    EXPECT_EQ(sign_message(key, ml_dsa_65_name, message, form), expected);
    if (!form.external_mu) {
      EXPECT_TRUE(holds(ml_dsa_65, public_key, message, expected, context));
    }
  } else {
    EXPECT_TRUE(!key || sign_message(key, ml_dsa_65_name, message, form).empty());
  }
}

TEST(MlDsaVectors, SigningFromASeedAgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  for (const auto& group : vector_json("mldsa65/mldsa_65_sign_seed_test.json").at("testGroups")) {
    const Bytes seed = unhex(group, "privateSeed");
    const auto ours = SigningKey::from_seed(ml_dsa_65, seed);
    for (const auto& test : group.at("tests")) {
      SCOPED_TRACE(test.dump().substr(0, 80));
      check_ml_dsa_signing(test, private_key_from_seed(ml_dsa_65_name, seed), unhex(group, "publicKey"));
      if (!has(test, "msg") || has(test, "rnd")) continue;
      if (test.at("result") != "valid") {
        EXPECT_TRUE(!ours || !ours->sign_deterministic(unhex(test, "msg"), unhex(test, "ctx")));
        continue;
      }
      ASSERT_TRUE(ours);
      EXPECT_EQ(ours->verifying_key().bytes(), unhex(group, "publicKey"));
      const auto made = ours->sign_deterministic(unhex(test, "msg"), unhex(test, "ctx"));
      ASSERT_TRUE(made);
      EXPECT_EQ(made->value, unhex(test, "sig"));
    }
  }
}

TEST(MlDsaVectors, SigningFromAnExpandedKeyAgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  for (const auto& group : vector_json("mldsa65/mldsa_65_sign_noseed_test.json").at("testGroups")) {
    const PKey key = private_key_from_expanded(ml_dsa_65_name, unhex(group, "privateKey"));
    for (const auto& test : group.at("tests")) {
      SCOPED_TRACE(test.dump().substr(0, 80));
      check_ml_dsa_signing(test, key, unhex(group, "publicKey"));
    }
  }
}

TEST(MlDsaVectors, VerifyingAgreesWithWycheproof) {
  CRETO_NEEDS_VECTORS();
  int checked = 0;
  for (const auto& group : vector_json("mldsa65/mldsa_65_verify_test.json").at("testGroups")) {
    const Bytes key = unhex(group, "publicKey");
    for (const auto& test : group.at("tests")) {
      EXPECT_EQ(holds(ml_dsa_65, key, unhex(test, "msg"), unhex(test, "sig"), unhex(test, "ctx")),
                test.at("result") == "valid")
          << test.at("tcId") << " " << test.at("comment");
      ++checked;
    }
  }
  EXPECT_EQ(checked, 130);
}

TEST(MlDsaVectors, KeysAgreeWithAcvp) {
  CRETO_NEEDS_VECTORS();
  for (const auto& group : vector_json("acvp/mldsa65_keygen.json").at("testGroups")) {
    for (const auto& test : group.at("tests")) {
      const auto key = SigningKey::from_seed(ml_dsa_65, unhex(test, "seed"));
      ASSERT_TRUE(key);
      EXPECT_EQ(key->verifying_key().bytes(), unhex(test, "pk"));
      const PKey expanded = private_key_from_expanded(ml_dsa_65_name, unhex(test, "sk"));
      ASSERT_TRUE(expanded);
      EXPECT_EQ(public_bytes_of(expanded), unhex(test, "pk"));
    }
  }
}

TEST(MlDsaVectors, SigningAgreesWithAcvp) {
  CRETO_NEEDS_VECTORS();
  for (const auto& group : vector_json("acvp/mldsa65_siggen_internal.json").at("testGroups")) {
    for (const auto& test : group.at("tests")) {
      const Bytes entropy = unhex(test, "rnd");
      MessageForm form;
      form.internal = true;
      form.deterministic = group.at("deterministic").get<bool>();
      form.test_entropy = entropy;
      EXPECT_EQ(sign_message(private_key_from_expanded(ml_dsa_65_name, unhex(test, "sk")), ml_dsa_65_name,
                             unhex(test, "message"), form),
                unhex(test, "signature"))
          << test.at("tcId");
    }
  }
}

TEST(MlDsaVectors, VerifyingAgreesWithAcvp) {
  CRETO_NEEDS_VECTORS();
  for (const auto& group : vector_json("acvp/mldsa65_sigver_internal.json").at("testGroups")) {
    const PKey key = public_key_from_bytes(ml_dsa_65_name, unhex(group, "pk"));
    MessageForm form;
    form.internal = true;
    for (const auto& test : group.at("tests")) {
      EXPECT_EQ(verify_message(key, ml_dsa_65_name, unhex(test, "message"), unhex(test, "signature"), form),
                test.at("testPassed").get<bool>())
          << test.at("tcId") << " " << test.at("reason");
    }
  }
}

TEST(MlDsaVectors, AgreesWithTheKnownAnswersOfFips204) {
  CRETO_NEEDS_VECTORS();
  for (const char* const file : {"fips204-kat/mldsa65_det_pure.json", "fips204-kat/mldsa65_hedged_pure.json"}) {
    for (const auto& test : vector_json(file).at("cases")) {
      SCOPED_TRACE(std::string(file) + " " + test.at("count").dump());
      const auto key = SigningKey::from_seed(ml_dsa_65, unhex(test, "xi"));
      ASSERT_TRUE(key);
      EXPECT_EQ(key->verifying_key().bytes(), unhex(test, "pk"));
      const Bytes message = unhex(test, "msg");
      const Bytes context = unhex(test, "ctx");
      const Bytes signed_message = unhex(test, "sm");
      const Bytes signature = to_bytes(BytesView(signed_message).first(3309));
      EXPECT_TRUE(key->verifying_key().verify(message, named(ml_dsa_65, signature), context));
      EXPECT_FALSE(key->verifying_key().verify(message, named(ml_dsa_65, signature)));
      if (has(test, "rng")) {
        const Bytes entropy = unhex(test, "rng");
        EXPECT_EQ(sign_message(private_key_from_seed(ml_dsa_65_name, unhex(test, "xi")), ml_dsa_65_name, message,
                               {.context = context, .test_entropy = entropy}),
                  signature);
      } else {
        EXPECT_EQ(key->sign_deterministic(message, context)->value, signature);
      }
    }
  }
}

TEST(MlDsaVectors, AgreesWithTheAccumulatedHundred) {
  CRETO_NEEDS_VECTORS();
  const MdCtx source(EVP_MD_CTX_new());
  const MdCtx sink(EVP_MD_CTX_new());
  ASSERT_EQ(EVP_DigestInit_ex(source.get(), EVP_shake128(), nullptr), 1);
  ASSERT_EQ(EVP_DigestInit_ex(sink.get(), EVP_shake128(), nullptr), 1);
  for (int i = 0; i < 100; ++i) {
    ByteArray<32> seed;
    ASSERT_EQ(EVP_DigestSqueeze(source.get(), seed.data(), seed.size()), 1);
    const auto key = SigningKey::from_seed(ml_dsa_65, seed);
    ASSERT_TRUE(key);
    const auto signature = key->sign_deterministic({});
    ASSERT_TRUE(signature);
    for (const BytesView part : {BytesView(key->verifying_key().bytes()), BytesView(signature->value)}) {
      ASSERT_EQ(EVP_DigestUpdate(sink.get(), part.data(), part.size()), 1);
    }
  }
  ByteArray<32> result;
  ASSERT_EQ(EVP_DigestFinalXOF(sink.get(), result.data(), result.size()), 1);
  EXPECT_EQ(hex(result), vector_json("cctv/accumulated.json").at("mldsa").at("ML-DSA-65").at("100").get<std::string>());
}

TEST(CompositeVectors, AgreesWithTheDraft) {
  CRETO_NEEDS_VECTORS();
  const json file = vector_json("composite-sig/mldsa65_ed25519.json");
  const auto unbase64 = [](const json& text) { return *from_base64(text.get<std::string>()); };
  const Bytes message = unbase64(file.at("m"));
  const Bytes context = unbase64(file.at("ctx"));
  int checked = 0;
  for (const auto& test : file.at("tests")) {
    if (test.at("tcId") != "id-MLDSA65-Ed25519-SHA512") continue;
    ++checked;
    const auto key = SigningKey::from_seed(hybrid, unbase64(test.at("sk")));
    ASSERT_TRUE(key);
    EXPECT_EQ(key->verifying_key().bytes(), unbase64(test.at("pk")));
    EXPECT_TRUE(key->verifying_key().verify(message, named(hybrid, unbase64(test.at("s")))));
    EXPECT_TRUE(key->verifying_key().verify(message, named(hybrid, unbase64(test.at("sWithContext"))), context));
    EXPECT_FALSE(key->verifying_key().verify(message, named(hybrid, unbase64(test.at("s"))), context));
    EXPECT_FALSE(key->verifying_key().verify(message, named(hybrid, unbase64(test.at("sWithContext")))));
    // Ed25519 has one signature only, so that half can be compared as well.
    const Bytes theirs = unbase64(test.at("s"));
    const auto ours = key->sign_deterministic(message);
    ASSERT_TRUE(ours);
    EXPECT_TRUE(std::ranges::equal(BytesView(ours->value).last(64), BytesView(theirs).last(64)));
  }
  EXPECT_EQ(checked, 1);
}

}  // namespace
}  // namespace creto::crypto
