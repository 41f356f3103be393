#include <cstdlib>

#include "creto/common/bytes.h"
#include "invitation.h"

/// What reads as an invitation reads back the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace creto;
  const auto invitation = app::parse_invitation(as_text({data, size}));
  if (!invitation) return 0;
  const std::string text = app::to_text(*invitation);
  const auto again = app::parse_invitation(text);
  if (!again || app::to_text(*again) != text || !app::is_org_name(again->org)) std::abort();
  return 0;
}
