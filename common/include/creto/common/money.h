#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "creto/common/result.h"

namespace creto {

/// An exact decimal number (mpdecimal, 38 significant digits). Arithmetic that would have to round fails instead,
/// except where a rounding is named. Value type, no allocation for values of up to 38 digits.
class Decimal {
 public:
  Decimal() = default;  ///< zero
  explicit Decimal(std::int64_t value);
  /// "-12.345", "1e-6"; up to 38 digits, exponent within ±28.
  static Result<Decimal> parse(std::string_view text);
  /// Requires: `text` is a valid literal; for constants in code.
  static Decimal literal(std::string_view text);

  /// Plain notation, no exponent, no trailing zeros after the point: "12.5", "0", "-0.00001".
  std::string to_string() const;
  /// Exactly `places` digits after the point, rounded half up.
  std::string to_fixed(int places) const;

  bool is_zero() const { return coefficient_ == 0; }
  bool is_negative() const { return coefficient_ < 0; }

  /// Errors: invalid_input where the exact result does not fit.
  static Result<Decimal> add(const Decimal& a, const Decimal& b);
  static Result<Decimal> subtract(const Decimal& a, const Decimal& b);
  static Result<Decimal> multiply(const Decimal& a, const Decimal& b);
  /// Rounded half even to 28 places: for proration factors, then multiplied and rounded once.
  static Result<Decimal> divide(const Decimal& a, const Decimal& b);
  enum class Rounding { half_up, half_even, up, down };
  Result<Decimal> round(int places, Rounding rounding) const;
  Decimal negated() const;

  /// Errors: invalid_input where there is a fraction or it does not fit.
  Result<std::int64_t> to_integer() const;
  /// For reports and thresholds shown to people; never feed it back.
  double approximate() const;

  friend std::strong_ordering operator<=>(const Decimal& a, const Decimal& b);
  friend bool operator==(const Decimal& a, const Decimal& b) { return (a <=> b) == 0; }

 private:
  __extension__ typedef __int128 Int128;
  Decimal(Int128 coefficient, int exponent) : coefficient_(coefficient), exponent_(exponent) {}
  friend struct DecimalAccess;
  Int128 coefficient_ = 0;  ///< value = coefficient * 10^exponent; |coefficient| < 10^38
  int exponent_ = 0;        ///< -28..28; normalised: no trailing zeros, zero has exponent 0
};

/// ISO 4217 code of three capitals; knows how many places the currency has.
class Currency {
 public:
  static Result<Currency> parse(std::string_view code);
  static Currency usd();
  const std::string& code() const { return code_; }
  int places() const { return places_; }  ///< 2 for most, 0 for JPY, 3 for KWD
  friend bool operator==(const Currency& a, const Currency& b) { return a.code_ == b.code_; }

 private:
  Currency(std::string code, int places) : code_(std::move(code)), places_(places) {}
  std::string code_;
  int places_;
};

/// An amount in a currency. Rates (price per unit) are plain Decimals: other type, other places.
struct Money {
  Decimal amount;
  Currency currency = Currency::usd();

  /// Errors: invalid_input on different currencies or overflow.
  static Result<Money> add(const Money& a, const Money& b);
  static Result<Money> subtract(const Money& a, const Money& b);
  /// The one rounding where a fee is made: half up to the currency's places.
  Result<Money> rounded() const;
  std::string to_string() const;  ///< "12.50 USD"
  friend bool operator==(const Money&, const Money&) = default;
};

}  // namespace creto
