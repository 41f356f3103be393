#pragma once

#include <string_view>

#include "creto/common/bytes.h"
#include "creto/common/secret.h"
#include "creto/crypto/kdf.h"

namespace creto::crypto {

/// A file that only a passphrase opens: a human's keys, the root key (docs/formats.md, "Sealed file"). Bytes in, bytes
/// out; the caller does the I/O and sets mode 0600.
///
/// `purpose` says what is inside ("creto human keys v1"): it stands in clear in the header and is authenticated, so
/// that a file cannot be passed off as another kind.

/// Errors: invalid_input for an empty passphrase, a purpose outside 1 to 255 characters, a cost outside its ranges;
/// too_large over 1 MiB.
Result<Bytes> seal_file(std::string_view purpose, const Secret& plaintext, const Secret& passphrase,
                        const PassphraseCost& cost = {});

/// Errors: invalid_input where it is not a sealed file of this version and purpose; decryption_failed for a wrong
/// passphrase or a changed byte, without saying which.
Result<Secret> open_sealed_file(std::string_view purpose, BytesView file, const Secret& passphrase);

}  // namespace creto::crypto
