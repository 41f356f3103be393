#pragma once

#include <map>
#include <string>

#include "creto/memory/memory.h"

namespace creto::memory {

/// What callers may hand in; refuses with invalid_input naming the field.
Result<> check(const NewEntry& entry, const Embedder& embedder);
Result<> check(const Query& query);

}  // namespace creto::memory
