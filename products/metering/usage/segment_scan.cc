#include "usage/segment_scan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <utility>

#include "creto/common/assert.h"

namespace creto::metering::detail {
namespace {

constexpr std::uint32_t cut = UINT32_MAX - 1;  ///< a bound lies inside this quarter of an hour: look at the row's time
constexpr std::size_t chunk_rows = 4096;
constexpr std::size_t dense_cells_max = 1 << 22;

/// A dictionary-coded column of each row: of a property, or of the type.
class CodeColumn {
 public:
  static Result<CodeColumn> of_type(const Columns& columns) {
    CodeColumn column;
    column.texts_ = CRETO_TRY(columns.texts(Column::types));
    column.codes_ = CRETO_TRY(columns.numbers(Column::type));
    return column;
  }
  static Result<CodeColumn> of_property(const Columns& columns, std::string_view name) {
    CodeColumn column;
    column.texts_ = CRETO_TRY(columns.texts(Column::values, name));
    column.codes_ = CRETO_TRY(columns.numbers(Column::value, name));
    column.sparse_ = column.codes_.size() < columns.rows();
    if (columns.has(Column::value_rows, name)) {
      column.rows_ = CRETO_TRY(columns.numbers(Column::value_rows, name));
    }
    return column;
  }
  const Texts& texts() const { return texts_; }
  void read(std::size_t from, std::span<std::uint32_t> out) const {
    if (!sparse_) {
      codes_.read(from, out);
      return;
    }
    std::ranges::fill(out, 0);
    for (std::size_t at = rows_.lower_bound(static_cast<std::int64_t>(from)); at < rows_.size(); ++at) {
      const std::size_t row = static_cast<std::size_t>(rows_.at(at)) - from;
      if (row >= out.size()) break;
      out[row] = static_cast<std::uint32_t>(codes_.at(at));
    }
  }

 private:
  Texts texts_;
  Numbers codes_, rows_;
  bool sparse_ = false;
};

/// Sum: 64 bits where those of a whole segment fit, else 128.
template <class Sum>
struct Cell {
  std::int64_t events = 0;
  std::int64_t nanos = 0;  ///< of units, beyond the whole ones
  Sum units = 0;
  Sum cost = 0;
};

class SegmentScan {
 public:
  SegmentScan(Question& question, const Columns& columns, SegmentScratch& scratch, Groups& groups,
              std::size_t groups_max)
      : question_(question),
        query_(question.query()),
        columns_(columns),
        scratch_(scratch),
        groups_(groups),
        groups_max_(groups_max) {}

  Result<> run() {
    const bool any = CRETO_TRY(prepare());
    if (!any) return {};
    Int128 largest = std::max(columns_.range(Column::units).most, columns_.range(Column::cost_nanos).most);
    return largest * columns_.rows() <= INT64_MAX ? add_up<std::int64_t>() : add_up<Int128>();
  }

 private:
  /// Loads what the query needs of this segment; false where nothing of it counts.
  Result<bool> prepare() {
    if (columns_.rows() == 0 || !prepare_times()) return false;
    const bool some = CRETO_TRY(prepare_whom());
    if (!some) return false;
    if (any_cut_) in_slot_ = CRETO_TRY(columns_.numbers(Column::time_in_slot));
    if (slots_matter_) slot_ = CRETO_TRY(columns_.numbers(Column::time_slot));
    const bool passes = CRETO_TRY(prepare_filters());
    if (!passes) return false;
    taken_out_ = CRETO_TRY(rows_taken_out(columns_, question_.taken_out()));
    CRETO_TRY(prepare_parts());
    CRETO_TRY(prepare_measures());
    return true;
  }

  /// Which period each quarter of an hour belongs to, if it counts at all.
  bool prepare_times() {
    const Columns::Range range = columns_.range(Column::time_slot);
    first_slot_ = range.least;
    bool any = false;
    for (std::int64_t slot = range.least; slot <= range.most; ++slot) {
      const Instant begin(slot * time_slot);
      const Instant last = begin + time_slot - Nanos(1);
      std::uint32_t code = none;
      if (last >= query_.from && begin < query_.until) {
        code = period_of(begin);
        const bool whole = begin >= query_.from && last < query_.until && period_of(last) == code;
        if (!whole) {
          code = cut;
          // Every period that a row of it may be in, so that their number stands before the rows are read.
          for (Instant when = begin; when < last; when += std::chrono::minutes(1)) period_of(when);
          period_of(last);
        }
      }
      any = any || code != none;
      any_cut_ = any_cut_ || code == cut;
      slots_matter_ = slots_matter_ || code != 0;
      period_of_slot_.push_back(code);
    }
    return any;
  }
  std::uint32_t period_of(Instant when) {
    if (!question_.period()) return 0;
    const Instant begin = period_begin(*question_.period(), query_.zone, when);
    const auto [at, fresh] = local_period_.try_emplace(begin, static_cast<std::uint32_t>(periods_.size()));
    if (fresh) periods_.push_back(begin);
    return at->second;
  }

  Result<bool> prepare_whom() {
    attributions_ = CRETO_TRY(columns_.numbers(Column::attributions));
    whom_of_place_.resize(attributions_.size());
    std::vector<std::uint32_t>& local = scratch_.local_whom;
    local.resize(std::max(local.size(), question_.whom_count()), none);
    bool some = false;
    for (std::size_t i = 0; i < attributions_.size(); ++i) {
      const std::uint32_t whom = question_.whom_of(static_cast<std::size_t>(attributions_.at(i)));
      whom_of_place_[i] = none;
      if (whom == none) {
        whom_matters_ = true;
        continue;
      }
      some = true;
      if (local[whom] == none) {
        local[whom] = static_cast<std::uint32_t>(whoms_.size());
        whoms_.push_back(whom);
      }
      whom_of_place_[i] = local[whom];
    }
    for (const std::uint32_t whom : whoms_) local[whom] = none;
    whom_matters_ = whom_matters_ || question_.by_whom();
    if (some && whom_matters_) attribution_ = CRETO_TRY(columns_.numbers(Column::attribution));
    return some;
  }

  struct Filter {
    CodeColumn column;
    std::vector<std::uint8_t> passes;  ///< by code
  };
  Result<bool> prepare_filters() {
    if (!query_.event_type.empty()) {
      CodeColumn column = CRETO_TRY(CodeColumn::of_type(columns_));
      const bool passes = add_filter(std::move(column), {query_.event_type});
      if (!passes) return false;
    }
    for (const PropertyMatch& filter : query_.filters) {
      CodeColumn column = CRETO_TRY(CodeColumn::of_property(columns_, filter.property));
      const bool passes = add_filter(std::move(column), filter.values);
      if (!passes) return false;
    }
    return true;
  }
  bool add_filter(CodeColumn column, const std::vector<std::string>& values) {
    Filter filter{std::move(column), {}};
    const Texts& texts = filter.column.texts();
    filter.passes.resize(texts.size() + 1);
    for (const std::string& value : values) {
      const std::uint32_t code = texts.find(value);
      if (code != 0) filter.passes[code] = 1;
      if (value.empty()) filter.passes[0] = 1;
    }
    const bool any = std::ranges::find(filter.passes, 1) != filter.passes.end();
    filters_.push_back(std::move(filter));
    return any;
  }

  /// A part of a key, other than whom: a text or the period.
  struct Part {
    std::optional<CodeColumn> column{};  ///< none: the period
    std::size_t codes = 0;
    std::vector<std::uint32_t> shared{};  ///< by code: the code over all segments, once it is known
  };
  Result<> prepare_parts() {
    for (const std::size_t i : question_.parts()) {
      const UsageGrouping& grouping = query_.group_by[i];
      Part part;
      if (is_period(grouping.by)) {
        part.codes = periods_known_ = periods_.size();
      } else {
        CodeColumn column = CRETO_TRY(grouping.by == By::type ? CodeColumn::of_type(columns_)
                                                              : CodeColumn::of_property(columns_, grouping.property));
        part.codes = column.texts().size() + 1;
        part.column = std::move(column);
      }
      part.shared.assign(part.codes, none);
      parts_.push_back(std::move(part));
    }
    return {};
  }

  Result<> prepare_measures() {
    units_ = CRETO_TRY(columns_.numbers(Column::units));
    unit_nanos_ = CRETO_TRY(columns_.numbers(Column::unit_nanos));
    unit_nanos_matter_ = columns_.range(Column::unit_nanos).most != 0;
    CRETO_TRY(load_fines(Column::fine_unit_rows, Column::fine_units, &Fine::units));
    const Texts currencies = CRETO_TRY(columns_.texts(Column::currencies));
    currency_code_ = currencies.find(question_.accounting().code());
    if (currency_code_ == 0) return {};
    cost_ = CRETO_TRY(columns_.numbers(Column::cost_nanos));
    if (currencies.size() > 1) currency_ = CRETO_TRY(columns_.numbers(Column::currency));
    return load_fines(Column::fine_cost_rows, Column::fine_costs, &Fine::cost);
  }
  Result<> load_fines(Column rows_column, Column texts_column, Decimal Fine::* measure) {
    const Numbers rows = CRETO_TRY(columns_.numbers(rows_column));
    const Texts texts = CRETO_TRY(columns_.texts(texts_column));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<std::size_t>(rows.at(i));
      if (measure == &Fine::cost && currency_.size() > 0 && currency_.at(row) != currency_code_) continue;
      fine_rows_[row].*measure = CRETO_TRY(Decimal::parse(texts.of(static_cast<std::uint32_t>(i + 1))));
    }
    return {};
  }

  template <class Sum>
  Result<> add_up() {
    std::size_t cells = whoms_.size();
    for (const Part& part : parts_) cells = std::min(dense_cells_max + 1, cells * part.codes);
    dense_ = cells <= std::min(dense_cells_max, std::max<std::size_t>(1 << 16, std::size_t{2} * columns_.rows()));
    std::vector<Cell<Sum>> sums(dense_ ? cells : 0);
    Fines fines;
    auto next_fine = fine_rows_.begin();
    for (std::size_t from = 0; from < columns_.rows(); from += chunk_rows) {
      const std::size_t count = std::min<std::size_t>(chunk_rows, columns_.rows() - from);
      select(from, count);
      if (selected_ > 0) {
        find_cells(from, count);
        if (!dense_ && sums.size() < cell_keys_.size()) sums.resize(cell_keys_.size());
        add_rows(from, count, std::span(sums));
      }
      for (; next_fine != fine_rows_.end() && next_fine->first < from + count; ++next_fine) {
        const auto end = rows_.begin() + static_cast<std::ptrdiff_t>(selected_);
        const auto row = std::lower_bound(rows_.begin(), end, static_cast<std::uint32_t>(next_fine->first - from));
        if (row == end || *row != next_fine->first - from) continue;
        const std::uint32_t cell = cell_[static_cast<std::size_t>(row - rows_.begin())];
        CRETO_TRY(fines[cell].add(next_fine->second.units, next_fine->second.cost));
      }
    }
    return merge(std::span<const Cell<Sum>>(sums), fines);
  }

  /// The rows of a chunk that count.
  void select(std::size_t from, std::size_t count) {
    std::fill_n(keep_.begin(), count, std::uint8_t{1});
    if (whom_matters_) {
      const auto whom = std::span(whom_).first(count);
      attribution_.read(from, whom);
      for (std::uint32_t& place : whom) place = whom_of_place_[place];
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= static_cast<std::uint8_t>(whom[i] != none);
    }
    if (slots_matter_) {
      const auto period = std::span(period_).first(count);
      slot_.read(from, period);
      for (std::uint32_t& slot : period) slot = period_of_slot_[slot - static_cast<std::uint32_t>(first_slot_)];
      if (any_cut_) resolve_cuts(from, period);
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= static_cast<std::uint8_t>(period[i] != none);
    }
    for (const Filter& filter : filters_) {
      const auto codes = std::span(codes_).first(count);
      filter.column.read(from, codes);
      for (std::size_t i = 0; i < count; ++i) keep_[i] &= filter.passes[codes[i]];
    }
    for (; next_taken_out_ < taken_out_.size() && taken_out_[next_taken_out_] < from + count; ++next_taken_out_) {
      keep_[taken_out_[next_taken_out_] - from] = 0;
    }
    selected_ = 0;
    for (std::size_t i = 0; i < count; ++i) {
      rows_[selected_] = static_cast<std::uint32_t>(i);
      selected_ += keep_[i];
    }
  }
  void resolve_cuts(std::size_t from, std::span<std::uint32_t> period) {
    for (std::size_t i = 0; i < period.size(); ++i) {
      if (period[i] != cut) continue;
      const Instant time(slot_.at(from + i) * time_slot + Nanos(in_slot_.at(from + i)));
      period[i] = time >= query_.from && time < query_.until ? period_of(time) : none;
      CRETO_ASSERT(period[i] == none || !question_.period() || period[i] < periods_known_);
    }
  }

  /// The cell of each selected row.
  void find_cells(std::size_t from, std::size_t count) {
    const auto rows = std::span(rows_).first(selected_);
    const bool by_whom = question_.by_whom();
    if (dense_) {
      for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] = by_whom ? whom_[rows[j]] : 0;
    } else {
      row_keys_.assign(rows.size(), Key{});
      for (std::size_t j = 0; j < rows.size(); ++j) row_keys_[j][0] = by_whom ? whom_[rows[j]] : 0;
    }
    std::size_t stride = by_whom ? whoms_.size() : 1;
    std::size_t place = by_whom ? 1 : 0;
    for (const Part& part : parts_) {
      auto codes = std::span<const std::uint32_t>(period_).first(count);
      if (part.column) {
        part.column->read(from, std::span(codes_).first(count));
        codes = std::span(codes_).first(count);
      } else if (!slots_matter_) {
        std::fill_n(period_.begin(), count, 0);
      }
      if (dense_) {
        for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] += static_cast<std::uint32_t>(stride) * codes[rows[j]];
      } else {
        for (std::size_t j = 0; j < rows.size(); ++j) row_keys_[j][place] = codes[rows[j]];
      }
      stride *= part.codes;
      ++place;
    }
    if (dense_) return;
    for (std::size_t j = 0; j < rows.size(); ++j) cell_[j] = cell_keys_.number(row_keys_[j]);
  }

  /// One pass over the cells, since where they lie is what costs time.
  template <class Sum>
  void add_rows(std::size_t from, std::size_t count, std::span<Cell<Sum>> sums) {
    const auto units = std::span(numbers_).first(count);
    const auto costs = std::span(costs_).first(count);
    units_.read(from, units);
    read_costs(from, costs);
    for (std::size_t j = 0; j < selected_; ++j) {
      Cell<Sum>& cell = sums[cell_[j]];
      ++cell.events;
      cell.units += units[rows_[j]];
      cell.cost += costs[rows_[j]];
    }
    if (!unit_nanos_matter_) return;
    unit_nanos_.read(from, units);
    for (std::size_t j = 0; j < selected_; ++j) sums[cell_[j]].nanos += units[rows_[j]];
  }
  void read_costs(std::size_t from, std::span<std::int64_t> costs) {
    if (cost_.size() == 0) {
      std::ranges::fill(costs, 0);
      return;
    }
    cost_.read(from, costs);
    if (currency_.size() == 0) return;
    const auto codes = std::span(codes_).first(costs.size());
    currency_.read(from, codes);
    for (std::size_t i = 0; i < costs.size(); ++i) costs[i] = codes[i] == currency_code_ ? costs[i] : 0;
  }

  /// Into the groups over all segments.
  template <class Sum>
  Result<> merge(std::span<const Cell<Sum>> sums, const Fines& fines) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const Cell<Sum>& cell = sums[i];
      if (cell.events == 0) continue;
      const Total total{cell.events, static_cast<Int128>(cell.units) * 1'000'000'000 + cell.nanos,
                        static_cast<Int128>(cell.cost)};
      const std::uint32_t group = groups_.add(shared_key(i), total);
      if (groups_.totals.size() > groups_max_) {
        return Error(Product::metering, ErrorKind::resource_exhausted,
                     fmt::format("usage query: has more than {} groups; narrow it", groups_max_));
      }
      if (fines.empty()) continue;
      const auto fine = fines.find(static_cast<std::uint32_t>(i));
      if (fine != fines.end()) CRETO_TRY(groups_.fines[group].add(fine->second.units, fine->second.cost));
    }
    return {};
  }
  Key shared_key(std::size_t cell) {
    Key key{};
    const bool by_whom = question_.by_whom();
    std::size_t place = by_whom ? 1 : 0;
    std::size_t rest = cell;
    if (by_whom) {
      key[0] = whoms_[dense_ ? rest % whoms_.size() : cell_keys_[cell][0]];
      rest /= whoms_.size();
    }
    for (Part& part : parts_) {
      const std::size_t code = dense_ ? rest % part.codes : cell_keys_[cell][place];
      rest /= part.codes;
      std::uint32_t& shared = part.shared[code];
      if (shared == none) {
        shared = part.column ? question_.text_code(part.column->texts().of(static_cast<std::uint32_t>(code)))
                             : question_.period_code(periods_[code]);
      }
      key[place++] = shared;
    }
    return key;
  }

  Question& question_;
  const UsageQuery& query_;
  const Columns& columns_;
  SegmentScratch& scratch_;
  Groups& groups_;
  const std::size_t groups_max_;

  std::int64_t first_slot_ = 0;
  bool slots_matter_ = false;
  bool any_cut_ = false;
  std::vector<std::uint32_t> period_of_slot_;  ///< from `first_slot_`: a place in `periods_`, none or cut
  std::map<Instant, std::uint32_t> local_period_;
  std::vector<Instant> periods_;
  std::size_t periods_known_ = 0;  ///< when the rows are read
  Numbers slot_, in_slot_;

  bool whom_matters_ = false;
  Numbers attributions_, attribution_;
  std::vector<std::uint32_t> whom_of_place_;  ///< place in `attributions` to place in `whoms_`, or none
  std::vector<std::uint32_t> whoms_;

  std::vector<Filter> filters_;
  std::vector<std::uint32_t> taken_out_;  ///< rows
  std::size_t next_taken_out_ = 0;
  std::vector<Part> parts_;
  bool dense_ = true;
  Keys cell_keys_;  ///< of cells that are not dense
  std::vector<Key> row_keys_;

  Numbers units_, unit_nanos_, cost_, currency_;
  bool unit_nanos_matter_ = false;
  std::uint32_t currency_code_ = 0;
  std::map<std::size_t, Fine> fine_rows_;

  // Of one chunk.
  std::array<std::uint8_t, chunk_rows> keep_;
  std::array<std::uint32_t, chunk_rows> rows_;  ///< the selected ones
  std::size_t selected_ = 0;
  std::array<std::uint32_t, chunk_rows> whom_, period_, codes_, cell_;
  std::array<std::int64_t, chunk_rows> numbers_, costs_;
};

}  // namespace

Result<> scan_segment(Question& question, const Columns& columns, SegmentScratch& scratch, Groups& groups,
                      std::size_t groups_max) {
  return std::make_unique<SegmentScan>(question, columns, scratch, groups, groups_max)->run();
}

}  // namespace creto::metering::detail
