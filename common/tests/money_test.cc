#include "creto/common/money.h"

#include <gtest/gtest.h>

#include <random>

namespace creto {
namespace {

Decimal d(const char* text) { return Decimal::literal(text); }

TEST(Decimal, KeepsWhatABinaryFractionLoses) {
  EXPECT_EQ(Decimal::add(d("0.1"), d("0.2")).value(), d("0.3"));
  EXPECT_EQ(Decimal::multiply(d("1.15"), d("100")).value().to_string(), "115");
  EXPECT_EQ(d("1e-6").to_string(), "0.000001");
  EXPECT_EQ(d("1200").to_string(), "1200");
  EXPECT_EQ(d("-0.50").to_string(), "-0.5");
  EXPECT_EQ(d("2.5").to_fixed(2), "2.50");
}

TEST(Decimal, FailsRatherThanRounds) {
  const Decimal big = d("99999999999999999999999999999999999999");
  EXPECT_FALSE(Decimal::add(big, d("1")));
  EXPECT_TRUE(Decimal::subtract(big, d("1")));
  EXPECT_FALSE(Decimal::multiply(d("1e-28"), d("0.1")));
  EXPECT_FALSE(Decimal::divide(d("1"), d("0")));
  EXPECT_EQ(Decimal::divide(d("1"), d("3")).value().to_string(), "0.3333333333333333333333333333");
}

TEST(Decimal, RoundsAsNamed) {
  EXPECT_EQ(d("2.345").round(2, Decimal::Rounding::half_up).value(), d("2.35"));
  EXPECT_EQ(d("2.345").round(2, Decimal::Rounding::half_even).value(), d("2.34"));
  EXPECT_EQ(d("-2.345").round(2, Decimal::Rounding::half_up).value(), d("-2.35"));
  EXPECT_EQ(d("2.341").round(2, Decimal::Rounding::up).value(), d("2.35"));
  EXPECT_EQ(d("2.349").round(2, Decimal::Rounding::down).value(), d("2.34"));
}

TEST(Decimal, RefusesWhatIsNoNumber) {
  for (const char* text : {"", "nan", "inf", "-", ".", "1e", "1e99", "0x1", " 1", "1 ", "+1", "1.2.3", "--1",
                           "100000000000000000000000000000000000001.5"})
    EXPECT_FALSE(Decimal::parse(text)) << text;
}

TEST(Decimal, AgreesWithIntegerArithmetic) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 10'000; ++i) {
    const auto a = static_cast<std::int64_t>(random()) >> 34;
    const auto b = static_cast<std::int64_t>(random()) >> 34;
    EXPECT_EQ(Decimal::add(Decimal(a), Decimal(b)).value().to_integer().value(), a + b);
    EXPECT_EQ(Decimal::multiply(Decimal(a), Decimal(b)).value().to_integer().value(), a * b);
    EXPECT_EQ(Decimal(a) < Decimal(b), a < b);
    EXPECT_EQ(Decimal::parse(Decimal(a).to_string()).value(), Decimal(a));
  }
}

TEST(Money, DoesNotMixCurrencies) {
  const Money dollars{d("1"), Currency::usd()};
  const Money yen{d("1"), Currency::parse("JPY").value()};
  EXPECT_FALSE(Money::add(dollars, yen));
  EXPECT_EQ((Money{d("1.005"), Currency::usd()}.rounded().value().to_string()), "1.01 USD");
  EXPECT_EQ((Money{d("1.5"), yen.currency}.rounded().value().to_string()), "2 JPY");
  EXPECT_FALSE(Currency::parse("usd"));
}

}  // namespace
}  // namespace creto
