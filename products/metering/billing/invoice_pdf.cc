#include <fmt/format.h>
#include <hpdf.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include "billing/invoicing.h"
#include "creto/common/time_zone.h"

namespace creto::metering {
namespace {

constexpr float page_width = 595.28f;  // A4 in points
constexpr float page_height = 841.89f;
constexpr float margin = 56;
constexpr float right = page_width - margin;
constexpr float row_height = 24;
constexpr const char* regular_file = "DejaVuSans.ttf";
constexpr const char* bold_file = "DejaVuSans-Bold.ttf";

struct Colour {
  float r, g, b;
};
constexpr Colour ink{0.13f, 0.15f, 0.19f};
constexpr Colour grey{0.45f, 0.48f, 0.53f};
constexpr Colour rule{0.85f, 0.87f, 0.90f};
constexpr Colour band{0.955f, 0.962f, 0.972f};
constexpr Colour accent{0.09f, 0.36f, 0.52f};

/// Thrown out of the library's error callback, which must not return; never leaves this file.
struct PdfFailure {
  HPDF_STATUS code;
};
void on_error(HPDF_STATUS code, HPDF_STATUS, void*) { throw PdfFailure{code}; }

/// Calls `visit` with each character: its bytes, and whether Latin-1 has it.
template <class Visit>
void each_character(std::string_view utf8, Visit visit) {
  for (std::size_t i = 0; i < utf8.size();) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    const std::size_t length = std::min<std::size_t>(lead < 0x80   ? 1
                                                     : lead < 0xE0 ? 2
                                                     : lead < 0xF0 ? 3
                                                                   : 4,
                                                     utf8.size() - i);
    const bool ascii = lead >= 0x20 && lead < 0x7F;
    const bool upper = length == 2 && (lead == 0xC2 || lead == 0xC3) &&
                       !(lead == 0xC2 && static_cast<unsigned char>(utf8[i + 1]) < 0xA0);
    visit(utf8.substr(i, length), ascii || upper);
    i += length;
  }
}

/// For the base fonts, which know Latin-1; what they do not know becomes a question mark, never a wrong letter.
std::string latin1(std::string_view utf8) {
  std::string text;
  each_character(utf8, [&](std::string_view bytes, bool has) {
    if (!has) {
      text += '?';
    } else if (bytes.size() == 1) {
      text += bytes;
    } else {
      text += static_cast<char>((static_cast<unsigned char>(bytes[0]) & 3) << 6 |
                                (static_cast<unsigned char>(bytes[1]) & 0x3F));
    }
  });
  return text;
}

/// For a font of Unicode's first plane, which is all that the library reads.
std::string first_plane(std::string_view utf8) {
  std::string text;
  each_character(utf8, [&](std::string_view bytes, bool has) {
    const auto lead = static_cast<unsigned char>(bytes[0]);
    const bool control = bytes.size() == 1 ? !has : lead == 0xC2 && !has;
    text += control || bytes.size() > 3 ? std::string_view("?") : bytes;
  });
  return text;
}

/// Whether some text of the invoice needs more than Latin-1.
bool needs_unicode(const Invoice& invoice) {
  bool needs = false;
  const auto look = [&](std::string_view text) {
    each_character(text, [&](std::string_view bytes, bool has) { needs = needs || (!has && bytes.size() > 1); });
  };
  for (const BillingParty* party : {&invoice.issuer, &invoice.customer}) {
    for (const std::string* text : {&party->name, &party->tax_id, &party->email}) look(*text);
    for (const std::string& line : party->address) look(line);
    for (const std::string& line : party->payment) look(line);
  }
  look(invoice.agent);
  look(invoice.plan_name);
  for (const InvoiceLine& line : invoice.lines) {
    look(line.description);
    look(line.group);
  }
  for (const InvoiceEntry& entry : invoice.entries) look(entry.description);
  return needs;
}

/// "1,234,567.5"
std::string grouped(std::string number) {
  const auto point = number.find('.');
  auto at = static_cast<std::ptrdiff_t>(point == std::string::npos ? number.size() : point) - 3;
  const std::ptrdiff_t first = number.starts_with('-') ? 1 : 0;
  for (; at > first; at -= 3) number.insert(static_cast<std::size_t>(at), ",");
  return number;
}

std::string date(std::chrono::local_days local) {
  const std::chrono::year_month_day day(local);
  static constexpr std::array<std::string_view, 12> months = {"January",   "February", "March",    "April",
                                                              "May",       "June",     "July",     "August",
                                                              "September", "October",  "November", "December"};
  return fmt::format("{} {} {}", static_cast<unsigned>(day.day()), months[static_cast<unsigned>(day.month()) - 1],
                     static_cast<int>(day.year()));
}
/// Midnight ends a period with the day before; any other moment is told to the minute. In the account's time.
std::string period_text(Period period, const TimeZone& zone) {
  const auto short_date = [](std::chrono::local_days day) {
    std::string text = date(day);
    const auto month = text.find(' ') + 1;
    return text.substr(0, month + 3) + text.substr(text.find(' ', month));
  };
  const auto moment = [&](Instant at) {
    const auto day = zone.day_of(at);
    if (zone.day_begin(day) == at) return short_date(day);
    const auto minutes = std::chrono::floor<std::chrono::minutes>(zone.local(at) - day).count();
    return fmt::format("{}, {:02}:{:02}", short_date(day), minutes / 60, minutes % 60);
  };
  const bool midnight = zone.day_begin(zone.day_of(period.end)) == period.end;
  return fmt::format("{} to {}", moment(period.begin),
                     midnight ? short_date(zone.day_of(period.end - Nanos(1))) : moment(period.end));
}
/// A zone that this machine no longer knows reads as UTC, and is named so.
TimeZone zone_of(const Invoice& invoice) { return TimeZone::load(invoice.time_zone).value_or(TimeZone()); }

std::string number_of(const Invoice& invoice) {
  return invoice.number == 0 ? std::string("Draft") : invoice_number_text(invoice.number);
}

class Sheet {
 public:
  /// `unicode`: the text is set in the fonts of `fonts`, which are embedded as far as they are used.
  Sheet(const Invoice& invoice, const std::filesystem::path& fonts, bool unicode)
      : document_(HPDF_New(on_error, nullptr)), invoice_(invoice), unicode_(unicode) {
    HPDF_SetCompressionMode(document_.get(), HPDF_COMP_ALL);
    if (unicode) HPDF_UseUTFEncodings(document_.get());
    const auto font = [&](const char* base, const char* file) {
      if (!unicode) return HPDF_GetFont(document_.get(), base, "WinAnsiEncoding");
      const char* name = HPDF_LoadTTFontFromFile(document_.get(), (fonts / file).c_str(), HPDF_TRUE);
      return HPDF_GetFont(document_.get(), name, "UTF-8");
    };
    regular_ = font("Helvetica", regular_file);
    bold_ = font("Helvetica-Bold", bold_file);
    const std::string title = number_of(invoice);
    HPDF_SetInfoAttr(document_.get(), HPDF_INFO_TITLE, title.c_str());
    // The invoice's own time, so that the same invoice gives the same bytes.
    const std::chrono::year_month_day day(std::chrono::floor<std::chrono::days>(invoice.issued_at));
    HPDF_Date created{static_cast<int>(day.year()),
                      static_cast<int>(static_cast<unsigned>(day.month())),
                      static_cast<int>(static_cast<unsigned>(day.day())),
                      0,
                      0,
                      0,
                      'Z',
                      0,
                      0};
    HPDF_SetInfoDateAttr(document_.get(), HPDF_INFO_CREATION_DATE, created);
    HPDF_SetInfoDateAttr(document_.get(), HPDF_INFO_MOD_DATE, created);
    new_page();
  }

  void new_page() {
    page_ = HPDF_AddPage(document_.get());
    HPDF_Page_SetWidth(page_, page_width);
    HPDF_Page_SetHeight(page_, page_height);
    pages_.push_back(page_);
    y = page_height - margin;
  }

  float width(const std::string& text, float size, bool bold) {
    HPDF_Page_SetFontAndSize(page_, bold ? bold_ : regular_, size);
    return HPDF_Page_TextWidth(page_, text.c_str());
  }
  void text(float x, float at_y, std::string_view content, float size, Colour colour, bool bold = false) {
    draw(x, at_y, encode(content), size, colour, bold);
  }
  void text_right(float x, float at_y, std::string_view content, float size, Colour colour, bool bold = false) {
    const std::string encoded = encode(content);
    draw(x - width(encoded, size, bold), at_y, encoded, size, colour, bold);
  }
  /// Cut with an ellipsis where it is wider than `limit`.
  void text_within(float x, float at_y, std::string_view content, float size, Colour colour, float limit,
                   bool bold = false) {
    draw(x, at_y, shortened(encode(content), size, limit, bold), size, colour, bold);
  }
  void text_right_within(float x, float at_y, std::string_view content, float size, Colour colour, float limit) {
    const std::string encoded = shortened(encode(content), size, limit, false);
    draw(x - width(encoded, size, false), at_y, encoded, size, colour, false);
  }
  /// Lines no wider than `limit`, broken between words where that can be; at most `lines_max`, the last one cut.
  std::vector<std::string> wrapped(std::string_view content, float size, float limit, std::size_t lines_max) {
    std::vector<std::string> lines{""};
    const std::string encoded = encode(content);
    for (std::size_t begin = 0; begin < encoded.size();) {
      const std::size_t end = std::min(encoded.find(' ', begin), encoded.size());
      std::string word = encoded.substr(begin, end - begin);
      begin = end + 1;
      const std::string joined = lines.back().empty() ? word : lines.back() + " " + word;
      if (width(joined, size, false) <= limit) {
        lines.back() = joined;
        continue;
      }
      if (lines.size() == lines_max) {
        const std::string rest = begin < encoded.size() ? joined + " " + encoded.substr(begin) : joined;
        lines.back() = shortened(rest, size, limit, false);
        return lines;
      }
      if (!lines.back().empty()) lines.emplace_back();
      while (lines.size() < lines_max && width(word, size, false) > limit) {
        const std::size_t fits = fitting(word, size, limit);
        lines.back() = word.substr(0, fits);
        word.erase(0, fits);
        lines.emplace_back();
      }
      lines.back() = shortened(word, size, limit, false);
    }
    return lines;
  }
  void encoded_text(float x, float at_y, const std::string& line, float size, Colour colour) {
    draw(x, at_y, line, size, colour, false);
  }
  void line(float at_y, Colour colour = rule, float thickness = 0.75f) {
    HPDF_Page_SetRGBStroke(page_, colour.r, colour.g, colour.b);
    HPDF_Page_SetLineWidth(page_, thickness);
    HPDF_Page_MoveTo(page_, margin, at_y);
    HPDF_Page_LineTo(page_, right, at_y);
    HPDF_Page_Stroke(page_);
  }
  void box(float x, float at_y, float w, float h, Colour colour) {
    HPDF_Page_SetRGBFill(page_, colour.r, colour.g, colour.b);
    HPDF_Page_Rectangle(page_, x, at_y, w, h);
    HPDF_Page_Fill(page_);
  }

  Bytes finish() {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      page_ = pages_[i];
      line(margin - 10);
      text(margin, margin - 24, fmt::format("{}  ·  {}", number_of(invoice_), invoice_.id.to_string()), 7.5f, grey);
      text_right(right, margin - 24, fmt::format("Page {} of {}", i + 1, pages_.size()), 7.5f, grey);
    }
    HPDF_SaveToStream(document_.get());
    HPDF_UINT32 size = HPDF_GetStreamSize(document_.get());
    Bytes bytes(size);
    HPDF_ResetStream(document_.get());
    HPDF_ReadFromStream(document_.get(), bytes.data(), &size);
    bytes.resize(size);
    return bytes;
  }

  float y = 0;

 private:
  /// How many bytes of it, at least a character, are no wider than `limit`.
  std::size_t fitting(const std::string& encoded, float size, float limit) {
    const auto continues = [&](std::size_t at) {
      return unicode_ && at < encoded.size() && (static_cast<unsigned char>(encoded[at]) & 0xC0) == 0x80;
    };
    std::size_t fits = 0;
    for (std::size_t next = 1; next <= encoded.size(); ++next) {
      if (continues(next)) continue;
      if (fits > 0 && width(encoded.substr(0, next), size, false) > limit) break;
      fits = next;
    }
    return fits;
  }
  std::string shortened(std::string encoded, float size, float limit, bool bold) {
    if (width(encoded, size, bold) <= limit) return encoded;
    while (!encoded.empty() && width(encoded + "...", size, bold) > limit) {
      const auto continues = [&] { return unicode_ && (static_cast<unsigned char>(encoded.back()) & 0xC0) == 0x80; };
      while (encoded.size() > 1 && continues()) encoded.pop_back();
      encoded.pop_back();
    }
    return encoded + "...";
  }
  std::string encode(std::string_view utf8) const { return unicode_ ? first_plane(utf8) : latin1(utf8); }
  void draw(float x, float at_y, const std::string& encoded, float size, Colour colour, bool bold) {
    HPDF_Page_BeginText(page_);
    HPDF_Page_SetFontAndSize(page_, bold ? bold_ : regular_, size);
    HPDF_Page_SetRGBFill(page_, colour.r, colour.g, colour.b);
    HPDF_Page_TextOut(page_, x, at_y, encoded.c_str());
    HPDF_Page_EndText(page_);
  }

  struct Free {
    void operator()(HPDF_Doc document) const { HPDF_Free(document); }
  };
  std::unique_ptr<std::remove_pointer_t<HPDF_Doc>, Free> document_;
  const Invoice& invoice_;
  const bool unicode_;
  HPDF_Font regular_ = nullptr;
  HPDF_Font bold_ = nullptr;
  HPDF_Page page_ = nullptr;
  std::vector<HPDF_Page> pages_;
};

/// What names somebody, under his name.
std::vector<std::string> lines_of(const BillingParty& party) {
  std::vector<std::string> lines = party.address;
  if (!party.tax_id.empty()) lines.push_back("Tax ID " + party.tax_id);
  if (!party.email.empty()) lines.push_back(party.email);
  return lines;
}

constexpr float units_column = 372;
constexpr float events_column = 432;

void table_head(Sheet& sheet) {
  sheet.box(margin - 8, sheet.y - 8, right - margin + 16, 22, band);
  sheet.text(margin, sheet.y, "DESCRIPTION", 7.5f, grey, true);
  sheet.text_right(units_column, sheet.y, "QUANTITY", 7.5f, grey, true);
  sheet.text_right(events_column, sheet.y, "EVENTS", 7.5f, grey, true);
  sheet.text_right(right, sheet.y, "AMOUNT", 7.5f, grey, true);
  sheet.y -= row_height + 2;
}

/// What the entry says of itself, with what it is reckoned on.
std::string entry_text(const InvoiceEntry& entry, const std::string& base) {
  if (entry.rate.is_zero()) return entry.description;
  return fmt::format("{} ({} % of {})", entry.description, entry.rate.to_string(), base);
}

void keep_room(Sheet& sheet, float height) {
  if (sheet.y >= margin + height) return;
  sheet.new_page();
  sheet.y -= 20;
}

Bytes draw(const Invoice& invoice, const std::filesystem::path& fonts) {
  std::error_code ignored;
  const bool there =
      std::filesystem::exists(fonts / regular_file, ignored) && std::filesystem::exists(fonts / bold_file, ignored);
  Sheet sheet(invoice, fonts, there && needs_unicode(invoice));
  const TimeZone zone = zone_of(invoice);
  const int places = invoice.currency.places();
  const auto money = [&](const Decimal& amount) { return grouped(amount.to_fixed(places)); };

  sheet.box(0, page_height - 10, page_width, 10, accent);
  sheet.y -= 24;
  sheet.text_within(margin, sheet.y, invoice.issuer.name, 13, accent, 300, true);
  sheet.text_right(right, sheet.y - 4, invoice.status == InvoiceStatus::draft ? "Draft invoice" : "Invoice", 26, ink,
                   true);
  sheet.y -= 28;
  sheet.text_right(right, sheet.y, number_of(invoice), 10, grey);
  float below = sheet.y + 12;
  for (const std::string& line : lines_of(invoice.issuer)) {
    sheet.text_within(margin, below, line, 8, grey, 300);
    below -= 11;
  }
  sheet.y = std::min(sheet.y, below + 11) - 38;

  const float second = 330;
  const auto field = [&](float x, std::string_view name, std::string_view value, float limit) {
    sheet.text(x, sheet.y, name, 7.5f, grey, true);
    sheet.text_within(x, sheet.y - 15, value, 9.5f, ink, limit);
  };
  if (invoice.customer.empty()) {
    field(margin, "BILLED TO", invoice.agent, right - margin);
  } else {
    field(margin, "BILLED TO", invoice.customer.name, right - margin);
    for (const std::string& line : lines_of(invoice.customer)) {
      sheet.y -= 12;
      sheet.text_within(margin, sheet.y - 15, line, 9.5f, ink, right - margin);
    }
    sheet.y -= 12;
    sheet.text_within(margin, sheet.y - 15, invoice.agent, 8, grey, right - margin);
  }
  sheet.y -= 42;
  field(margin, "SUBSCRIPTION", invoice.subscription.to_string(), second - margin - 16);
  std::string issued = date(zone.day_of(invoice.issued_at));
  if (invoice.due_at) issued += fmt::format(", due {}", date(zone.day_of(*invoice.due_at)));
  field(second, "ISSUED", issued, right - second);
  sheet.y -= 42;
  field(margin, "PLAN", fmt::format("{} (version {})", invoice.plan_name, invoice.plan_version), second - margin - 16);
  field(second, "PERIOD", period_text(invoice.period, zone), right - second);
  sheet.y -= 52;

  table_head(sheet);
  for (const InvoiceLine& line : invoice.lines) {
    std::string description =
        line.group.empty() ? line.description : fmt::format("{} ({})", line.description, line.group);
    if (line.kind == LineKind::adjustment) description = "Adjustment: " + description;
    const bool other_period = line.period != invoice.period;
    const std::vector<std::string> described = sheet.wrapped(description, 9.5f, 240, 6);
    const float more = 12.f * static_cast<float>(described.size() - 1);
    if (sheet.y < margin + 60 + more) {
      sheet.new_page();
      sheet.y -= 20;
      table_head(sheet);
    }
    float at = sheet.y + (other_period ? 4.f : 0.f);
    for (const std::string& one : described) {
      sheet.encoded_text(margin, at, one, 9.5f, ink);
      at -= 12;
    }
    if (other_period) sheet.text_within(margin, at + 3, period_text(line.period, zone), 7, grey, 240);
    sheet.text_right(units_column, sheet.y, grouped(line.units.to_string()), 9.5f, ink);
    if (line.events != 0) sheet.text_right(events_column, sheet.y, grouped(std::to_string(line.events)), 9.5f, grey);
    sheet.text_right(right, sheet.y, money(line.amount), 9.5f, ink);
    sheet.line(sheet.y - more - 9);
    sheet.y -= more + row_height;
  }

  if (!invoice.entries.empty()) {
    keep_room(sheet, 70);
    sheet.y -= 4;
    sheet.text_right(events_column, sheet.y, "Subtotal", 9.5f, ink, true);
    sheet.text_right(right, sheet.y, money(invoice.fees), 9.5f, ink, true);
    sheet.y -= 18;
    for (const InvoiceEntry& entry : invoice.entries) {
      keep_room(sheet, 50);
      sheet.text_right_within(events_column, sheet.y, entry_text(entry, money(entry.base)), 9.5f, grey,
                              events_column - margin);
      sheet.text_right(right, sheet.y, money(entry.amount), 9.5f, ink);
      sheet.y -= 18;
    }
  }
  keep_room(sheet, 60);
  sheet.y -= 10;
  sheet.text_right(events_column, sheet.y, "Total", 11, ink, true);
  sheet.text_right(right, sheet.y, fmt::format("{} {}", invoice.currency.code(), money(invoice.total)), 13, ink, true);
  sheet.y -= 18;
  if (!invoice.credited.is_zero()) {
    sheet.text_right(right, sheet.y,
                     fmt::format("{} {} are credited to you.", invoice.currency.code(), money(invoice.credited)), 8.5f,
                     grey);
  }
  sheet.y -= 16;
  if (!invoice.issuer.payment.empty()) {
    keep_room(sheet, 40 + 12 * static_cast<float>(invoice.issuer.payment.size()));
    sheet.text(margin, sheet.y, "PAYMENT", 7.5f, grey, true);
    for (const std::string& line : invoice.issuer.payment) {
      sheet.y -= 13;
      sheet.text_within(margin, sheet.y, line, 9.5f, ink, right - margin);
    }
    sheet.y -= 28;
  }
  keep_room(sheet, 40);
  sheet.text(margin, sheet.y,
             fmt::format("Each fee is computed exactly and rounded once, half up. Times are those of {}.", zone.name()),
             8, grey);
  if (invoice.signature) {
    sheet.text(
        margin, sheet.y - 12,
        fmt::format("The JSON of this invoice is signed by service:metering ({}).", invoice.signature->algorithm), 8,
        grey);
  }
  return sheet.finish();
}

}  // namespace

Result<Bytes> render_pdf(const Invoice& invoice, const std::filesystem::path& fonts) {
  try {
    return draw(invoice, fonts);
  } catch (const PdfFailure& failure) {
    return Error(Product::metering, ErrorKind::internal,
                 fmt::format("the PDF library failed with {:#x}", failure.code));
  }
}

}  // namespace creto::metering
