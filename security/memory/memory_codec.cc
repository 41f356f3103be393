#include "memory_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "creto/common/json.h"

namespace creto::memory {
namespace {

constexpr std::array type_names{"observation", "reasoning", "conversation", "tool_result", "context", "long_term"};

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Result<> check_text(std::string_view name, std::string_view text) {
  if (text.empty() || text.size() > 64 * 1024 || !is_valid_utf8(text)) {
    return invalid(fmt::format("`{}` must be 1 byte to 64 KiB of UTF-8", name));
  }
  return {};
}

}  // namespace

std::string_view to_string(MemoryType type) { return type_names[static_cast<std::size_t>(type)]; }

Result<MemoryType> memory_type_from_string(std::string_view text) {
  const auto found = std::ranges::find(type_names, text);
  if (found == type_names.end()) return invalid(fmt::format("`{}` is not a type of memory", text.substr(0, 64)));
  return static_cast<MemoryType>(found - type_names.begin());
}

Result<> check(const NewEntry& entry, const Embedder& embedder) {
  CRETO_TRY(check_text("content", entry.content));
  if (entry.metadata.size() > 64) return invalid("`metadata` has more than 64 entries");
  for (const auto& [key, value] : entry.metadata) {
    if (key.empty() || key.size() > 128 || value.size() > 4096 || !is_valid_utf8(key) || !is_valid_utf8(value)) {
      return invalid("`metadata` must hold keys of 1 to 128 bytes and values of at most 4 KiB, in UTF-8");
    }
  }
  if (entry.ttl && (*entry.ttl <= Nanos::zero() || *entry.ttl > std::chrono::days(36'500))) {
    return invalid("`ttl` must be over 0 and at most 100 years");
  }
  if (!entry.embedding.empty()) {
    if (entry.embedding.size() != embedder.dimension()) {
      return invalid(
          fmt::format("`embedding` must have the {} dimensions of `{}`", embedder.dimension(), embedder.model()));
    }
    if (!std::ranges::all_of(entry.embedding, [](float x) { return std::isfinite(x) && std::abs(x) < 1e6F; })) {
      return invalid("`embedding` holds something that is no sensible number");
    }
  }
  return {};
}

Result<> check(const Query& query) {
  CRETO_TRY(check_text("query", query.text));
  if (query.limit == 0 || query.limit > 100) return invalid("`limit` must be 1 to 100");
  if (query.relevance_threshold && !(*query.relevance_threshold >= 0 && *query.relevance_threshold <= 1)) {
    return invalid("`relevance_threshold` must be 0 to 1");
  }
  if (query.from && query.to && *query.from >= *query.to) return invalid("`time_range` ends before it begins");
  return {};
}

}  // namespace creto::memory
