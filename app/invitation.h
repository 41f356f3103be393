#pragma once

#include <string>
#include <string_view>

#include "creto/common/identity.h"
#include "creto/common/result.h"
#include "creto/common/secret.h"
#include "creto/common/time.h"

namespace creto::app {

/// The file that somebody gets who is to come in (docs/formats.md, "Invitation"): where the server is, by whom its
/// certificate must be, and what opens the door once.
struct Invitation {
  std::string org;
  Identity human;
  std::string server;     ///< host:port of its gRPC
  std::string authority;  ///< PEM
  Secret secret;
  Instant expires_at{};
};

/// What an organization may be called: it stands in settings files, paths of logs and certificates.
bool is_org_name(std::string_view text);
inline constexpr std::string_view org_name_rule = "must be 1 to 128 letters, digits, `.`, `_` and `-`";

std::string to_text(const Invitation& invitation);
/// Errors: invalid_input naming the field; too_large over 16 KiB.
Result<Invitation> parse_invitation(std::string_view text);

}  // namespace creto::app
