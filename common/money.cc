#include "creto/common/money.h"

#include <fmt/format.h>
#include <mpdecimal.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "creto/common/assert.h"

namespace creto {
namespace {

__extension__ typedef unsigned __int128 Unsigned128;

constexpr int digits_max = 38;
constexpr int exponent_max = 28;
constexpr std::uint64_t word_radix = 10'000'000'000'000'000'000ULL;  // 10^19: one mpdecimal word

Error out_of_range(std::string_view operation) {
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("decimal {}: the exact result does not fit into 38 digits and 28 places", operation));
}

mpd_context_t exact_context() {
  mpd_context_t context;
  mpd_maxcontext(&context);
  context.prec = digits_max;
  context.traps = 0;
  context.round = MPD_ROUND_HALF_EVEN;
  return context;
}

/// An mpd_t in automatic memory with room for every intermediate of 38-digit operands.
struct Mpd {
  mpd_uint_t words[16] = {};
  mpd_t value{MPD_STATIC | MPD_STATIC_DATA, 0, 0, 0, 16, words};
  ~Mpd() { mpd_del(&value); }
  Mpd() = default;
  Mpd(const Mpd&) = delete;
  Mpd& operator=(const Mpd&) = delete;
};

}  // namespace

struct DecimalAccess {
  static void load(const Decimal& from, Mpd& to) {
    const bool negative = from.coefficient_ < 0;
    const auto magnitude =
        negative ? 0 - static_cast<Unsigned128>(from.coefficient_) : static_cast<Unsigned128>(from.coefficient_);
    to.words[0] = static_cast<mpd_uint_t>(magnitude % word_radix);
    to.words[1] = static_cast<mpd_uint_t>(magnitude / word_radix);
    to.value.len = to.words[1] != 0 ? 2 : 1;
    to.value.exp = from.exponent_;
    mpd_set_flags(&to.value, static_cast<std::uint8_t>(negative ? MPD_NEG : MPD_POS));
    mpd_setdigits(&to.value);
  }

  static Result<Decimal> store(const Mpd& from, std::string_view operation) {
    if (mpd_isspecial(&from.value)) return out_of_range(operation);
    if (mpd_iszero(&from.value)) return Decimal();
    if (from.value.digits > digits_max) return out_of_range(operation);
    Unsigned128 magnitude = from.value.data[0];
    if (from.value.len > 1) magnitude += static_cast<Unsigned128>(from.value.data[1]) * word_radix;
    auto exponent = from.value.exp;
    while (magnitude % 10 == 0) {
      magnitude /= 10;
      ++exponent;
    }
    if (exponent < -exponent_max || exponent > exponent_max) return out_of_range(operation);
    const auto coefficient = static_cast<Decimal::Int128>(magnitude);
    return Decimal(mpd_isnegative(&from.value) ? -coefficient : coefficient, static_cast<int>(exponent));
  }

  template <class Operation>
  static Result<Decimal> exactly(const Decimal& a, const Decimal& b, std::string_view name, Operation operation) {
    Mpd x, y, result;
    load(a, x);
    load(b, y);
    const mpd_context_t context = exact_context();
    std::uint32_t status = 0;
    operation(&result.value, &x.value, &y.value, &context, &status);
    if ((status & (MPD_Inexact | MPD_IEEE_Invalid_operation | MPD_Overflow | MPD_Underflow)) != 0)
      return out_of_range(name);
    return store(result, name);
  }
};

Decimal::Decimal(std::int64_t value) : coefficient_(value) {
  while (coefficient_ != 0 && coefficient_ % 10 == 0) {
    coefficient_ /= 10;
    ++exponent_;
  }
}

Result<Decimal> Decimal::parse(std::string_view text) {
  const auto malformed = [&] {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("decimal `{}`: must be a number of at most 38 digits", text.substr(0, 64)));
  };
  if (text.empty() || text.size() > 80) return malformed();
  bool any_digit = false;
  for (std::size_t i = 0; i < text.size(); ++i) {  // mpdecimal would also read "inf", "nan" and a leading plus
    const char c = text[i];
    if (c >= '0' && c <= '9')
      any_digit = true;
    else if (!(c == '.' || ((c == 'e' || c == 'E') && any_digit) ||
               (c == '-' && (i == 0 || text[i - 1] == 'e' || text[i - 1] == 'E')) ||
               (c == '+' && i > 0 && (text[i - 1] == 'e' || text[i - 1] == 'E'))))
      return malformed();
  }
  if (!any_digit) return malformed();
  Mpd value;
  const mpd_context_t context = exact_context();
  std::uint32_t status = 0;
  mpd_qset_string(&value.value, std::string(text).c_str(), &context, &status);
  if (status & (MPD_Inexact | MPD_Conversion_syntax | MPD_IEEE_Invalid_operation | MPD_Overflow | MPD_Underflow))
    return malformed();
  auto result = DecimalAccess::store(value, "literal");
  if (!result) return malformed();
  return result;
}

Decimal Decimal::literal(std::string_view text) {
  Result<Decimal> value = parse(text);
  CRETO_ASSERT(value.has_value());
  return *value;
}

std::string Decimal::to_string() const {
  if (coefficient_ == 0) return "0";
  auto magnitude =
      coefficient_ < 0 ? 0 - static_cast<Unsigned128>(coefficient_) : static_cast<Unsigned128>(coefficient_);
  std::string digits;
  for (; magnitude > 0; magnitude /= 10)
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(magnitude % 10)));
  if (exponent_ >= 0) {
    digits.append(static_cast<std::size_t>(exponent_), '0');
  } else {
    const auto places = static_cast<std::size_t>(-exponent_);
    if (digits.size() <= places) digits.insert(0, places + 1 - digits.size(), '0');
    digits.insert(digits.size() - places, ".");
  }
  return coefficient_ < 0 ? "-" + digits : digits;
}

std::string Decimal::to_fixed(int places) const {
  CRETO_ASSERT(places >= 0 && places <= exponent_max);
  const Result<Decimal> rounded = round(places, Rounding::half_up);
  CRETO_ASSERT(rounded.has_value());
  std::string text = rounded->to_string();
  const auto point = text.find('.');
  const std::size_t have = point == std::string::npos ? 0 : text.size() - point - 1;
  if (places > 0 && point == std::string::npos) text += '.';
  return text.append(static_cast<std::size_t>(places) - have, '0');
}

Result<Decimal> Decimal::add(const Decimal& a, const Decimal& b) {
  return DecimalAccess::exactly(a, b, "sum", mpd_qadd);
}
Result<Decimal> Decimal::subtract(const Decimal& a, const Decimal& b) {
  return DecimalAccess::exactly(a, b, "difference", mpd_qsub);
}
Result<Decimal> Decimal::multiply(const Decimal& a, const Decimal& b) {
  return DecimalAccess::exactly(a, b, "product", mpd_qmul);
}

Result<Decimal> Decimal::divide(const Decimal& a, const Decimal& b) {
  if (b.is_zero()) return Error(Product::platform, ErrorKind::invalid_input, "decimal quotient: division by zero");
  Mpd x, y, result;
  DecimalAccess::load(a, x);
  DecimalAccess::load(b, y);
  const mpd_context_t context = exact_context();
  std::uint32_t status = 0;
  mpd_qdiv(&result.value, &x.value, &y.value, &context, &status);
  if (status & (MPD_IEEE_Invalid_operation | MPD_Overflow | MPD_Underflow)) return out_of_range("quotient");
  if (result.value.exp < -exponent_max) {
    mpd_context_t wide;
    mpd_maxcontext(&wide);
    wide.traps = 0;
    wide.round = MPD_ROUND_HALF_EVEN;
    Mpd rescaled;
    mpd_qrescale(&rescaled.value, &result.value, -exponent_max, &wide, &status);
    return DecimalAccess::store(rescaled, "quotient");
  }
  return DecimalAccess::store(result, "quotient");
}

Result<Decimal> Decimal::round(int places, Rounding rounding) const {
  if (places < 0 || places > exponent_max) return out_of_range("rounding");
  if (exponent_ >= -places) return *this;
  Mpd x, result;
  DecimalAccess::load(*this, x);
  mpd_context_t context;
  mpd_maxcontext(&context);
  context.traps = 0;
  switch (rounding) {
    case Rounding::half_up:
      context.round = MPD_ROUND_HALF_UP;
      break;
    case Rounding::half_even:
      context.round = MPD_ROUND_HALF_EVEN;
      break;
    case Rounding::up:
      context.round = MPD_ROUND_UP;
      break;
    case Rounding::down:
      context.round = MPD_ROUND_DOWN;
      break;
  }
  std::uint32_t status = 0;
  mpd_qrescale(&result.value, &x.value, -places, &context, &status);
  return DecimalAccess::store(result, "rounding");
}

Decimal Decimal::negated() const { return Decimal(-coefficient_, exponent_); }

Result<std::int64_t> Decimal::to_integer() const {
  const auto refuse = [&] {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("decimal `{}`: must be a 64-bit integer", to_string()));
  };
  if (exponent_ < 0) return refuse();
  Int128 value = coefficient_;
  for (int i = 0; i < exponent_; ++i)
    if (__builtin_mul_overflow(value, static_cast<Int128>(10), &value)) return refuse();
  if (value > INT64_MAX || value < INT64_MIN) return refuse();
  return static_cast<std::int64_t>(value);
}

double Decimal::approximate() const { return std::strtod(to_string().c_str(), nullptr); }

std::strong_ordering operator<=>(const Decimal& a, const Decimal& b) {
  Mpd x, y;
  DecimalAccess::load(a, x);
  DecimalAccess::load(b, y);
  std::uint32_t status = 0;
  return mpd_qcmp(&x.value, &y.value, &status) <=> 0;
}

Result<Currency> Currency::parse(std::string_view code) {
  const bool well_formed = code.size() == 3 && std::ranges::all_of(code, [](char c) { return c >= 'A' && c <= 'Z'; });
  if (!well_formed)
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("currency `{}`: must be three capital letters (ISO 4217)", code.substr(0, 16)));
  // ISO 4217: minor units other than two.
  static constexpr std::string_view none[] = {"BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW",
                                              "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"};
  static constexpr std::string_view three[] = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"};
  const int places = std::ranges::find(none, code) != std::end(none)     ? 0
                     : std::ranges::find(three, code) != std::end(three) ? 3
                                                                         : 2;
  return Currency(std::string(code), places);
}

Currency Currency::usd() { return Currency("USD", 2); }

namespace {
Result<> same_currency(const Money& a, const Money& b) {
  if (a.currency == b.currency) return {};
  return Error(Product::platform, ErrorKind::invalid_input,
               fmt::format("money: `{}` and `{}` do not mix", a.currency.code(), b.currency.code()));
}
}  // namespace

Result<Money> Money::add(const Money& a, const Money& b) {
  CRETO_TRY(same_currency(a, b));
  const Decimal sum = CRETO_TRY(Decimal::add(a.amount, b.amount));
  return Money{sum, a.currency};
}

Result<Money> Money::subtract(const Money& a, const Money& b) {
  CRETO_TRY(same_currency(a, b));
  const Decimal difference = CRETO_TRY(Decimal::subtract(a.amount, b.amount));
  return Money{difference, a.currency};
}

Result<Money> Money::rounded() const {
  const Decimal value = CRETO_TRY(amount.round(currency.places(), Decimal::Rounding::half_up));
  return Money{value, currency};
}

std::string Money::to_string() const { return amount.to_fixed(currency.places()) + " " + currency.code(); }

}  // namespace creto
