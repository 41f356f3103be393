#include "creto/common/bytes.h"

#include <gtest/gtest.h>

#include <random>

#include "creto/common/secret.h"

namespace creto {
namespace {

TEST(Base64, RoundTripsEveryLength) {
  std::mt19937 random(7);
  for (std::size_t length = 0; length < 100; ++length) {
    Bytes bytes(length);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    EXPECT_EQ(from_base64(base64(bytes)).value(), bytes);
    EXPECT_EQ(from_base64url(base64url(bytes)).value(), bytes);
    EXPECT_EQ(from_hex(hex(bytes)).value(), bytes);
    EXPECT_EQ(from_base58(base58(bytes)).value(), bytes);
  }
}

TEST(Base64, HasOneSpellingPerValue) {
  for (const char* text : {"QQ", "QQ=", "QR==", "Q===", "=QQ=", "QQ==QQ==", "Q Q=", "QQ=\n"})
    EXPECT_FALSE(from_base64(text)) << text;
  EXPECT_FALSE(from_base64url("QR"));
  EXPECT_FALSE(from_base64url("QQ=="));
}

TEST(Base58, RefusesWhatWouldTakeQuadraticTime) {
  EXPECT_EQ(from_base58(std::string(257, 'z')).error().kind(), ErrorKind::invalid_input);
  EXPECT_FALSE(from_base58("0OIl"));
}

TEST(Utf8, RefusesOverlongSurrogateAndTruncatedForms) {
  EXPECT_TRUE(is_valid_utf8("gr\xC3\xBC\xC3\x9F \xF0\x9F\x99\x82"));
  for (const char* text : {"\xC0\x80", "\xED\xA0\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\x80", "\xE0\x80\x80"})
    EXPECT_FALSE(is_valid_utf8(text));
}

TEST(Legible, IsUtf8WithoutNulAndEndsWithAWholeCharacter) {
  EXPECT_EQ(legible("gr\xC3\xBC\xC3\x9F"), "gr\xC3\xBC\xC3\x9F");
  EXPECT_EQ(legible("gr\xC3\xBC\xC3\x9F", 5), "gr\xC3\xBC");
  EXPECT_EQ(legible(std::string_view("a\0b", 3)),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(legible("a\xFF", 3), "a");
  EXPECT_EQ(legible("a\xFF\xE2\x82"), "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(ConstantTimeCompare, AgreesWithEquality) {
  EXPECT_TRUE(equal_constant_time(as_bytes("abc"), as_bytes("abc")));
  EXPECT_FALSE(equal_constant_time(as_bytes("abc"), as_bytes("abd")));
  EXPECT_FALSE(equal_constant_time(as_bytes("abc"), as_bytes("ab")));
}

TEST(Secret, IsEmptyAfterAMove) {
  Secret first = Secret::copy_of("hunter2");
  const Secret second = std::move(first);
  EXPECT_TRUE(first.empty());  // NOLINT: what a move leaves behind is the claim
  EXPECT_EQ(second.reveal_text(), "hunter2");
}

}  // namespace
}  // namespace creto
