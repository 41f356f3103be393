#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "creto/common/bytes.h"

namespace creto::testing {

/// The published test vectors: $CRETO_VECTORS, or shared/vectors beside the repository. Empty where there are none.
inline std::filesystem::path vectors() {
  if (const char* const named = std::getenv("CRETO_VECTORS")) return named;
  for (auto at = std::filesystem::current_path(); at.has_relative_path(); at = at.parent_path()) {
    const auto beside = at.parent_path() / "shared" / "vectors";
    if (std::filesystem::is_directory(beside)) return beside;
  }
  return {};
}

inline std::string read_vector(const std::string& name) {
  std::ifstream file(vectors() / name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Lives to the end of the process, so that a loop may run over a part of it.
inline const nlohmann::json& vector_json(const std::string& name) {
  static std::map<std::string, nlohmann::json> read;
  auto [at, fresh] = read.try_emplace(name);
  if (fresh) at->second = nlohmann::json::parse(read_vector(name));
  return at->second;
}

inline Bytes unhex(const std::string& text) {
  auto bytes = from_hex(text);
  EXPECT_TRUE(bytes) << text.substr(0, 40);
  return bytes ? *std::move(bytes) : Bytes();
}

inline bool has(const nlohmann::json& object, const char* key) {
  return object.contains(key) && !object.at(key).is_null();
}

/// Empty where the member is absent or null.
inline Bytes unhex(const nlohmann::json& object, const char* key) {
  return has(object, key) ? unhex(object.at(key).get<std::string>()) : Bytes();
}

}  // namespace creto::testing

/// First in every test that needs them.
#define CRETO_NEEDS_VECTORS()                      \
  if (::creto::testing::vectors().empty()) {       \
    GTEST_SKIP() << "$CRETO_VECTORS is not there"; \
  }
