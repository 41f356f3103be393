#include "vectors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace creto::memory {
namespace {

float similarity(std::string_view a, std::string_view b) { return dot(hash_embedding(a), hash_embedding(b)); }

TEST(Vectors, TheDotProductIsTheSumOfProductsAtEveryLength) {
  for (const std::size_t size : std::initializer_list<std::size_t>{0, 1, 7, 8, 9, 16, 384, 1536}) {
    std::vector<float> a(size);
    std::vector<float> b(size);
    double expected = 0;
    for (std::size_t i = 0; i < size; ++i) {
      a[i] = static_cast<float>(i % 13) - 6;
      b[i] = static_cast<float>(i % 7) / 4;
      expected += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    }
    EXPECT_NEAR(dot(a, b), expected, 1e-2) << size;
  }
}

TEST(Vectors, EncodeAndDecodeAreInverse) {
  const std::vector<float> vector{1.5F, -0.25F, 0.0F};
  EXPECT_EQ(*decode_vector(encode_vector(vector), 3), vector);
  EXPECT_FALSE(decode_vector(encode_vector(vector), 4));
  EXPECT_EQ(*decode_vector(encode_vector({}), 0), std::vector<float>());
  EXPECT_FALSE(decode_vector(encode_vector(std::vector{std::numeric_limits<float>::quiet_NaN()}), 1));
}

TEST(HashEmbedding, IsOfUnitLengthAndTheSameEveryTime) {
  const auto vector = hash_embedding("The agent paid invoice HOS-2291");
  EXPECT_EQ(vector.size(), 384u);
  EXPECT_NEAR(dot(vector, vector), 1, 1e-5);
  EXPECT_EQ(vector, hash_embedding("The agent paid invoice HOS-2291"));
}

// Stored vectors outlive the program: another value here means another model name.
TEST(HashEmbedding, StaysTheModelThatItsNameSays) {
  const auto vector = hash_embedding("invoice");
  std::string places;
  for (std::size_t i = 0; i < vector.size(); ++i) {
    if (vector[i] != 0) places += std::to_string(i) + (vector[i] > 0 ? "+ " : "- ");
  }
  EXPECT_EQ(places, "105- 173+ 178+ 185- 326+ 336+ 366- 370+ ");
}

TEST(HashEmbedding, FindsTextsThatShareWordsMoreAlikeThanOthers) {
  const std::string_view about = "pay 25000 USD to Rackdale Hardware for servers";
  EXPECT_GT(similarity(about, "Rackdale Hardware sells servers; the invoice is in order"), 0.25F);
  EXPECT_LT(similarity(about, "lunch for the autumn party was booked"), 0.2F);
  EXPECT_GT(similarity(about, "PAY 25000 usd TO rackdale-hardware, for servers!"), 0.99F);
  EXPECT_GT(similarity("payment approved", "payments approve"), similarity("payment approved", "garden hedges"));
}

TEST(HashEmbedding, OfNothingIsNothing) {
  for (const auto* text : {"", "   ", "the of and", "!?;"}) EXPECT_EQ(similarity(text, text), 0) << text;
}

}  // namespace
}  // namespace creto::memory
