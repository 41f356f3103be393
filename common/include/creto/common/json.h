#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "creto/common/bytes.h"

namespace creto {

/// JSON values are nlohmann's; only .cc files that build or read them include its full header.
using Json = nlohmann::json;

struct JsonLimits {
  std::size_t bytes_max = 1 << 20;
  std::size_t depth_max = 64;
};

/// Errors: invalid_input with line and column; too_large over a limit. Duplicate keys and invalid UTF-8 are refused.
Result<Json> parse_json(std::string_view text, JsonLimits limits = {});

/// RFC 8785 (JCS): the bytes that are signed, which read back as a value with the same canonical form. Integers that a
/// double may not hold, beyond 2^53, must already be strings (architecture, "Bytes").
/// Errors: invalid_input for NaN, infinities, lone surrogates and integers that a double does not hold.
Result<std::string> canonical_json(const Json& value);

/// An object whose members are all texts, as labels and metadata are kept.
Result<std::string> texts_to_json(const std::map<std::string, std::string>& texts);  ///< canonical
Result<std::map<std::string, std::string>> texts_from_json(std::string_view text);

/// Reads the members of one object and reports every mistake by its path: "plan.charges[2].price: must be a string".
/// `finish()` refuses members nobody asked for. Keeps the first error; getters then return their default.
class JsonReader {
 public:
  JsonReader(const Json& object, std::string path);
  ~JsonReader();

  std::string text(std::string_view key);  ///< required
  std::string text_or(std::string_view key, std::string_view otherwise);
  std::int64_t integer(std::string_view key);  ///< a number, or its decimal string
  std::int64_t integer_or(std::string_view key, std::int64_t otherwise);
  bool boolean_or(std::string_view key, bool otherwise);
  /// The member as it is; null where absent.
  const Json& any(std::string_view key);
  const Json& array(std::string_view key);   ///< empty array where absent
  const Json& object(std::string_view key);  ///< empty object where absent

  /// "path.key: `rule`", for checks the caller makes itself.
  void refuse(std::string_view key, std::string_view rule);
  Result<> finish();

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};

}  // namespace creto
