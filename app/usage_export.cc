#include "usage_export.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "arrow.h"
#include "creto/io/files.h"
#include "usage_events.h"
#include "usage_view.h"

namespace creto::app {
namespace {

using metering::LoggedEvent;

constexpr std::size_t rows_max = 100'000;  // of one answer

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// A file that takes its name when it is whole.
class NewFile {
 public:
  static Result<NewFile> create(std::filesystem::path path) {
    auto part = path;
    part += ".part";
    auto file = CRETO_TRY(io::real_files().create(part, 0644));
    return NewFile(std::move(path), std::move(part), std::move(file));
  }
  Result<> append(BytesView bytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return buffer_.size() < buffer_bytes ? Result<>() : flush();
  }
  Result<> finish() {
    CRETO_TRY(flush());
    CRETO_TRY(file_->sync());
    file_.reset();
    return io::real_files().rename(part_, path_);
  }

 private:
  static constexpr std::size_t buffer_bytes = 1 << 20;
  NewFile(std::filesystem::path path, std::filesystem::path part, std::unique_ptr<io::WritableFile> file)
      : path_(std::move(path)), part_(std::move(part)), file_(std::move(file)) {}
  Result<> flush() {
    CRETO_TRY(file_->append(buffer_));
    buffer_.clear();
    return {};
  }

  std::filesystem::path path_, part_;
  std::unique_ptr<io::WritableFile> file_;
  Bytes buffer_;
};

std::string properties_of(const LoggedEvent& event) {
  Json properties = Json::object();
  for (const auto& [name, value] : event.properties) properties[std::string(name)] = value;
  return properties.dump();
}

std::string csv_line(const LoggedEvent& event) {
  return csv_line_of({event.id.to_string(), to_rfc3339(event.arrived), std::string(event.org),
                      fmt::format("{}", fmt::join(event.ancestors, " ")), std::string(event.agent),
                      std::string(event.reporter), std::string(event.subscription), std::string(event.source),
                      std::string(event.usage_type), std::string(event.idempotency_key), to_rfc3339(event.time),
                      std::string(event.units), std::string(event.cost), std::string(event.currency),
                      std::string(event.replaces), std::string(event.voids), properties_of(event)});
}

std::vector<ArrowField> event_fields() {
  using enum ArrowField::Type;
  return {{"id", text},         {"arrived", instant},      {"org", text},          {"ancestors", texts},
          {"agent", text},      {"reporter", text},        {"subscription", text}, {"source", text},
          {"usage_type", text}, {"idempotency_key", text}, {"time", instant},      {"units", decimal},
          {"cost", decimal},    {"currency", text},        {"replaces", text},     {"voids", text},
          {"properties", pairs}};
}

Result<> add_row(ArrowWriter& table, const LoggedEvent& event) {
  const auto optional = [&](std::string_view value) { value.empty() ? table.null() : table.text(value); };
  table.text(event.id.to_string());
  table.instant(event.arrived);
  table.text(event.org);
  table.texts(event.ancestors);
  table.text(event.agent);
  optional(event.reporter);
  optional(event.subscription);
  optional(event.source);
  table.text(event.usage_type);
  table.text(event.idempotency_key);
  table.instant(event.time);
  CRETO_TRY(table.decimal(event.units));
  if (event.cost.empty()) {
    table.null();
  } else {
    CRETO_TRY(table.decimal(event.cost));
  }
  optional(event.currency);
  optional(event.replaces);
  optional(event.voids);
  table.pairs(event.properties);
  return table.end_row();
}

Result<std::uint64_t> export_events(const Home& home, const cli::CallOptions& options, const UsageEvents& wanted,
                                    bool arrow, NewFile& file) {
  std::optional<ArrowWriter> table;
  if (arrow) {
    table.emplace(event_fields(), [&](BytesView bytes) { return file.append(bytes); });
  } else {
    std::vector<std::string> names;
    for (const ArrowField& field : event_fields()) names.push_back(field.name);
    CRETO_TRY(file.append(as_bytes(csv_line_of(names))));
  }
  const auto write = [&](const LoggedEvent& event) -> Result<> {
    if (table) return add_row(*table, event);
    return file.append(as_bytes(csv_line(event)));
  };
  const std::uint64_t events = CRETO_TRY(each_usage_event(
      home, options, wanted, [&](std::string_view line) -> Result<> { return read_event_line(line, write); }));
  if (table) CRETO_TRY(table->finish());
  return events;
}

/// Sums as they come, a page after the other.
class Sums {
 public:
  Sums(const std::vector<std::string>& by, bool arrow, NewFile& file) : file_(file) {
    if (!arrow) return;
    using enum ArrowField::Type;
    std::vector<ArrowField> fields;
    for (const std::string& name : by) fields.push_back({name, text});
    for (const auto& [name, type] :
         {std::pair("events", integer), {"units", decimal}, {"cost", decimal}, {"currency", text}})
      fields.push_back({name, type});
    table_.emplace(std::move(fields), [&file](BytesView bytes) { return file.append(bytes); });
  }

  Result<> add(const Json& response, const std::vector<std::string>& by) {
    const std::vector<UsageLine> lines = usage_lines(response);
    if (!table_) {
      const std::string csv = usage_as_csv(response, by);
      // The names of columns stand once.
      const std::size_t begin = rows_ == 0 ? 0 : csv.find("\r\n") + 2;
      CRETO_TRY(file_.append(as_bytes(std::string_view(csv).substr(begin))));
    }
    for (const UsageLine& line : lines)
      if (table_) CRETO_TRY(add_row(line));
    rows_ += lines.size();
    return {};
  }
  Result<> finish() { return table_ ? table_->finish() : Result<>(); }
  std::uint64_t rows() const { return rows_; }

 private:
  Result<> add_row(const UsageLine& line) {
    for (const std::string& key : line.keys) table_->text(key);
    table_->integer(std::strtoll(line.events.c_str(), nullptr, 10));
    CRETO_TRY(table_->decimal(line.units));
    CRETO_TRY(table_->decimal(line.cost));
    line.currency.empty() ? table_->null() : table_->text(line.currency);
    return table_->end_row();
  }

  NewFile& file_;
  std::optional<ArrowWriter> table_;
  std::uint64_t rows_ = 0;
};

/// All rows, or the `top` first. Errors: too_large where they cannot be had in that order.
Result<std::uint64_t> export_sums(const Home& home, const cli::CallOptions& options, UsageOptions usage, bool arrow,
                                  NewFile& file) {
  const bool whole = usage.top == 0;
  if (usage.order.empty() && whole) usage.order = "keys";
  if (whole) usage.top = rows_max;
  Sums sums(usage.by, arrow, file);
  for (;;) {
    const Json response = CRETO_TRY(ask_for_usage(home, options, usage));
    CRETO_TRY(sums.add(response, usage.by));
    usage.after = response.value("next", "");
    if (!whole) break;
    if (!usage.after.empty()) continue;
    Instant from{};
    if (!usage.from.empty()) from = CRETO_TRY(usage_instant("--from", usage.from));
    note_held_since(from, response);
    const std::string groups = response.value("groups", "0");
    if (usage.order != "keys" && std::strtoull(groups.c_str(), nullptr, 10) > sums.rows())
      return Error(
          Product::platform, ErrorKind::too_large,
          fmt::format("{} rows are more than can be put into this order: give --top, or leave --order out", groups));
    break;
  }
  CRETO_TRY(sums.finish());
  return sums.rows();
}

}  // namespace

Result<Output> export_usage(const Home& home, const cli::CallOptions& options, const UsageOptions& usage,
                            const ExportOptions& wanted) {
  const bool arrow = wanted.file.extension() == ".arrow";
  if (!arrow && wanted.file.extension() != ".csv")
    return invalid(fmt::format("`{}`: must end in .csv or .arrow", wanted.file.string()));
  std::uint64_t rows = 0;
  if (!wanted.events && !wanted.log.empty()) return invalid("--log: belongs to --events");
  if (wanted.events) {
    if (!usage.type.empty() || !usage.where.empty() || !usage.order.empty() || usage.top > 0)
      return invalid("--type, --where, --order and --top: belong to sums, not to --events");
    UsageEvents events{.subject = usage.subject, .log = wanted.log, .org = wanted.org};
    if (!usage.from.empty()) events.from = CRETO_TRY(usage_instant("--from", usage.from));
    if (!usage.until.empty()) events.until = CRETO_TRY(usage_instant("--until", usage.until));
    NewFile file = CRETO_TRY(NewFile::create(wanted.file));
    rows = CRETO_TRY(export_events(home, options, events, arrow, file));
    CRETO_TRY(file.finish());
  } else {
    NewFile file = CRETO_TRY(NewFile::create(wanted.file));
    rows = CRETO_TRY(export_sums(home, options, usage, arrow, file));
    CRETO_TRY(file.finish());
  }
  Output output;
  output.text = fmt::format("{} {} in `{}`\n", rows, wanted.events ? "events" : "rows", wanted.file.string());
  output.json = Json{{"rows", rows}, {"file", wanted.file.string()}}.dump(2);
  return output;
}

}  // namespace creto::app
