#pragma once

#include <string>

#include "creto/common/bytes.h"

namespace creto {

/// A signature that names its algorithm (CR2): "ed25519", "ml-dsa-65" or "hybrid-ed25519-ml-dsa-65".
/// The hybrid value is the composite encoding of the crypto module; both halves must verify (CR3).
struct Signature {
  std::string algorithm;
  Bytes value;
  friend bool operator==(const Signature&, const Signature&) = default;
};

}  // namespace creto
