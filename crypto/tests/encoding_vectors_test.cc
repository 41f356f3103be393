// The encodings are common's; their published vectors are read here, beside all the others.
#include <filesystem>
#include <sstream>
#include <string>

#include "creto/common/bytes.h"
#include "creto/common/json.h"
#include "testing/vectors.h"

namespace creto {
namespace {

using testing::read_vector;
using testing::unhex;
using testing::vector_json;

TEST(Base58Vectors, AgreesWithBitcoin) {
  CRETO_NEEDS_VECTORS();
  const auto file = vector_json("base58/encode_decode.json");
  for (const char* const list : {"valid", "valid_computed_here"}) {
    for (const auto& test : file.at(list)) {
      const auto text = test.at("base58").get<std::string>();
      EXPECT_EQ(base58(unhex(test, "hex")), text);
      const auto decoded = from_base58(text);
      if (text.size() > 256) {
        EXPECT_FALSE(decoded) << "over our limit";
      } else {
        ASSERT_TRUE(decoded) << text;
        EXPECT_EQ(*decoded, unhex(test, "hex"));
      }
    }
  }
  for (const auto& text : file.at("invalid")) EXPECT_FALSE(from_base58(text.get<std::string>())) << text;
}

TEST(Base58Vectors, KeepsLeadingZeros) {
  CRETO_NEEDS_VECTORS();
  const std::string phrase = "yes mani !";
  int zeros = 0;
  for (const char* const file :
       {"multibase_basic.csv", "multibase_leading_zero.csv", "multibase_two_leading_zeros.csv"}) {
    const std::string plain = std::string(static_cast<std::size_t>(zeros++), '\0') + phrase;
    std::istringstream lines(read_vector(std::string("base58/") + file));
    bool seen = false;
    for (std::string line; std::getline(lines, line);) {
      const std::string start = "base58btc, \"z";
      if (!line.starts_with(start)) continue;
      seen = true;
      const std::string text = line.substr(start.size(), line.rfind('"') - start.size());
      EXPECT_EQ(base58(as_bytes(plain)), text);
      EXPECT_EQ(*from_base58(text), to_bytes(plain));
    }
    EXPECT_TRUE(seen) << file;
  }
}

TEST(CanonicalJsonVectors, AgreesWithRfc8785) {
  CRETO_NEEDS_VECTORS();
  int checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(testing::vectors() / "jcs/input")) {
    const std::string name = entry.path().stem().string();
    const auto value = parse_json(read_vector("jcs/input/" + name + ".json"));
    ASSERT_TRUE(value) << name;
    const auto text = canonical_json(*value);
    ASSERT_TRUE(text) << name << ": " << text.error().to_string();
    EXPECT_EQ(*text, read_vector("jcs/output/" + name + ".json")) << name;
    std::string bytes;
    for (const char c : read_vector("jcs/outhex/" + name + ".txt")) {
      if (std::isxdigit(static_cast<unsigned char>(c))) bytes += c;
    }
    EXPECT_EQ(hex(as_bytes(*text)), bytes) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 6);
}

}  // namespace
}  // namespace creto
