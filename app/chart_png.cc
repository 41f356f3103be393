#include <fmt/format.h>
#include <ft2build.h>
#include FT_FREETYPE_H
#include <png.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <memory>

#include "chart.h"

namespace creto::app {
namespace {

constexpr double scale = 2;
/// Where Debian, Fedora, Arch and macOS have a plain one; whoever has another names it in the environment.
constexpr const char* font_variable = "CRETO_FONT";
constexpr auto fonts = std::to_array<const char*>(
    {"/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
     "/usr/share/fonts/TTF/DejaVuSans.ttf", "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
     "/usr/share/fonts/liberation-sans/LiberationSans-Regular.ttf", "/Library/Fonts/Arial Unicode.ttf"});

struct Colour {
  std::uint8_t red, green, blue;
};
Colour colour_of(std::string_view hex) {
  std::uint32_t value = 0;
  std::from_chars(hex.data() + 1, hex.data() + hex.size(), value, 16);
  return {static_cast<std::uint8_t>(value >> 16), static_cast<std::uint8_t>(value >> 8),
          static_cast<std::uint8_t>(value)};
}

/// The code points of UTF-8; what is none is left out.
std::u32string code_points(std::string_view text) {
  std::u32string points;
  int left = 0;
  for (const char c : text) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (byte < 0x80) {
      points.push_back(byte);
      left = 0;
    } else if (byte >= 0xC0) {
      left = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
      points.push_back(byte & (0x3FU >> left));
    } else if (left > 0) {
      points.back() = points.back() << 6 | (byte & 0x3FU);
      --left;
    }
  }
  return points;
}

/// A picture that grows downwards as it is drawn on.
class Pixels final : public Canvas {
 public:
  Result<> open() {
    FT_Library library = nullptr;
    if (FT_Init_FreeType(&library) != 0)
      return Error(Product::platform, ErrorKind::internal, "the font library does not start");
    library_.reset(library);
    const char* own = std::getenv(font_variable);
    for (const char* path : fonts) {
      const char* candidate = own != nullptr ? own : path;
      FT_Face face = nullptr;
      if (FT_New_Face(library, candidate, 0, &face) != 0) continue;
      face_.reset(face);
      return {};
    }
    return Error(
        Product::platform, ErrorKind::not_found,
        fmt::format("no font was found: install fonts-dejavu-core, or name a TrueType file in {}", font_variable));
  }

  void text(double x, double y, Anchor anchor, double size, std::string_view content) override {
    FT_Set_Char_Size(face_.get(), 0, static_cast<FT_F26Dot6>(size * scale * 64), 72, 72);
    const std::u32string points = code_points(content);
    double width = 0;
    for (const char32_t point : points) {
      if (FT_Load_Char(face_.get(), point, FT_LOAD_DEFAULT) == 0)
        width += static_cast<double>(face_->glyph->advance.x) / 64;
    }
    double pen = x * scale - (anchor == Anchor::start ? 0 : anchor == Anchor::end ? width : width / 2);
    for (const char32_t point : points) {
      if (FT_Load_Char(face_.get(), point, FT_LOAD_RENDER) != 0) continue;
      const FT_GlyphSlot glyph = face_->glyph;
      const auto left = static_cast<long>(std::lround(pen)) + glyph->bitmap_left;
      const auto top = static_cast<long>(std::lround(y * scale)) - glyph->bitmap_top;
      for (unsigned row = 0; row < glyph->bitmap.rows; ++row) {
        const std::uint8_t* line = glyph->bitmap.buffer + static_cast<std::ptrdiff_t>(row) * glyph->bitmap.pitch;
        for (unsigned column = 0; column < glyph->bitmap.width; ++column)
          blend(left + static_cast<long>(column), top + static_cast<long>(row), ink_, line[column] / 255.0);
      }
      pen += static_cast<double>(glyph->advance.x) / 64;
    }
  }
  void line(double x1, double y1, double x2, double y2) override {
    // All of ours lie in one direction.
    fill(std::min(x1, x2) - 0.25, std::min(y1, y2) - 0.25, std::abs(x2 - x1) + 0.5, std::abs(y2 - y1) + 0.5,
         colour_of(chart_faint));
  }
  void box(double x, double y, double w, double h, std::string_view colour, std::string_view) override {
    fill(x, y, w, h, colour_of(colour));
  }

  Result<Bytes> png(double height) {
    const auto rows = static_cast<std::size_t>(std::ceil(height * scale));
    grow(static_cast<long>(rows) - 1);
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(columns);
    image.height = static_cast<png_uint_32>(rows);
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = 0;
    if (png_image_write_to_memory(&image, nullptr, &size, 0, pixels_.data(), 0, nullptr) == 0)
      return Error(Product::platform, ErrorKind::internal, fmt::format("PNG: {}", image.message));
    Bytes bytes(size);
    if (png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels_.data(), 0, nullptr) == 0)
      return Error(Product::platform, ErrorKind::internal, fmt::format("PNG: {}", image.message));
    bytes.resize(size);
    return bytes;
  }

 private:
  static constexpr long columns = static_cast<long>(chart_width * scale);
  struct CloseLibrary {
    void operator()(FT_Library library) const { FT_Done_FreeType(library); }
  };
  struct CloseFace {
    void operator()(FT_Face face) const { FT_Done_Face(face); }
  };

  void grow(long row) {
    const auto size = static_cast<std::size_t>((row + 1) * columns * 3);
    if (pixels_.size() < size) pixels_.resize(size, 0xFF);
  }
  void blend(long x, long y, Colour colour, double opacity) {
    if (x < 0 || x >= columns || y < 0 || opacity <= 0) return;
    grow(y);
    std::uint8_t* pixel = pixels_.data() + (y * columns + x) * 3;
    const auto mix = [&](std::uint8_t& below, std::uint8_t above) {
      below = static_cast<std::uint8_t>(std::lround(below + (above - below) * opacity));
    };
    mix(pixel[0], colour.red);
    mix(pixel[1], colour.green);
    mix(pixel[2], colour.blue);
  }
  /// A pixel at the edge takes as much of the colour as is covered of it.
  void fill(double x, double y, double w, double h, Colour colour) {
    const double left = x * scale, right = (x + w) * scale, top = y * scale, bottom = (y + h) * scale;
    for (long row = std::lround(std::floor(top)); static_cast<double>(row) < bottom; ++row) {
      const double covered = std::min(bottom, static_cast<double>(row + 1)) - std::max(top, static_cast<double>(row));
      for (long column = std::lround(std::floor(left)); static_cast<double>(column) < right; ++column) {
        const double across =
            std::min(right, static_cast<double>(column + 1)) - std::max(left, static_cast<double>(column));
        blend(column, row, colour, covered * across);
      }
    }
  }

  const Colour ink_ = colour_of(chart_ink);
  std::unique_ptr<FT_LibraryRec_, CloseLibrary> library_;
  std::unique_ptr<FT_FaceRec_, CloseFace> face_;
  std::vector<std::uint8_t> pixels_;
};

}  // namespace

Result<Bytes> chart_as_png(const Chart& chart) {
  Pixels pixels;
  CRETO_TRY(pixels.open());
  const double height = draw_chart(chart, pixels);
  return pixels.png(height);
}

}  // namespace creto::app
