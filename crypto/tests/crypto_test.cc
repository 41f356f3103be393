#include <gtest/gtest.h>

#include <set>

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kdf.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/random.h"
#include "creto/crypto/sealed_file.h"
#include "creto/crypto/signing.h"

namespace creto::crypto {
namespace {

constexpr std::array all_aead = {AeadAlgorithm::aes_256_gcm, AeadAlgorithm::chacha20_poly1305};
constexpr std::array all_signatures = {SignatureAlgorithm::ed25519, SignatureAlgorithm::ml_dsa_65,
                                       SignatureAlgorithm::hybrid_ed25519_ml_dsa_65};
constexpr std::array all_kems = {KemAlgorithm::x25519, KemAlgorithm::ml_kem_768, KemAlgorithm::x_wing};
constexpr PassphraseCost cheap = {.memory_kib = 8192, .passes = 1, .lanes = 1};

Bytes revealed(const Secret& secret) { return to_bytes(secret.reveal()); }

TEST(Algorithms, NamesReadBackAndOthersAreRefused) {
  for (const auto a : all_aead) EXPECT_EQ(*parse_aead_algorithm(to_string(a)), a);
  for (const auto a : all_signatures) EXPECT_EQ(*parse_signature_algorithm(to_string(a)), a);
  for (const auto a : all_kems) EXPECT_EQ(*parse_kem_algorithm(to_string(a)), a);
  for (const auto a : {HashAlgorithm::sha256, HashAlgorithm::sha3_256, HashAlgorithm::blake3}) {
    EXPECT_EQ(*parse_hash_algorithm(to_string(a)), a);
  }
  for (const char* const name : {"", "ED25519", "ed25519 ", "ml-dsa-44", "rsa", "none"}) {
    const auto refused = parse_signature_algorithm(name);
    ASSERT_FALSE(refused) << name;
    EXPECT_EQ(refused.error().kind(), ErrorKind::unsupported_algorithm);
  }
  EXPECT_FALSE(parse_kem_algorithm("ed25519"));
  EXPECT_FALSE(parse_aead_algorithm("sha-256"));
}

TEST(Algorithms, AnUnknownNameIsShownWithoutItsControlCharacters) {
  const auto refused = parse_hash_algorithm("md5\n\x1b[31m`" + std::string(1000, 'x'));
  ASSERT_FALSE(refused);
  const std::string message = refused.error().message();
  EXPECT_LT(message.size(), 120U);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
}

TEST(Hash, KnownValues) {
  EXPECT_EQ(hex(sha256(as_bytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256(BytesView())), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex(sha3_256(as_bytes("abc"))), "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532");
  EXPECT_EQ(hex(sha3_256(BytesView())), "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a");
}

TEST(Hash, PartsAndPiecesGiveTheHashOfTheWhole) {
  const Bytes data = random_bytes(1000);
  const BytesView view = data;
  EXPECT_EQ(sha256({view.first(1), view.subspan(1, 500), view.subspan(501), BytesView()}), sha256(view));
  EXPECT_EQ(sha3_256({view.first(999), view.last(1)}), sha3_256(view));
  for (const auto algorithm : {HashAlgorithm::sha256, HashAlgorithm::sha3_256, HashAlgorithm::blake3}) {
    Hasher hasher(algorithm);
    for (int round = 0; round < 2; ++round) {
      for (const std::uint8_t byte : data) hasher.update({&byte, 1});
      EXPECT_EQ(hasher.finish(), hash(algorithm, data)) << "round " << round;
    }
  }
}

TEST(Aead, OpensWhatItSealedAndNothingElse) {
  for (const auto algorithm : all_aead) {
    const AeadKey key = AeadKey::generate(algorithm);
    for (const std::size_t size : {0U, 1U, 15U, 16U, 17U, 1000U}) {
      const Bytes plaintext = random_bytes(size);
      const Bytes aad = random_bytes(size % 7);
      const Ciphertext sealed = key.seal(plaintext, aad);
      const auto opened = key.open(sealed, aad);
      ASSERT_TRUE(opened);
      EXPECT_EQ(revealed(*opened), plaintext);
      EXPECT_FALSE(key.open(sealed, as_bytes("another")));
      EXPECT_FALSE(AeadKey::generate(algorithm).open(sealed, aad));
      EXPECT_NE(key.seal(plaintext, aad).nonce, sealed.nonce);
    }
  }
}

TEST(Aead, RefusesEveryChangedByte) {
  for (const auto algorithm : all_aead) {
    const AeadKey key = AeadKey::generate(algorithm);
    const Bytes encoded = key.seal(as_bytes("pay 100 to alice"), as_bytes("aad")).encode();
    for (std::size_t i = 0; i < encoded.size(); ++i) {
      for (const int bit : {0, 7}) {
        Bytes changed = encoded;
        changed[i] = static_cast<std::uint8_t>(changed[i] ^ (1 << bit));
        const auto parsed = Ciphertext::parse(changed);
        if (!parsed) {
          EXPECT_EQ(parsed.error().kind(), ErrorKind::unsupported_algorithm);
          continue;
        }
        EXPECT_FALSE(key.open(*parsed, as_bytes("aad"))) << i;
      }
    }
    for (std::size_t size = 0; size < encoded.size(); ++size) {
      const auto parsed = Ciphertext::parse(BytesView(encoded).first(size));
      EXPECT_TRUE(!parsed || !key.open(*parsed, as_bytes("aad"))) << size;
    }
  }
}

TEST(Aead, NeverFallsBackOnTheOtherAlgorithm) {
  const Bytes bytes = random_bytes(32);
  const auto aes = AeadKey::create(AeadAlgorithm::aes_256_gcm, Secret::copy_of(BytesView(bytes)));
  Ciphertext sealed = aes->seal(as_bytes("x"));
  sealed.algorithm = AeadAlgorithm::chacha20_poly1305;
  const auto opened = aes->open(sealed);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().kind(), ErrorKind::unsupported_algorithm);
  EXPECT_FALSE(AeadKey::create(AeadAlgorithm::aes_256_gcm, Secret(31)));
}

TEST(Signing, VerifiesWhatWasSignedAndNothingElse) {
  for (const auto algorithm : all_signatures) {
    SCOPED_TRACE(to_string(algorithm));
    const SigningKey key = SigningKey::generate(algorithm);
    const VerifyingKey& verifying = key.verifying_key();
    for (const std::size_t size : {0U, 1U, 1000U}) {
      const Bytes message = random_bytes(size);
      const auto signature = key.sign(message);
      ASSERT_TRUE(signature);
      EXPECT_EQ(signature->value.size(), sizes_of(algorithm).signature);
      EXPECT_TRUE(verifying.verify(message, *signature));
      Bytes longer = message;
      longer.push_back(0);
      const auto refused = verifying.verify(longer, *signature);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().kind(), ErrorKind::signature_invalid);
      EXPECT_FALSE(SigningKey::generate(algorithm).verifying_key().verify(message, *signature));
    }
    EXPECT_EQ(*key.sign_deterministic(as_bytes("m")), *key.sign_deterministic(as_bytes("m")));
  }
}

TEST(Signing, KeysReadBackFromSeedBytesAndText) {
  for (const auto algorithm : all_signatures) {
    const SigningKey key = SigningKey::generate(algorithm);
    const auto again = SigningKey::from_seed(algorithm, key.seed().reveal());
    ASSERT_TRUE(again);
    EXPECT_EQ(again->verifying_key(), key.verifying_key());
    EXPECT_EQ(*VerifyingKey::parse(algorithm, key.verifying_key().bytes()), key.verifying_key());
    EXPECT_EQ(*VerifyingKey::from_text(key.verifying_key().text()), key.verifying_key());
    for (const std::size_t size : {0U, 31U, 33U, 1951U, 1953U, 1983U, 1985U}) {
      EXPECT_FALSE(VerifyingKey::parse(algorithm, Bytes(size))) << size;
      EXPECT_FALSE(SigningKey::from_seed(algorithm, Bytes(size))) << size;
    }
  }
  for (const char* const text : {"", "ed25519", "ed25519:", "ed25519:AAAA", ":AAAA", "rsa:AAAA", "ed25519:!"}) {
    EXPECT_FALSE(VerifyingKey::from_text(text)) << text;
  }
}

TEST(Signing, RefusesEveryChangedByteOfTheSignature) {
  for (const auto algorithm : all_signatures) {
    SCOPED_TRACE(to_string(algorithm));
    const SigningKey key = SigningKey::generate(algorithm);
    const auto signature = key.sign(as_bytes("message"));
    ASSERT_TRUE(signature);
    for (std::size_t i = 0; i < signature->value.size(); ++i) {
      Signature changed = *signature;
      changed.value[i] ^= 1;
      EXPECT_FALSE(key.verifying_key().verify(as_bytes("message"), changed)) << i;
    }
    for (const std::size_t size : {std::size_t{0}, signature->value.size() - 1, signature->value.size() + 1}) {
      Signature changed = *signature;
      changed.value.resize(size);
      EXPECT_FALSE(key.verifying_key().verify(as_bytes("message"), changed)) << size;
    }
  }
}

TEST(Signing, AHybridNeedsBothHalves) {
  const auto hybrid = SignatureAlgorithm::hybrid_ed25519_ml_dsa_65;
  const SigningKey key = SigningKey::generate(hybrid);
  const SigningKey other = SigningKey::generate(hybrid);
  const Signature good = *key.sign(as_bytes("m"));
  const Signature foreign = *other.sign(as_bytes("m"));
  Signature only_ml_dsa = good;
  std::ranges::copy(BytesView(foreign.value).last(64), only_ml_dsa.value.end() - 64);
  Signature only_ed25519 = foreign;
  std::ranges::copy(BytesView(good.value).last(64), only_ed25519.value.end() - 64);
  EXPECT_TRUE(key.verifying_key().verify(as_bytes("m"), good));
  EXPECT_FALSE(key.verifying_key().verify(as_bytes("m"), only_ml_dsa));
  EXPECT_FALSE(key.verifying_key().verify(as_bytes("m"), only_ed25519));
}

TEST(Signing, AHalfIsNoSignatureOfItsOwn) {
  const SigningKey key = SigningKey::generate(SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
  const Signature good = *key.sign(as_bytes("m"));
  const auto classical = VerifyingKey::parse(SignatureAlgorithm::ed25519, key.verifying_key().ed25519_half());
  const auto quantum = VerifyingKey::parse(SignatureAlgorithm::ml_dsa_65, key.verifying_key().ml_dsa_half());
  EXPECT_FALSE(classical->verify(as_bytes("m"), {"ed25519", to_bytes(BytesView(good.value).last(64))}));
  EXPECT_FALSE(quantum->verify(as_bytes("m"), {"ml-dsa-65", to_bytes(BytesView(good.value).first(3309))}));
}

TEST(Signing, TheNamedAlgorithmMustBeTheKeys) {
  const SigningKey key = SigningKey::generate(SignatureAlgorithm::ed25519);
  Signature signature = *key.sign(as_bytes("m"));
  for (const char* const name : {"ml-dsa-65", "hybrid-ed25519-ml-dsa-65", "", "ed25519ph"}) {
    signature.algorithm = name;
    const auto refused = key.verifying_key().verify(as_bytes("m"), signature);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind(), ErrorKind::unsupported_algorithm) << name;
  }
}

TEST(Signing, AContextSeparatesUses) {
  for (const auto algorithm : {SignatureAlgorithm::ml_dsa_65, SignatureAlgorithm::hybrid_ed25519_ml_dsa_65}) {
    const SigningKey key = SigningKey::generate(algorithm);
    const Signature signature = *key.sign(as_bytes("m"), as_bytes("approval"));
    EXPECT_TRUE(key.verifying_key().verify(as_bytes("m"), signature, as_bytes("approval")));
    EXPECT_FALSE(key.verifying_key().verify(as_bytes("m"), signature, as_bytes("delegation")));
    EXPECT_FALSE(key.verifying_key().verify(as_bytes("m"), signature));
    EXPECT_TRUE(key.sign(as_bytes("m"), Bytes(255)));
    EXPECT_FALSE(key.sign(as_bytes("m"), Bytes(256)));
    EXPECT_FALSE(key.verifying_key().verify(as_bytes("m"), signature, Bytes(256)));
  }
  EXPECT_FALSE(SigningKey::generate(SignatureAlgorithm::ed25519).sign(as_bytes("m"), as_bytes("c")));
}

TEST(Signing, Pkcs8IsForSingleAlgorithms) {
  EXPECT_TRUE(SigningKey::generate(SignatureAlgorithm::ed25519).pkcs8());
  EXPECT_TRUE(SigningKey::generate(SignatureAlgorithm::ml_dsa_65).pkcs8());
  EXPECT_FALSE(SigningKey::generate(SignatureAlgorithm::hybrid_ed25519_ml_dsa_65).pkcs8());
}

TEST(Kem, BothEndsAgreeAndNobodyElse) {
  for (const auto algorithm : all_kems) {
    SCOPED_TRACE(to_string(algorithm));
    const KemPrivateKey key = KemPrivateKey::generate(algorithm);
    const auto made = key.public_key().encapsulate();
    ASSERT_TRUE(made);
    EXPECT_EQ(made->ciphertext.size(), sizes_of(algorithm).ciphertext);
    const auto secret = key.decapsulate(made->ciphertext);
    ASSERT_TRUE(secret);
    EXPECT_EQ(revealed(*secret), revealed(made->shared_secret));
    const auto again = KemPrivateKey::from_seed(algorithm, key.seed().reveal());
    EXPECT_EQ(again->public_key(), key.public_key());
    EXPECT_EQ(revealed(*again->decapsulate(made->ciphertext)), revealed(made->shared_secret));
    EXPECT_EQ(*KemPublicKey::from_text(key.public_key().text()), key.public_key());
    EXPECT_NE(revealed(*KemPrivateKey::generate(algorithm).decapsulate(made->ciphertext)),
              revealed(made->shared_secret));
    EXPECT_NE(revealed(key.public_key().encapsulate()->shared_secret), revealed(made->shared_secret));
  }
}

TEST(Kem, AChangedByteGivesAnotherSecret) {
  for (const auto algorithm : all_kems) {
    SCOPED_TRACE(to_string(algorithm));
    const KemPrivateKey key = KemPrivateKey::generate(algorithm);
    const auto made = key.public_key().encapsulate();
    for (std::size_t i = 0; i < made->ciphertext.size(); ++i) {
      Bytes changed = made->ciphertext;
      changed[i] ^= 1;
      const auto secret = key.decapsulate(changed);
      EXPECT_TRUE(!secret || revealed(*secret) != revealed(made->shared_secret)) << i;
    }
    for (const std::size_t size : {std::size_t{0}, made->ciphertext.size() - 1, made->ciphertext.size() + 1}) {
      const auto secret = key.decapsulate(Bytes(size));
      ASSERT_FALSE(secret);
      EXPECT_EQ(secret.error().kind(), ErrorKind::invalid_input);
    }
  }
}

TEST(Kem, RefusesWrongLengthsAndPointsOfSmallOrder) {
  for (const auto algorithm : all_kems) {
    for (const std::size_t size : {0U, 31U, 33U, 63U, 1183U, 1185U, 1215U, 1217U}) {
      EXPECT_FALSE(KemPublicKey::parse(algorithm, Bytes(size))) << size;
      EXPECT_FALSE(KemPrivateKey::from_seed(algorithm, Bytes(size))) << size;
    }
  }
  const auto zero = KemPublicKey::parse(KemAlgorithm::x25519, Bytes(32));
  ASSERT_TRUE(zero);
  EXPECT_FALSE(zero->encapsulate());
  EXPECT_FALSE(KemPrivateKey::generate(KemAlgorithm::x25519).agree(*zero));
  EXPECT_FALSE(KemPrivateKey::generate(KemAlgorithm::x25519).decapsulate(Bytes(32)));
}

TEST(Kem, OnlyX25519KeysAgreeDirectly) {
  const KemPrivateKey a = KemPrivateKey::generate(KemAlgorithm::x25519);
  const KemPrivateKey b = KemPrivateKey::generate(KemAlgorithm::x25519);
  EXPECT_EQ(revealed(*a.agree(b.public_key())), revealed(*b.agree(a.public_key())));
  const auto refused = a.agree(KemPrivateKey::generate(KemAlgorithm::x_wing).public_key());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::unsupported_algorithm);
}

TEST(Kdf, PassphraseKeyAgreesWithTheReferenceArgon2) {
  const auto key =
      passphrase_key(Secret::copy_of("password"), as_bytes("somesalt"), {.memory_kib = 65536, .passes = 2, .lanes = 1});
  ASSERT_TRUE(key);
  EXPECT_EQ(hex(key->reveal()), "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
}

TEST(Kdf, RefusesCostsOutsideTheirRanges) {
  const Bytes salt(16);
  const Secret passphrase = Secret::copy_of("p");
  EXPECT_FALSE(passphrase_key(Secret(), salt, cheap));
  EXPECT_FALSE(passphrase_key(passphrase, Bytes(7), cheap));
  EXPECT_FALSE(passphrase_key(passphrase, Bytes(65), cheap));
  EXPECT_FALSE(passphrase_key(passphrase, salt, {.memory_kib = 8191, .passes = 1, .lanes = 1}));
  EXPECT_FALSE(passphrase_key(passphrase, salt, {.memory_kib = 0xffffffff, .passes = 1, .lanes = 1}));
  EXPECT_FALSE(passphrase_key(passphrase, salt, {.memory_kib = 8192, .passes = 0, .lanes = 1}));
  EXPECT_FALSE(passphrase_key(passphrase, salt, {.memory_kib = 8192, .passes = 65, .lanes = 1}));
  EXPECT_FALSE(passphrase_key(passphrase, salt, {.memory_kib = 8192, .passes = 1, .lanes = 17}));
  EXPECT_FALSE(hkdf_sha256(salt, {}, {}, 0));
  EXPECT_FALSE(hkdf_sha256(salt, {}, {}, 8161));
}

TEST(SealedFile, OpensWithItsPassphraseAndPurpose) {
  const Secret content = Secret::copy_of("the keys");
  const auto file = seal_file("creto human keys v1", content, Secret::copy_of("correct horse"), cheap);
  ASSERT_TRUE(file);
  EXPECT_EQ(as_text(*file).find("the keys"), std::string_view::npos);
  const auto opened = open_sealed_file("creto human keys v1", *file, Secret::copy_of("correct horse"));
  ASSERT_TRUE(opened);
  EXPECT_EQ(opened->reveal_text(), "the keys");
  const auto wrong = open_sealed_file("creto human keys v1", *file, Secret::copy_of("correct horsf"));
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().kind(), ErrorKind::decryption_failed);
  const auto other = open_sealed_file("creto root key v1", *file, Secret::copy_of("correct horse"));
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().kind(), ErrorKind::invalid_input);
  EXPECT_NE(*seal_file("p", content, Secret::copy_of("x"), cheap),
            *seal_file("p", content, Secret::copy_of("x"), cheap));
}

TEST(SealedFile, RefusesEveryChangedByteAndEveryCut) {
  const auto file = seal_file("p", Secret::copy_of("abc"), Secret::copy_of("x"), cheap);
  ASSERT_TRUE(file);
  for (std::size_t i = 0; i < file->size(); ++i) {
    Bytes changed = *file;
    changed[i] ^= 1;
    EXPECT_FALSE(open_sealed_file("p", changed, Secret::copy_of("x"))) << i;
  }
  for (std::size_t size = 0; size < file->size(); ++size) {
    EXPECT_FALSE(open_sealed_file("p", BytesView(*file).first(size), Secret::copy_of("x"))) << size;
  }
}

TEST(SealedFile, RefusesWhatIsTooLarge) {
  const auto sealed = seal_file("p", Secret(std::size_t{1 << 20} + 1), Secret::copy_of("x"), cheap);
  ASSERT_FALSE(sealed);
  EXPECT_EQ(sealed.error().kind(), ErrorKind::too_large);
  EXPECT_FALSE(seal_file("", Secret(1), Secret::copy_of("x"), cheap));
  EXPECT_FALSE(seal_file(std::string(256, 'p'), Secret(1), Secret::copy_of("x"), cheap));
}

TEST(Random, DoesNotRepeat) {
  std::set<Bytes> seen;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(seen.insert(random_bytes(16)).second);
  EXPECT_TRUE(random_bytes(0).empty());
  EXPECT_EQ(random_secret(40).size(), 40U);
}

}  // namespace
}  // namespace creto::crypto
