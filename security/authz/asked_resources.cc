#include "asked_resources.h"

#include <fmt/format.h>

#include "creto/io/no_waiting.h"

namespace creto::authz {

Result<std::optional<Entity>> AskedResources::find(const EntityUid& uid) {
  const ResourceSource* source = source_of(uid.type);
  if (source == nullptr) return std::optional<Entity>();
  asked_ = true;
  if (io::NoWaiting::forbids())
    return Error(Product::platform, ErrorKind::unavailable, fmt::format("{} is not known here", uid.to_string()));
  const Monotonic begin = clock_.monotonic();
  Context ctx;
  ctx.org = ctx_.org;
  ctx.deadline = std::min(ctx_.deadline, begin + source->budget());
  auto found = source->find(ctx, uid);
  if (!found) return std::move(found).error();
  if (clock_.monotonic() - begin > source->budget())
    return Error(Product::platform, ErrorKind::timeout, fmt::format("{} took too long", uid.to_string()));
  if (*found && (*found)->uid != uid)
    return Error(Product::platform, ErrorKind::internal, fmt::format("another entity than {}", uid.to_string()));
  return found;
}

}  // namespace creto::authz
