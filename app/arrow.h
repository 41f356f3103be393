#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/common/result.h"
#include "creto/common/time.h"

/// Tables as Apache Arrow files, which pandas, Polars, DuckDB and spreadsheets' relatives read. Pure.
namespace creto::app {

class FlatTable;

struct ArrowField {
  enum class Type : std::uint8_t {
    text,     ///< utf8
    integer,  ///< int64
    instant,  ///< timestamp[ns, UTC]
    decimal,  ///< decimal128(38, 18)
    texts,    ///< list<utf8>
    pairs,    ///< map<utf8, utf8>
  };
  std::string name;
  Type type = Type::text;
};

/// Writes an Arrow IPC file row by row: a record batch whenever there is enough for one. Any cell may be null. Not
/// thread-safe.
class ArrowWriter {
 public:
  using Sink = std::function<Result<>(BytesView)>;
  using Pair = std::pair<std::string_view, std::string_view>;

  ArrowWriter(std::vector<ArrowField> fields, Sink sink);

  /// The cells of a row, in the order of the fields. Requires: the field's type.
  void null();
  void text(std::string_view value);
  void integer(std::int64_t value);
  void instant(Instant value);
  /// Plain decimal text. Errors: invalid_input over 20 digits before or 18 behind the point.
  Result<> decimal(std::string_view value);
  void texts(std::span<const std::string_view> values);
  void pairs(std::span<const Pair> values);

  /// Requires: every cell is set. Errors: those of the sink.
  Result<> end_row();
  /// Without it the file is none.
  Result<> finish();

 private:
  /// The buffers of one field, and of those below it.
  struct Column {
    ArrowField field;
    std::vector<bool> valid;
    Bytes values;                       ///< fixed width, or characters
    std::vector<std::int32_t> offsets;  ///< of texts, lists and maps
    std::vector<Column> children;
    std::int64_t nulls = 0;
    std::int64_t rows = 0;
  };
  struct Block {
    std::int64_t offset;
    std::int32_t metadata;
    std::int64_t body;
  };
  Column& next();
  static void add_text(Column& column, std::string_view value);
  static void set(Column& column, bool valid);
  static void clear(Column& column);
  static void put_schema(FlatTable& schema, const std::vector<Column>& columns);
  Result<> write(BytesView bytes);
  Result<> message(const FlatTable& header, std::uint8_t kind, const Bytes& body, Block* block);
  Result<> flush();

  std::vector<Column> columns_;
  const Sink sink_;
  std::size_t cell_ = 0;
  std::int64_t rows_ = 0;
  std::size_t bytes_ = 0;
  std::int64_t written_ = 0;
  bool begun_ = false;
  std::vector<Block> blocks_;
};

}  // namespace creto::app
