#pragma once

#include <filesystem>
#include <memory>

#include "creto/common/result.h"
#include "creto/common/secret.h"
#include "creto/crypto/key_sealer.h"

namespace creto::vault {

/// Makes a fresh root key and writes it to `file` (mode 0600, synced). With a passphrase the key is sealed under it
/// (crypto/sealed_file.h); without, the file's mode is its only protection.
///
/// Errors: already_exists (never overwrites), resource_exhausted or internal where it cannot be written
Result<> create_root_key(const std::filesystem::path& file, const Secret& passphrase);

/// Opens what create_root_key wrote. `passphrase` is not used where the file is not sealed under one.
///
/// Errors: not_found; permission_denied where others than the owner may read the file; decryption_failed for a wrong
/// passphrase or a changed file; invalid_input for a file that is none of ours
Result<std::unique_ptr<crypto::KeySealer>> open_root_key(const std::filesystem::path& file, const Secret& passphrase);

/// True where `file` asks for a passphrase. Errors: as open_root_key.
Result<bool> root_key_needs_passphrase(const std::filesystem::path& file);

}  // namespace creto::vault
