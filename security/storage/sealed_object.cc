#include "sealed_object.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "creto/common/assert.h"
#include "creto/crypto/random.h"

namespace creto::storage {
namespace {

constexpr std::string_view magic = "CROB";
constexpr std::uint8_t version = 1;
constexpr std::uint8_t aes_256_gcm = 1;
constexpr std::size_t wrapped_size = crypto::aead_key_size + crypto::aead_tag_size;

struct KemCode {
  crypto::KemAlgorithm algorithm;
  std::uint8_t code;
};
constexpr std::array kem_codes{KemCode{crypto::KemAlgorithm::x_wing, 1}, KemCode{crypto::KemAlgorithm::ml_kem_768, 2}};

Error invalid(std::string_view what) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("not a stored object: {}", what));
}

void put(Bytes& out, std::uint64_t value, int size) {
  for (int shift = 8 * (size - 1); shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(value >> shift));
}

/// Reads from the front; once something is missing everything further is empty and `ok` false.
struct Cursor {
  BytesView rest;
  bool ok = true;

  BytesView take(std::size_t size) {
    if (rest.size() < size) {
      ok = false;
      rest = {};
      return {};
    }
    const auto part = rest.first(size);
    rest = rest.subspan(size);
    return part;
  }
  std::uint64_t number(std::size_t size) {
    std::uint64_t value = 0;
    for (const auto byte : take(size)) value = value << 8 | byte;
    return value;
  }
};

/// Everything before the wrapped key: what the wrapping authenticates beside `binding`.
Bytes prefix_of(const ObjectHeader& header) {
  const auto code = std::ranges::find(kem_codes, header.kem, &KemCode::algorithm);
  CRETO_ASSERT(code != kem_codes.end());
  CRETO_ASSERT(!header.key_id.empty() && header.key_id.size() <= 255);
  Bytes out = to_bytes(magic);
  out.push_back(version);
  out.push_back(aes_256_gcm);
  out.push_back(code->code);
  put(out, header.chunk_bytes, 4);
  out.insert(out.end(), header.nonce_prefix.begin(), header.nonce_prefix.end());
  put(out, header.key_id.size(), 1);
  out.insert(out.end(), header.key_id.begin(), header.key_id.end());
  put(out, header.kem_ciphertext.size(), 2);
  out.insert(out.end(), header.kem_ciphertext.begin(), header.kem_ciphertext.end());
  return out;
}

Bytes wrap_data(const ObjectHeader& header, std::string_view binding) {
  auto data = prefix_of(header);
  data.insert(data.end(), binding.begin(), binding.end());
  return data;
}

Result<crypto::AeadKey> wrapping_key(const Secret& shared_secret) {
  return crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm,
                                 crypto::blake3_derive("creto 2026-11 storage key wrapping", shared_secret.reveal()));
}

/// The STREAM construction: prefix, counter, and whether it is the last. A chunk moved, dropped, repeated or cut off at
/// the end gets another nonce than it was sealed with.
ByteArray<crypto::aead_nonce_size> nonce_of(const ByteArray<7>& prefix, std::uint32_t index, bool last) {
  ByteArray<crypto::aead_nonce_size> nonce{};
  std::copy(prefix.begin(), prefix.end(), nonce.begin());
  for (std::size_t i = 0; i < 4; ++i) nonce[7 + i] = static_cast<std::uint8_t>(index >> (24 - 8 * i));
  nonce[11] = last ? 1 : 0;
  return nonce;
}

}  // namespace

Bytes ObjectHeader::encode() const {
  CRETO_ASSERT(wrapped_key.size() == wrapped_size);
  auto out = prefix_of(*this);
  out.insert(out.end(), wrap_nonce.begin(), wrap_nonce.end());
  out.insert(out.end(), wrapped_key.begin(), wrapped_key.end());
  return out;
}

Result<ObjectHeader> ObjectHeader::parse(BytesView bytes, std::size_t& used) {
  Cursor cursor{bytes.first(std::min(bytes.size(), header_bytes_max))};
  if (as_text(cursor.take(magic.size())) != magic) return invalid("wrong magic");
  const auto format = cursor.number(1);
  const auto cipher = cursor.number(1);
  const auto kem_code = cursor.number(1);
  if (!cursor.ok) return invalid("too short");
  const auto code = std::ranges::find_if(kem_codes, [&](const KemCode& c) { return c.code == kem_code; });
  if (format != version || cipher != aes_256_gcm || code == kem_codes.end()) {
    return Error(
        Product::platform, ErrorKind::unsupported_algorithm,
        fmt::format("the stored object is of version {}, cipher {}, key wrapping {}", format, cipher, kem_code));
  }
  ObjectHeader header;
  header.kem = code->algorithm;
  header.chunk_bytes = static_cast<std::uint32_t>(cursor.number(4));
  const auto prefix = cursor.take(header.nonce_prefix.size());
  const auto key_id = cursor.take(cursor.number(1));
  const auto ciphertext = cursor.take(cursor.number(2));
  const auto nonce = cursor.take(header.wrap_nonce.size());
  const auto wrapped = cursor.take(wrapped_size);
  if (!cursor.ok) return invalid("too short");
  if (key_id.empty()) return invalid("no key id");
  if (header.chunk_bytes < chunk_bytes_min || header.chunk_bytes > chunk_bytes_max)
    return invalid("a wrong chunk size");
  if (ciphertext.size() != crypto::sizes_of(header.kem).ciphertext)
    return invalid("a wrong length of the wrapped secret");
  std::ranges::copy(prefix, header.nonce_prefix.begin());
  std::ranges::copy(nonce, header.wrap_nonce.begin());
  header.key_id = as_text(key_id);
  header.kem_ciphertext = to_bytes(ciphertext);
  header.wrapped_key = to_bytes(wrapped);
  used = std::min(bytes.size(), header_bytes_max) - cursor.rest.size();
  return header;
}

ObjectWriter::ObjectWriter(crypto::AeadKey key, ObjectHeader header)
    : key_(std::move(key)), fields_(std::move(header)), header_(fields_.encode()), pending_(fields_.chunk_bytes) {}

Result<ObjectWriter> ObjectWriter::create(const crypto::KemPublicKey& owner_key, std::string key_id,
                                          std::string_view binding, std::size_t chunk_bytes) {
  CRETO_ASSERT(chunk_bytes >= chunk_bytes_min && chunk_bytes <= chunk_bytes_max);
  if (owner_key.algorithm() == crypto::KemAlgorithm::x25519) {
    return Error(Product::platform, ErrorKind::unsupported_algorithm, "objects are not wrapped with x25519 alone");
  }
  auto encapsulated = CRETO_TRY(owner_key.encapsulate());
  auto data_key = crypto::AeadKey::generate();
  ObjectHeader header;
  header.chunk_bytes = static_cast<std::uint32_t>(chunk_bytes);
  header.kem = owner_key.algorithm();
  header.key_id = std::move(key_id);
  header.kem_ciphertext = std::move(encapsulated.ciphertext);
  header.nonce_prefix = crypto::random_array<7>();
  const auto wrapping = CRETO_TRY(wrapping_key(encapsulated.shared_secret));
  auto wrapped = wrapping.seal(data_key.key().reveal(), wrap_data(header, binding));
  header.wrap_nonce = wrapped.nonce;
  header.wrapped_key = std::move(wrapped.bytes);
  return ObjectWriter(std::move(data_key), std::move(header));
}

void ObjectWriter::seal_chunk(bool last, Bytes& out) {
  // 2^32 chunks of the smallest size are 16 TiB; limits are far below.
  CRETO_ASSERT(index_ < 0xFFFFFFFF);
  const auto sealed =
      key_.seal_with_nonce(pending_.reveal().first(pending_size_), {}, nonce_of(fields_.nonce_prefix, index_, last));
  out.insert(out.end(), sealed.bytes.begin(), sealed.bytes.end());
  ++index_;
  pending_size_ = 0;
}

Bytes ObjectWriter::update(BytesView plaintext) {
  Bytes out;
  hasher_.update(plaintext);
  size_ += plaintext.size();
  while (!plaintext.empty()) {
    // A full chunk waits for what follows: only then is it known not to be the last.
    if (pending_size_ == fields_.chunk_bytes) seal_chunk(false, out);
    const auto take = std::min(plaintext.size(), fields_.chunk_bytes - pending_size_);
    std::copy_n(plaintext.begin(), take, pending_.writable().begin() + static_cast<std::ptrdiff_t>(pending_size_));
    pending_size_ += take;
    plaintext = plaintext.subspan(take);
  }
  return out;
}

Bytes ObjectWriter::finish() {
  Bytes out;
  seal_chunk(true, out);
  content_hash_ = hasher_.finish();
  return out;
}

Result<ObjectReader> ObjectReader::create(const ObjectHeader& header, const Secret& shared_secret,
                                          std::string_view binding) {
  const auto wrapping = CRETO_TRY(wrapping_key(shared_secret));
  const crypto::Ciphertext wrapped{crypto::AeadAlgorithm::aes_256_gcm, header.wrap_nonce, header.wrapped_key};
  auto data_key = wrapping.open(wrapped, wrap_data(header, binding));
  if (!data_key) {
    return Error(Product::platform, ErrorKind::decryption_failed,
                 "the owner's key does not open the object's data key");
  }
  auto key = CRETO_TRY(crypto::AeadKey::create(crypto::AeadAlgorithm::aes_256_gcm, std::move(*data_key)));
  return ObjectReader(std::move(key), header.nonce_prefix);
}

Result<Secret> ObjectReader::chunk(BytesView ciphertext, bool last) {
  const crypto::Ciphertext sealed{crypto::AeadAlgorithm::aes_256_gcm, nonce_of(prefix_, index_, last),
                                  to_bytes(ciphertext)};
  auto opened = key_.open(sealed);
  if (!opened) {
    return Error(Product::platform, ErrorKind::hash_mismatch,
                 fmt::format("the stored object was changed, cut or reordered in chunk {}", index_));
  }
  ++index_;
  return std::move(*opened);
}

}  // namespace creto::storage
