#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kem.h"

/// The file of a stored object: a header that wraps the data key for the owner, then chunks. Pure: bytes in, bytes out.
/// Format: docs/formats.md, "Stored object".
namespace creto::storage {

inline constexpr std::size_t chunk_bytes_min = 4096;
inline constexpr std::size_t chunk_bytes_max = 16u << 20;
inline constexpr std::size_t header_bytes_max = 4096;
inline constexpr std::size_t chunk_overhead = crypto::aead_tag_size;

struct ObjectHeader {
  std::uint32_t chunk_bytes = 0;  ///< plaintext bytes of every chunk but the last
  crypto::KemAlgorithm kem = crypto::KemAlgorithm::x_wing;
  std::string key_id;  ///< of the owner's key pair; 1 to 255 bytes
  Bytes kem_ciphertext;
  ByteArray<crypto::aead_nonce_size> wrap_nonce{};
  Bytes wrapped_key;            ///< 32 bytes of data key and the tag
  ByteArray<7> nonce_prefix{};  ///< of the chunks' nonces

  Bytes encode() const;
  /// `used` is how many bytes it took. Errors: invalid_input, unsupported_algorithm
  static Result<ObjectHeader> parse(BytesView bytes, std::size_t& used);
};

/// Encrypts one object from beginning to end.
class ObjectWriter {
 public:
  /// `binding` says what and whose the object is; the reader needs the same.
  static Result<ObjectWriter> create(const crypto::KemPublicKey& owner_key, std::string key_id,
                                     std::string_view binding, std::size_t chunk_bytes);

  const Bytes& header() const { return header_; }
  /// The ciphertext that is complete now, to be appended to the file.
  Bytes update(BytesView plaintext);
  /// The last chunk. Call it once, at the end.
  Bytes finish();

  std::uint64_t size() const { return size_; }
  /// BLAKE3 of the plaintext. After `finish`.
  const Hash256& content_hash() const { return content_hash_; }

 private:
  ObjectWriter(crypto::AeadKey key, ObjectHeader header);
  void seal_chunk(bool last, Bytes& out);

  crypto::AeadKey key_;
  ObjectHeader fields_;
  Bytes header_;
  Secret pending_;  ///< plaintext of the chunk that is being filled
  std::size_t pending_size_ = 0;
  std::uint32_t index_ = 0;
  std::uint64_t size_ = 0;
  crypto::Hasher hasher_{crypto::HashAlgorithm::blake3};
  Hash256 content_hash_{};
};

/// Decrypts chunk by chunk. Each chunk is authentic, in its place, and the last one is known to be the last.
class ObjectReader {
 public:
  /// `shared_secret` is what the owner's key gave for `header.kem_ciphertext`.
  /// Errors: decryption_failed
  static Result<ObjectReader> create(const ObjectHeader& header, const Secret& shared_secret, std::string_view binding);

  /// `last`: no chunk follows. Errors: hash_mismatch
  Result<Secret> chunk(BytesView ciphertext, bool last);

 private:
  ObjectReader(crypto::AeadKey key, ByteArray<7> prefix) : key_(std::move(key)), prefix_(prefix) {}
  crypto::AeadKey key_;
  ByteArray<7> prefix_;
  std::uint32_t index_ = 0;
};

}  // namespace creto::storage
