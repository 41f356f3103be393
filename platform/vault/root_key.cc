#include "creto/vault/root_key.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/random.h"
#include "creto/crypto/sealed_file.h"
#include "creto/io/files.h"
#include "sealer.h"

namespace creto::vault {
namespace {

// The file: magic, kind, content (docs/formats.md, "Root key").
constexpr std::string_view magic = "CRETORK1";
constexpr std::string_view purpose = "creto root key v1";
constexpr std::uint8_t kind_open = 0;
constexpr std::uint8_t kind_sealed = 1;
constexpr std::size_t header_size = magic.size() + 1;
constexpr std::size_t key_size = crypto::aead_key_size;
constexpr std::size_t checksum_size = 8;
constexpr std::size_t file_bytes_max = 4096;

Error not_ours(const std::filesystem::path& file) {
  return Error(Product::platform, ErrorKind::invalid_input, fmt::format("`{}` is not a root key file", file.string()));
}

Result<Secret> read_file(const std::filesystem::path& file) {
  std::error_code problem;
  const auto status = std::filesystem::status(file, problem);
  if (!std::filesystem::exists(status)) {
    return Error(Product::platform, ErrorKind::not_found, fmt::format("there is no root key at `{}`", file.string()));
  }
  using std::filesystem::perms;
  if ((status.permissions() & (perms::group_all | perms::others_all)) != perms::none) {
    return Error(Product::platform, ErrorKind::permission_denied,
                 fmt::format("others than the owner may read `{}`: chmod 600 it", file.string()));
  }
  auto bytes = io::real_files().read(file, file_bytes_max);
  if (!bytes) {
    if (bytes.error().kind() == ErrorKind::too_large) return not_ours(file);
    return std::move(bytes).error();
  }
  Secret content(std::move(*bytes));
  if (content.size() <= header_size || !content.reveal_text().starts_with(magic)) return not_ours(file);
  return content;
}

}  // namespace

Result<> create_root_key(const std::filesystem::path& file, const Secret& passphrase) {
  auto& files = io::real_files();
  const bool there = CRETO_TRY(files.exists(file));
  if (there) {
    return Error(Product::platform, ErrorKind::already_exists,
                 fmt::format("`{}` is there and is never overwritten", file.string()));
  }
  const auto key = crypto::random_secret(key_size);
  Bytes content = to_bytes(magic);
  // Reserved, so that no copy of the key is left behind in a buffer that grew.
  content.reserve(file_bytes_max);
  if (passphrase.empty()) {
    content.push_back(kind_open);
    content.insert(content.end(), key.reveal().begin(), key.reveal().end());
    const auto checksum = crypto::blake3(content);
    content.insert(content.end(), checksum.begin(), checksum.begin() + checksum_size);
  } else {
    content.push_back(kind_sealed);
    const auto sealed = CRETO_TRY(crypto::seal_file(purpose, key, passphrase));
    content.insert(content.end(), sealed.begin(), sealed.end());
  }
  const Secret wiped_afterwards(std::move(content));
  return io::write_durably(files, file, wiped_afterwards.reveal(), 0600);
}

Result<std::unique_ptr<crypto::KeySealer>> open_root_key(const std::filesystem::path& file, const Secret& passphrase) {
  const auto content = CRETO_TRY(read_file(file));
  const auto bytes = content.reveal();
  const auto body = bytes.subspan(header_size);
  Secret key;
  switch (bytes[magic.size()]) {
    case kind_open: {
      if (body.size() != key_size + checksum_size) return not_ours(file);
      const auto checksum = crypto::blake3(bytes.first(header_size + key_size));
      if (!std::equal(checksum.begin(), checksum.begin() + checksum_size, body.begin() + key_size)) {
        return Error(Product::platform, ErrorKind::decryption_failed, fmt::format("`{}` is damaged", file.string()));
      }
      key = Secret::copy_of(body.first(key_size));
      break;
    }
    case kind_sealed: {
      if (passphrase.empty()) {
        return Error(Product::platform, ErrorKind::decryption_failed,
                     fmt::format("`{}` needs its passphrase", file.string()));
      }
      key = CRETO_TRY(crypto::open_sealed_file(purpose, body, passphrase));
      if (key.size() != key_size) return not_ours(file);
      break;
    }
    default:
      return not_ours(file);
  }
  return make_sealer(key);
}

Result<bool> root_key_needs_passphrase(const std::filesystem::path& file) {
  const auto content = CRETO_TRY(read_file(file));
  return content.reveal()[magic.size()] == kind_sealed;
}

}  // namespace creto::vault
