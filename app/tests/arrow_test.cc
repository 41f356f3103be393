// Apache Arrow files, read with a reader that knows nothing of the writer but the format.

#include "arrow.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

namespace creto::app {
namespace {

using Type = ArrowField::Type;

template <class T>
T number_at(BytesView bytes, std::size_t at) {
  T value{};
  EXPECT_LE(at + sizeof value, bytes.size());
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

/// A table of FlatBuffers.
struct Table {
  BytesView bytes;
  std::size_t at;

  static Table root(BytesView bytes) { return {bytes, number_at<std::uint32_t>(bytes, 0)}; }
  std::size_t place(std::size_t slot) const {
    const std::size_t vtable = at - static_cast<std::size_t>(number_at<std::int32_t>(bytes, at));
    if (4 + 2 * slot >= number_at<std::uint16_t>(bytes, vtable)) return 0;
    const auto offset = number_at<std::uint16_t>(bytes, vtable + 4 + 2 * slot);
    return offset == 0 ? 0 : at + offset;
  }
  template <class T>
  T number(std::size_t slot) const {
    const std::size_t where = place(slot);
    EXPECT_EQ(where % sizeof(T), 0u) << "not aligned";
    return where == 0 ? T{} : number_at<T>(bytes, where);
  }
  std::size_t referred(std::size_t where) const { return where + number_at<std::uint32_t>(bytes, where); }
  Table table(std::size_t slot) const { return {bytes, referred(place(slot))}; }
  std::size_t vector(std::size_t slot) const { return referred(place(slot)); }
  std::uint32_t size(std::size_t slot) const { return number_at<std::uint32_t>(bytes, vector(slot)); }
  Table element(std::size_t slot, std::size_t i) const { return {bytes, referred(vector(slot) + 4 + 4 * i)}; }
  std::string text(std::size_t slot) const {
    const auto* begin = reinterpret_cast<const char*>(bytes.data()) + vector(slot) + 4;
    return {begin, size(slot)};
  }
};

struct File {
  Bytes bytes;
  Table footer() const {
    const auto size = static_cast<std::size_t>(number_at<std::int32_t>(bytes, bytes.size() - 10));
    return Table::root(BytesView(bytes).subspan(bytes.size() - 10 - size, size));
  }
  std::size_t batches() const { return footer().size(3); }
  /// A batch's table, and where its body begins.
  std::pair<Table, std::size_t> batch(std::size_t i) const {
    const Table end = footer();
    const std::size_t block = end.vector(3) + 4 + 24 * i;
    const auto offset = static_cast<std::size_t>(number_at<std::int64_t>(end.bytes, block));
    const auto metadata = static_cast<std::size_t>(number_at<std::int32_t>(end.bytes, block + 8));
    EXPECT_EQ(number_at<std::uint32_t>(bytes, offset), 0xFFFFFFFFu);
    EXPECT_EQ(number_at<std::uint32_t>(bytes, offset + 4) + 8, metadata);
    const Table message = Table::root(BytesView(bytes).subspan(offset + 8, metadata - 8));
    EXPECT_EQ(message.number<std::uint8_t>(1), 3) << "a record batch";
    EXPECT_EQ(message.number<std::int64_t>(3), number_at<std::int64_t>(end.bytes, block + 16));
    return {message.table(2), offset + metadata};
  }
  BytesView buffer(std::size_t of_batch, std::size_t i) const {
    const auto [table, body] = batch(of_batch);
    const std::size_t at = table.vector(2) + 4 + 16 * i;
    EXPECT_EQ(number_at<std::int64_t>(table.bytes, at) % 8, 0);
    return BytesView(bytes).subspan(body + static_cast<std::size_t>(number_at<std::int64_t>(table.bytes, at)),
                                    static_cast<std::size_t>(number_at<std::int64_t>(table.bytes, at + 8)));
  }
};

ArrowWriter::Sink into(File& file) {
  return [&file](BytesView bytes) -> Result<> {
    file.bytes.insert(file.bytes.end(), bytes.begin(), bytes.end());
    return {};
  };
}

TEST(Arrow, AFileHasItsSchemaItsBatchesAndAFooterThatNamesThem) {
  File file;
  ArrowWriter table({{"id", Type::text}, {"n", Type::integer}}, into(file));
  constexpr int rows = 150'000;
  for (int i = 0; i < rows; ++i) {
    table.text(std::to_string(i));
    table.integer(i);
    ASSERT_TRUE(table.end_row());
  }
  ASSERT_TRUE(table.finish());
  EXPECT_EQ(as_text(BytesView(file.bytes).first(6)), "ARROW1");
  EXPECT_EQ(as_text(BytesView(file.bytes).last(6)), "ARROW1");
  const Table schema = file.footer().table(1);
  ASSERT_EQ(schema.size(1), 2u);
  EXPECT_EQ(schema.element(1, 0).text(0), "id");
  EXPECT_EQ(schema.element(1, 1).number<std::uint8_t>(2), 2) << "Int";
  ASSERT_EQ(file.batches(), 3u);
  std::int64_t next = 0;
  for (std::size_t b = 0; b < file.batches(); ++b) {
    const auto length = file.batch(b).first.number<std::int64_t>(0);
    for (std::int64_t i = 0; i < length; ++i, ++next) {
      ASSERT_EQ(number_at<std::int64_t>(file.buffer(b, 4), static_cast<std::size_t>(i) * 8), next);
    }
  }
  EXPECT_EQ(next, rows);
}

TEST(Arrow, CellsOfEveryTypeMayBeNull) {
  File file;
  ArrowWriter table({{"text", Type::text},
                     {"when", Type::instant},
                     {"amount", Type::decimal},
                     {"texts", Type::texts},
                     {"pairs", Type::pairs}},
                    into(file));
  for (int cell = 0; cell < 5; ++cell) table.null();
  ASSERT_TRUE(table.end_row());
  table.text("ü");
  table.instant(from_unix_ns(7));
  ASSERT_TRUE(table.decimal("-1.5"));
  const std::array<std::string_view, 2> texts{"a", "bc"};
  table.texts(texts);
  const std::array<ArrowWriter::Pair, 1> pairs{{{"k", "v"}}};
  table.pairs(pairs);
  ASSERT_TRUE(table.end_row());
  ASSERT_TRUE(table.finish());
  const auto [batch, body] = file.batch(0);
  EXPECT_EQ(batch.number<std::int64_t>(0), 2);
  const auto nulls = [&](std::size_t node) {
    return number_at<std::int64_t>(batch.bytes, batch.vector(1) + 4 + 16 * node + 8);
  };
  for (const std::size_t node : {0u, 1u, 2u, 3u, 5u}) EXPECT_EQ(nulls(node), 1) << node;
  EXPECT_EQ(file.buffer(0, 0)[0], 2) << "the second row is valid";
  EXPECT_EQ(as_text(file.buffer(0, 2)), "ü");
  EXPECT_EQ(number_at<std::int64_t>(file.buffer(0, 4), 8), 7);
  EXPECT_EQ(number_at<std::int64_t>(file.buffer(0, 6), 16), -1'500'000'000'000'000'000);
  EXPECT_EQ(number_at<std::int64_t>(file.buffer(0, 6), 24), -1) << "the sign goes on";
  EXPECT_EQ(as_text(file.buffer(0, 11)), "abc");
  EXPECT_EQ(as_text(file.buffer(0, 17)), "k");
  EXPECT_EQ(as_text(file.buffer(0, 20)), "v");
}

TEST(Arrow, ATableWithoutRowsIsAFileToo) {
  File file;
  ArrowWriter table({{"id", Type::text}}, into(file));
  ASSERT_TRUE(table.finish());
  EXPECT_EQ(file.batches(), 0u);
  EXPECT_EQ(file.footer().table(1).size(1), 1u);
}

TEST(Arrow, ADecimalThatDoesNotFitIsRefused) {
  File file;
  ArrowWriter table({{"amount", Type::decimal}}, into(file));
  for (const char* bad : {"", "-", "1e5", "0.1234567890123456789", "123456789012345678901", "1.x"}) {
    EXPECT_FALSE(table.decimal(bad)) << bad;
  }
  EXPECT_TRUE(table.decimal("99999999999999999999.999999999999999999"));
}

}  // namespace
}  // namespace creto::app
