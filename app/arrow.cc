#include "arrow.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <memory>
#include <variant>

#include "creto/common/assert.h"

// The format: https://arrow.apache.org/docs/format/Columnar.html. Its metadata are FlatBuffers, of which we only write
// a handful of tables: a writer that puts children behind their parents is shorter than what a generator makes.
namespace creto::app {

static_assert(std::endian::native == std::endian::little);

/// A FlatBuffers table that is to be written: scalars in place, everything else behind it.
class FlatTable {
 public:
  using Tables = std::vector<FlatTable>;
  /// Structs of 64-bit numbers, each of so many.
  struct Structs {
    std::vector<std::int64_t> numbers;
    std::size_t each;
  };
  template <class T>
  void scalar(std::size_t slot, T value) {
    Bytes bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    at(slot) = std::move(bytes);
  }
  void text(std::size_t slot, std::string value) { at(slot) = std::move(value); }
  void table(std::size_t slot, FlatTable table) { at(slot) = std::make_shared<const FlatTable>(std::move(table)); }
  void tables(std::size_t slot, Tables tables) { at(slot) = std::make_shared<const Tables>(std::move(tables)); }
  void structs(std::size_t slot, Structs structs) { at(slot) = std::move(structs); }

  /// As the root of a buffer, its size a multiple of eight.
  Bytes whole() const {
    Bytes out(4);
    write(out, 0);
    out.resize((out.size() + 7) / 8 * 8);
    return out;
  }

 private:
  using Slot = std::variant<std::monostate, Bytes, std::string, Structs, std::shared_ptr<const FlatTable>,
                            std::shared_ptr<const Tables>>;
  Slot& at(std::size_t slot) {
    if (slots_.size() <= slot) slots_.resize(slot + 1);
    return slots_[slot];
  }
  static void align(Bytes& out, std::size_t to, std::size_t ahead = 0) {
    while ((out.size() + ahead) % to != 0) out.push_back(0);
  }
  template <class T>
  static void put(Bytes& out, std::size_t where, T value) {
    std::memcpy(out.data() + where, &value, sizeof value);
  }
  static void refer(Bytes& out, std::size_t from) { put(out, from, static_cast<std::uint32_t>(out.size() - from)); }
  static std::size_t room(Bytes& out, std::size_t size) {
    out.resize(out.size() + size);
    return out.size() - size;
  }

  /// Appends the table, to which the four bytes at `from` shall point.
  void write(Bytes& out, std::size_t from) const {
    align(out, 2);
    const std::size_t vtable = room(out, 4 + 2 * slots_.size());
    align(out, 8);
    const std::size_t table = room(out, 4);
    put(out, from, static_cast<std::uint32_t>(table - from));
    put(out, table, static_cast<std::int32_t>(table - vtable));
    std::vector<std::size_t> places(slots_.size());
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (std::holds_alternative<std::monostate>(slots_[i])) continue;
      const Bytes* scalar = std::get_if<Bytes>(&slots_[i]);
      const std::size_t size = scalar != nullptr ? scalar->size() : 4;
      align(out, size);
      places[i] = room(out, size);
      if (scalar != nullptr) std::memcpy(out.data() + places[i], scalar->data(), size);
      put(out, vtable + 4 + 2 * i, static_cast<std::uint16_t>(places[i] - table));
    }
    put(out, vtable, static_cast<std::uint16_t>(4 + 2 * slots_.size()));
    put(out, vtable + 2, static_cast<std::uint16_t>(out.size() - table));
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (const auto* text = std::get_if<std::string>(&slots_[i])) {
        align(out, 4);
        refer(out, places[i]);
        const std::size_t at = room(out, 4 + text->size() + 1);
        put(out, at, static_cast<std::uint32_t>(text->size()));
        std::memcpy(out.data() + at + 4, text->data(), text->size());
      } else if (const auto* structs = std::get_if<Structs>(&slots_[i])) {
        align(out, 8, 4);
        refer(out, places[i]);
        const std::size_t size = structs->numbers.size() * sizeof(std::int64_t);
        const std::size_t at = room(out, 4 + size);
        put(out, at, static_cast<std::uint32_t>(structs->numbers.size() / structs->each));
        if (size > 0) std::memcpy(out.data() + at + 4, structs->numbers.data(), size);
      } else if (const auto* table_slot = std::get_if<std::shared_ptr<const FlatTable>>(&slots_[i])) {
        (*table_slot)->write(out, places[i]);
      } else if (const auto* tables = std::get_if<std::shared_ptr<const Tables>>(&slots_[i])) {
        align(out, 4);
        refer(out, places[i]);
        const std::size_t at = room(out, 4 + 4 * (*tables)->size());
        put(out, at, static_cast<std::uint32_t>((*tables)->size()));
        for (std::size_t t = 0; t < (*tables)->size(); ++t) (**tables)[t].write(out, at + 4 + 4 * t);
      }
    }
  }

  std::vector<Slot> slots_;
};

namespace {

using Type = ArrowField::Type;

constexpr std::string_view magic = "ARROW1";
constexpr std::int16_t version_5 = 4;
constexpr std::int32_t precision = 38;
constexpr std::size_t scale = 18;
constexpr std::int64_t batch_rows = 65'536;
constexpr std::size_t batch_bytes = 16 << 20;

// Of the unions MessageHeader and Type in Arrow's Message.fbs and Schema.fbs.
enum Header : std::uint8_t { header_schema = 1, header_record_batch = 3 };
enum Kind : std::uint8_t {
  kind_int = 2,
  kind_utf8 = 5,
  kind_decimal = 7,
  kind_timestamp = 10,
  kind_list = 12,
  kind_struct = 13,
  kind_map = 17
};

FlatTable field_table(const std::string& name, bool nullable, Kind kind, FlatTable type, FlatTable::Tables children) {
  FlatTable field;
  field.text(0, name);
  field.scalar(1, static_cast<std::uint8_t>(nullable));
  field.scalar(2, static_cast<std::uint8_t>(kind));
  field.table(3, std::move(type));
  field.tables(5, std::move(children));
  return field;
}

FlatTable field_of(const ArrowField& field) {
  FlatTable type;
  switch (field.type) {
    case Type::text:
      return field_table(field.name, true, kind_utf8, type, {});
    case Type::integer:
      type.scalar(0, std::int32_t{64});
      type.scalar(1, std::uint8_t{1});
      return field_table(field.name, true, kind_int, type, {});
    case Type::instant:
      type.scalar(0, std::int16_t{3});  // nanoseconds
      type.text(1, "UTC");
      return field_table(field.name, true, kind_timestamp, type, {});
    case Type::decimal:
      type.scalar(0, precision);
      type.scalar(1, static_cast<std::int32_t>(scale));
      type.scalar(2, std::int32_t{128});
      return field_table(field.name, true, kind_decimal, type, {});
    case Type::texts:
      return field_table(field.name, true, kind_list, type, {field_table("item", false, kind_utf8, {}, {})});
    case Type::pairs: {
      type.scalar(0, std::uint8_t{0});
      FlatTable::Tables entry{field_table("key", false, kind_utf8, {}, {}),
                              field_table("value", false, kind_utf8, {}, {})};
      return field_table(field.name, true, kind_map, type,
                         {field_table("entries", false, kind_struct, {}, std::move(entry))});
    }
  }
  return {};
}

void put_buffer(Bytes& body, std::vector<std::int64_t>& buffers, const void* data, std::size_t size) {
  buffers.push_back(static_cast<std::int64_t>(body.size()));
  buffers.push_back(static_cast<std::int64_t>(size));
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  body.insert(body.end(), bytes, bytes + size);
  body.resize((body.size() + 7) / 8 * 8);
}

}  // namespace

ArrowWriter::ArrowWriter(std::vector<ArrowField> fields, Sink sink) : sink_(std::move(sink)) {
  for (ArrowField& field : fields) {
    Column column{.field = std::move(field), .valid = {}, .values = {}, .offsets = {}, .children = {}};
    const Column leaf{.field = {"", Type::text}, .valid = {}, .values = {}, .offsets = {}, .children = {}};
    if (column.field.type == Type::texts) column.children = {leaf};
    if (column.field.type == Type::pairs) column.children = {leaf, leaf};
    clear(column);
    columns_.push_back(std::move(column));
  }
}

void ArrowWriter::clear(Column& column) {
  column.valid.clear();
  column.values.clear();
  column.offsets.assign(1, 0);
  column.nulls = column.rows = 0;
  for (Column& child : column.children) clear(child);
}

ArrowWriter::Column& ArrowWriter::next() {
  CRETO_ASSERT(cell_ < columns_.size());
  return columns_[cell_++];
}

void ArrowWriter::set(Column& column, bool valid) {
  column.valid.push_back(valid);
  column.nulls += valid ? 0 : 1;
  ++column.rows;
}

void ArrowWriter::add_text(Column& column, std::string_view value) {
  column.values.insert(column.values.end(), value.begin(), value.end());
  column.offsets.push_back(static_cast<std::int32_t>(column.values.size()));
  set(column, true);
}

void ArrowWriter::null() {
  Column& column = next();
  switch (column.field.type) {
    case Type::integer:
    case Type::instant:
      column.values.resize(column.values.size() + 8);
      break;
    case Type::decimal:
      column.values.resize(column.values.size() + 16);
      break;
    case Type::text:
    case Type::texts:
    case Type::pairs:
      column.offsets.push_back(column.offsets.back());
      break;
  }
  set(column, false);
}

void ArrowWriter::text(std::string_view value) {
  bytes_ += value.size();
  add_text(next(), value);
}

void ArrowWriter::integer(std::int64_t value) {
  Column& column = next();
  column.values.resize(column.values.size() + sizeof value);
  std::memcpy(column.values.data() + column.values.size() - sizeof value, &value, sizeof value);
  set(column, true);
}

void ArrowWriter::instant(Instant value) { integer(unix_ns(value)); }

Result<> ArrowWriter::decimal(std::string_view value) {
  const auto refuse = [&] {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("decimal `{}`: must have at most 20 digits before and 18 behind the point", value));
  };
  const bool negative = value.starts_with('-');
  const std::string_view digits = value.substr(negative ? 1 : 0);
  const std::size_t point = std::min(digits.find('.'), digits.size());
  const std::string_view fraction = point < digits.size() ? digits.substr(point + 1) : std::string_view();
  if (point == 0 || point > 20 || fraction.size() > scale) return refuse();
  __extension__ typedef __int128 Wide;
  Wide number = 0;
  for (std::size_t i = 0; i < point + scale; ++i) {
    const std::size_t behind = i - point;
    const char c = i < point ? digits[i] : behind < fraction.size() ? fraction[behind] : '0';
    if (c < '0' || c > '9') return refuse();
    number = number * 10 + (c - '0');
  }
  if (negative) number = -number;
  Column& column = next();
  column.values.resize(column.values.size() + sizeof number);
  std::memcpy(column.values.data() + column.values.size() - sizeof number, &number, sizeof number);
  set(column, true);
  return {};
}

void ArrowWriter::texts(std::span<const std::string_view> values) {
  Column& column = next();
  for (const std::string_view value : values) {
    bytes_ += value.size();
    add_text(column.children[0], value);
  }
  column.offsets.push_back(static_cast<std::int32_t>(column.children[0].rows));
  set(column, true);
}

void ArrowWriter::pairs(std::span<const Pair> values) {
  Column& column = next();
  for (const auto& [name, value] : values) {
    bytes_ += name.size() + value.size();
    add_text(column.children[0], name);
    add_text(column.children[1], value);
  }
  column.offsets.push_back(static_cast<std::int32_t>(column.children[0].rows));
  set(column, true);
}

Result<> ArrowWriter::end_row() {
  CRETO_ASSERT(cell_ == columns_.size());
  cell_ = 0;
  ++rows_;
  return rows_ == batch_rows || bytes_ >= batch_bytes ? flush() : Result<>();
}

Result<> ArrowWriter::write(BytesView bytes) {
  written_ += static_cast<std::int64_t>(bytes.size());
  return sink_(bytes);
}

void ArrowWriter::put_schema(FlatTable& schema, const std::vector<Column>& columns) {
  FlatTable::Tables fields;
  for (const Column& column : columns) fields.push_back(field_of(column.field));
  schema.scalar(0, std::int16_t{0});  // little endian
  schema.tables(1, std::move(fields));
}

Result<> ArrowWriter::message(const FlatTable& header, std::uint8_t kind, const Bytes& body, Block* block) {
  FlatTable message;
  message.scalar(0, version_5);
  message.scalar(1, kind);
  message.table(2, header);
  message.scalar(3, static_cast<std::int64_t>(body.size()));
  const Bytes metadata = message.whole();
  Bytes prefix(8, 0xFF);
  const auto size = static_cast<std::int32_t>(metadata.size());
  std::memcpy(prefix.data() + 4, &size, sizeof size);
  if (block != nullptr) *block = {written_, size + 8, static_cast<std::int64_t>(body.size())};
  CRETO_TRY(write(prefix));
  CRETO_TRY(write(metadata));
  return write(body);
}

/// What there is as a record batch; before the first, the schema.
Result<> ArrowWriter::flush() {
  if (!begun_) {
    begun_ = true;
    CRETO_TRY(write(as_bytes(fmt::format("{}{}", magic, std::string_view("\0\0", 2)))));
    FlatTable schema;
    put_schema(schema, columns_);
    CRETO_TRY(message(schema, header_schema, {}, nullptr));
  }
  if (rows_ == 0) return {};
  Bytes body;
  std::vector<std::int64_t> nodes;
  std::vector<std::int64_t> buffers;
  const auto put_validity = [&](const Column& column) {
    nodes.push_back(column.rows);
    nodes.push_back(column.nulls);
    Bytes bits;
    if (column.nulls > 0) {
      bits.resize((column.valid.size() + 7) / 8);
      for (std::size_t i = 0; i < column.valid.size(); ++i)
        bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | (column.valid[i] ? 1U << i % 8 : 0U));
    }
    put_buffer(body, buffers, bits.data(), bits.size());
  };
  const auto put_offsets = [&](const Column& column) {
    put_buffer(body, buffers, column.offsets.data(), column.offsets.size() * sizeof(std::int32_t));
  };
  const auto put_values = [&](const Column& column) {
    put_buffer(body, buffers, column.values.data(), column.values.size());
  };
  for (const Column& column : columns_) {
    put_validity(column);
    if (column.field.type != Type::integer && column.field.type != Type::instant && column.field.type != Type::decimal)
      put_offsets(column);
    if (column.children.empty()) put_values(column);
    if (column.field.type == Type::pairs) {
      // The struct of an entry has no buffer but its validity.
      nodes.push_back(column.children[0].rows);
      nodes.push_back(0);
      put_buffer(body, buffers, nullptr, 0);
    }
    for (const Column& child : column.children) {
      put_validity(child);
      put_offsets(child);
      put_values(child);
    }
  }
  FlatTable batch;
  batch.scalar(0, rows_);
  batch.structs(1, {std::move(nodes), 2});
  batch.structs(2, {std::move(buffers), 2});
  CRETO_TRY(message(batch, header_record_batch, body, &blocks_.emplace_back()));
  for (Column& column : columns_) clear(column);
  rows_ = 0;
  bytes_ = 0;
  return {};
}

Result<> ArrowWriter::finish() {
  CRETO_TRY(flush());
  Bytes end(8, 0);
  std::memset(end.data(), 0xFF, 4);
  CRETO_TRY(write(end));
  FlatTable schema;
  put_schema(schema, columns_);
  std::vector<std::int64_t> blocks;
  for (const Block& block : blocks_) {
    blocks.push_back(block.offset);
    blocks.push_back(block.metadata);
    blocks.push_back(block.body);
  }
  FlatTable footer;
  footer.scalar(0, version_5);
  footer.table(1, std::move(schema));
  footer.structs(2, {{}, 3});
  footer.structs(3, {std::move(blocks), 3});
  Bytes bytes = footer.whole();
  const auto size = static_cast<std::int32_t>(bytes.size());
  CRETO_TRY(write(bytes));
  Bytes tail(4 + magic.size());
  std::memcpy(tail.data(), &size, sizeof size);
  std::memcpy(tail.data() + 4, magic.data(), magic.size());
  return write(tail);
}

}  // namespace creto::app
