#include "creto/vault/root_key.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "creto/io/files.h"
#include "creto/testing/temp_dir.h"

namespace creto::vault {
namespace {

class RootKey : public ::testing::Test {
 protected:
  testing::TempDir directory_;
  const std::filesystem::path file_ = directory_ / "root.key";
  const Secret none_;

  std::unique_ptr<crypto::KeySealer> opened(const Secret& passphrase) {
    auto sealer = open_root_key(file_, passphrase);
    EXPECT_TRUE(sealer) << sealer.error().to_string();
    return std::move(*sealer);
  }
  void rewrite(const std::function<void(Bytes&)>& change) {
    auto bytes = *io::real_files().read(file_, 4096);
    change(bytes);
    ASSERT_TRUE(io::write_durably(io::real_files(), file_, bytes, 0600));
  }
};

TEST_F(RootKey, SealsWhatOnlyItOpensAgain) {
  ASSERT_TRUE(create_root_key(file_, none_));
  const auto sealed = opened(none_)->seal("nhi/key:a", as_bytes("private"));
  ASSERT_TRUE(sealed);
  EXPECT_EQ(sealed->size(), 7u + 102u);
  EXPECT_EQ(opened(none_)->unseal("nhi/key:a", *sealed)->reveal_text(), "private");
  EXPECT_NE(*opened(none_)->seal("nhi/key:a", as_bytes("private")), *sealed);
}

TEST_F(RootKey, DoesNotOpenUnderAnotherNameOrAnotherKey) {
  ASSERT_TRUE(create_root_key(file_, none_));
  const auto sealer = opened(none_);
  const auto sealed = *sealer->seal("a", as_bytes("x"));
  EXPECT_EQ(sealer->unseal("b", sealed).error().kind(), ErrorKind::decryption_failed);
  ASSERT_TRUE(create_root_key(directory_ / "other", none_));
  const auto other = open_root_key(directory_ / "other", none_);
  EXPECT_EQ((*other)->unseal("a", sealed).error().kind(), ErrorKind::decryption_failed);
  EXPECT_NE((*other)->key_id(), sealer->key_id());
}

TEST_F(RootKey, NoticesEveryChangedByteAndEveryCut) {
  ASSERT_TRUE(create_root_key(file_, none_));
  const auto sealer = opened(none_);
  const auto sealed = *sealer->seal("a", as_bytes("some secret"));
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    auto changed = sealed;
    changed[i] ^= 1;
    EXPECT_FALSE(sealer->unseal("a", changed)) << i;
    EXPECT_FALSE(sealer->unseal("a", BytesView(sealed).first(i))) << i;
  }
  auto longer = sealed;
  longer.push_back(0);
  EXPECT_FALSE(sealer->unseal("a", longer));
}

TEST_F(RootKey, IsReadableByItsOwnerAlone) {
  ASSERT_TRUE(create_root_key(file_, none_));
  using std::filesystem::perms;
  EXPECT_EQ(std::filesystem::status(file_).permissions(), perms::owner_read | perms::owner_write);
  std::filesystem::permissions(file_, perms::group_read, std::filesystem::perm_options::add);
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::permission_denied);
}

TEST_F(RootKey, IsNeverOverwritten) {
  ASSERT_TRUE(create_root_key(file_, none_));
  const auto id = opened(none_)->key_id();
  EXPECT_EQ(create_root_key(file_, none_).error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(opened(none_)->key_id(), id);
}

TEST_F(RootKey, SealedUnderAPassphraseOpensWithItAlone) {
  const auto passphrase = Secret::copy_of("correct horse");
  ASSERT_TRUE(create_root_key(file_, passphrase));
  EXPECT_TRUE(*root_key_needs_passphrase(file_));
  EXPECT_EQ(opened(passphrase)->key_id().size(), 16u);
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::decryption_failed);
  EXPECT_EQ(open_root_key(file_, Secret::copy_of("wrong")).error().kind(), ErrorKind::decryption_failed);
}

TEST_F(RootKey, DamagedOrForeignFilesAreRefused) {
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::not_found);
  ASSERT_TRUE(create_root_key(file_, none_));
  EXPECT_FALSE(*root_key_needs_passphrase(file_));
  rewrite([](Bytes& bytes) { bytes[20] ^= 1; });
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::decryption_failed);
  rewrite([](Bytes& bytes) { bytes.resize(30); });
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::invalid_input);
  rewrite([](Bytes& bytes) { bytes[8] = 7; });
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::invalid_input);
  rewrite([](Bytes& bytes) { bytes = to_bytes("not a key at all"); });
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::invalid_input);
  rewrite([](Bytes& bytes) { bytes.assign(5000, 'x'); });
  EXPECT_EQ(open_root_key(file_, none_).error().kind(), ErrorKind::invalid_input);
}

}  // namespace
}  // namespace creto::vault
