#include "sealed_object.h"

#include <gtest/gtest.h>

#include <numeric>

namespace creto::storage {
namespace {

constexpr std::size_t chunk = chunk_bytes_min;

class SealedObject : public ::testing::Test {
 protected:
  struct Sealed {
    Bytes header;
    std::vector<Bytes> chunks;
  };

  Sealed seal(const Bytes& plaintext, std::string_view binding = "b") {
    auto writer = ObjectWriter::create(owner_.public_key(), "key-1", binding, chunk);
    EXPECT_TRUE(writer);
    // In uneven pieces, as they come from a stream.
    Bytes body;
    for (std::size_t at = 0; at < plaintext.size();) {
      const auto size = std::min<std::size_t>(plaintext.size() - at, 1 + at % 3000);
      const auto part = writer->update(BytesView(plaintext).subspan(at, size));
      body.insert(body.end(), part.begin(), part.end());
      at += size;
    }
    const auto last = writer->finish();
    body.insert(body.end(), last.begin(), last.end());
    EXPECT_EQ(writer->content_hash(), crypto::blake3(plaintext));
    EXPECT_EQ(writer->size(), plaintext.size());
    Sealed sealed{writer->header(), {}};
    for (BytesView rest = body; !rest.empty();) {
      const auto size = std::min(rest.size(), chunk + chunk_overhead);
      sealed.chunks.push_back(to_bytes(rest.first(size)));
      rest = rest.subspan(size);
    }
    return sealed;
  }

  Result<Bytes> open(const Sealed& sealed, std::string_view binding = "b") {
    std::size_t used = 0;
    const auto header = CRETO_TRY(ObjectHeader::parse(sealed.header, used));
    EXPECT_EQ(used, sealed.header.size());
    const auto shared = CRETO_TRY(owner_.decapsulate(header.kem_ciphertext));
    auto reader = CRETO_TRY(ObjectReader::create(header, shared, binding));
    Bytes plaintext;
    for (std::size_t i = 0; i < sealed.chunks.size(); ++i) {
      const auto part = CRETO_TRY(reader.chunk(sealed.chunks[i], i + 1 == sealed.chunks.size()));
      plaintext.insert(plaintext.end(), part.reveal().begin(), part.reveal().end());
    }
    return plaintext;
  }

  static Bytes text(std::size_t size) {
    Bytes bytes(size);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    return bytes;
  }

  const crypto::KemPrivateKey owner_ = crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x_wing);
};

TEST_F(SealedObject, OpensToWhatWasSealedAtEveryBoundary) {
  for (const auto size : {std::size_t{0}, std::size_t{1}, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 7}) {
    const auto sealed = seal(text(size));
    EXPECT_EQ(sealed.chunks.size(), std::max<std::size_t>(1, (size + chunk - 1) / chunk)) << size;
    const auto opened = open(sealed);
    ASSERT_TRUE(opened) << size;
    EXPECT_EQ(*opened, text(size)) << size;
  }
}

TEST_F(SealedObject, NoticesChunksThatAreCutSwappedOrRepeated) {
  const auto whole = seal(text(3 * chunk));
  auto cut = whole;
  cut.chunks.pop_back();
  EXPECT_EQ(open(cut).error().kind(), ErrorKind::hash_mismatch);
  auto swapped = whole;
  std::swap(swapped.chunks[0], swapped.chunks[1]);
  EXPECT_EQ(open(swapped).error().kind(), ErrorKind::hash_mismatch);
  auto repeated = whole;
  repeated.chunks.insert(repeated.chunks.begin(), repeated.chunks.front());
  EXPECT_EQ(open(repeated).error().kind(), ErrorKind::hash_mismatch);
  auto changed = whole;
  changed.chunks[1][5] ^= 1;
  EXPECT_EQ(open(changed).error().kind(), ErrorKind::hash_mismatch);
  auto foreign = whole;
  foreign.chunks[1] = seal(text(3 * chunk)).chunks[1];
  EXPECT_EQ(open(foreign).error().kind(), ErrorKind::hash_mismatch);
}

TEST_F(SealedObject, IsBoundToWhatItIsAndToItsHeader) {
  const auto whole = seal(text(10));
  EXPECT_EQ(open(whole, "another").error().kind(), ErrorKind::decryption_failed);
  for (std::size_t i = 0; i < whole.header.size(); i += 7) {
    auto changed = whole;
    changed.header[i] ^= 1;
    EXPECT_FALSE(open(changed)) << i;
  }
}

TEST_F(SealedObject, RefusesHeadersThatAreNone) {
  std::size_t used = 0;
  const auto header = seal(text(1)).header;
  for (std::size_t size = 0; size < header.size(); ++size) {
    EXPECT_FALSE(ObjectHeader::parse(BytesView(header).first(size), used)) << size;
  }
  auto later = header;
  later[4] = 2;
  EXPECT_EQ(ObjectHeader::parse(later, used).error().kind(), ErrorKind::unsupported_algorithm);
  auto unknown = header;
  unknown[6] = 9;
  EXPECT_EQ(ObjectHeader::parse(unknown, used).error().kind(), ErrorKind::unsupported_algorithm);
}

TEST_F(SealedObject, WrapsWithPlainMlKemToo) {
  const auto owner = crypto::KemPrivateKey::generate(crypto::KemAlgorithm::ml_kem_768);
  auto writer = ObjectWriter::create(owner.public_key(), "k", "b", chunk);
  ASSERT_TRUE(writer);
  std::size_t used = 0;
  const auto header = ObjectHeader::parse(writer->header(), used);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->kem, crypto::KemAlgorithm::ml_kem_768);
  EXPECT_TRUE(ObjectReader::create(*header, *owner.decapsulate(header->kem_ciphertext), "b"));
  const auto alone = crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x25519);
  EXPECT_EQ(ObjectWriter::create(alone.public_key(), "k", "b", chunk).error().kind(), ErrorKind::unsupported_algorithm);
}

}  // namespace
}  // namespace creto::storage
