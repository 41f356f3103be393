#pragma once

#include <string>
#include <string_view>

#include "creto/crypto/aead.h"
#include "creto/crypto/key_sealer.h"

namespace creto::testing {

/// Seals as the vault's root key does, under one key for every process of a test: each may open what another sealed.
class TestSealer final : public crypto::KeySealer {
 public:
  Result<Bytes> seal(std::string_view aad, BytesView plaintext) override {
    return key_.seal(plaintext, as_bytes(aad)).encode();
  }
  Result<Secret> unseal(std::string_view aad, BytesView sealed) override {
    const auto ciphertext = CRETO_TRY(crypto::Ciphertext::parse(sealed));
    return key_.open(ciphertext, as_bytes(aad));
  }
  std::string key_id() const override { return "0000000000000000"; }

 private:
  crypto::AeadKey key_ =
      crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm, Secret(Bytes(crypto::aead_key_size, 9))).value();
};

}  // namespace creto::testing
