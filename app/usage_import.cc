#include "usage_import.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/csv.h"
#include "creto/common/json.h"
#include "creto/crypto/hash.h"
#include "creto/io/files.h"

namespace creto::app {
namespace {

constexpr std::string_view service = "creto.metering.v1.MeteringService/";
constexpr std::size_t batch_events = 1'000;
constexpr std::size_t batch_bytes = 4 << 20;
constexpr std::size_t line_bytes_max = 1 << 20;
constexpr std::size_t refusals_shown = 20;
constexpr std::size_t waiting_max = 10'000;
constexpr std::size_t attempts_max = 4;  // the first and three more, as of what comes by the bus
constexpr std::size_t progress_bytes_max = 1 << 20;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

/// A line, and whose.
struct Line {
  std::uint64_t number = 0;
  std::string text{};
};

/// Reads lines without ever holding more than the longest that is allowed, and knows what all that came before hashes
/// to.
class LineReader {
 public:
  static Result<LineReader> open(const std::filesystem::path& file) {
    LineReader reader;
    reader.in_.open(file, std::ios::binary);
    if (!reader.in_) return invalid(fmt::format("`{}` cannot be read", file.string()));
    reader.path_ = file;
    return reader;
  }
  enum class Got : std::uint8_t { line, too_long, end };
  /// The next line without its end; of one that is too long nothing.
  Result<Got> next(Line& line) {
    line.text.clear();
    bool any = false;
    bool too_long = false;
    for (int c = in_.get(); c != std::ifstream::traits_type::eof(); c = in_.get()) {
      any = true;
      ++offset_;
      if (c == '\n') break;
      if (line.text.size() == line_bytes_max) {
        too_long = true;
        before_ = next_hash(line.text);
        line.text.clear();
      }
      line.text += static_cast<char>(c);
    }
    if (in_.bad()) return invalid(fmt::format("`{}` cannot be read", path_.string()));
    if (!any) return Got::end;
    before_ = next_hash(line.text);
    line.number = ++number_;
    if (too_long) line.text.clear();
    if (!line.text.empty() && line.text.back() == '\r') line.text.pop_back();
    return too_long ? Got::too_long : Got::line;
  }
  std::uint64_t offset() const { return offset_; }
  /// Of all lines so far, each hashed with the hash of those before.
  const Hash256& hash() const { return before_; }

 private:
  Hash256 next_hash(std::string_view piece) const {
    crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
    hasher.update(before_);
    hasher.update(as_bytes(piece));
    return hasher.finish();
  }

  std::ifstream in_;
  std::filesystem::path path_;
  std::uint64_t offset_ = 0, number_ = 0;
  Hash256 before_{};
};

/// Lines that were refused, in a file that can be imported when they are mended, and why, in another.
class Refused {
 public:
  explicit Refused(const std::filesystem::path& file)
      : lines_path_(file.string() + ".refused"), reasons_path_(file.string() + ".refused.why") {}
  struct Sizes {
    std::uint64_t lines = 0, reasons = 0, count = 0;
  };
  /// Forgets what was written after `sizes` were saved.
  Result<> begin(const Sizes& sizes) {
    sizes_ = sizes;
    CRETO_TRY(cut(lines_path_, sizes.lines));
    return cut(reasons_path_, sizes.reasons);
  }
  void use_header(std::string header) { header_ = std::move(header); }

  Result<> add(const Line& line, std::string_view why, bool keep = true) {
    if (!lines_) {
      lines_ = CRETO_TRY(io::real_files().open_append(lines_path_, 0644));
      reasons_ = CRETO_TRY(io::real_files().open_append(reasons_path_, 0644));
    }
    std::string kept;
    if (sizes_.lines == 0 && !header_.empty()) kept = header_ + "\n";
    if (keep) kept += line.text + "\n";
    std::string reason = fmt::format("line {}: {}", line.number, why);
    std::ranges::replace(reason, '\n', ' ');
    if (shown_.size() < refusals_shown) shown_.push_back(reason);
    reason += '\n';
    CRETO_TRY(lines_->append(as_bytes(kept)));
    CRETO_TRY(reasons_->append(as_bytes(reason)));
    sizes_.lines += kept.size();
    sizes_.reasons += reason.size();
    ++sizes_.count;
    return {};
  }
  /// What `sizes` says is on disk then.
  Result<> sync() {
    if (!lines_) return {};
    CRETO_TRY(lines_->sync());
    return reasons_->sync();
  }
  const Sizes& sizes() const { return sizes_; }
  const std::vector<std::string>& shown() const { return shown_; }
  const std::filesystem::path& path() const { return lines_path_; }

 private:
  static Result<> cut(const std::filesystem::path& path, std::uint64_t size) {
    if (size == 0) return io::real_files().remove(path);
    const std::uint64_t there = CRETO_TRY(io::real_files().size(path));
    if (there < size) return invalid(fmt::format("`{}` is shorter than it was: give --restart", path.string()));
    return io::real_files().truncate(path, size);
  }

  const std::filesystem::path lines_path_, reasons_path_;
  std::unique_ptr<io::WritableFile> lines_, reasons_;
  Sizes sizes_;
  std::string header_;  ///< of CSV
  std::vector<std::string> shown_;
};

/// How far an import has come, in a file beside the imported one, which it belongs to by a hash of what was read.
struct Progress {
  std::uint64_t offset = 0;
  std::string hash{};  ///< of all before `offset`, in hex
  Refused::Sizes refused{};
  std::uint64_t taken = 0, known = 0;
  std::vector<std::uint64_t> waiting{};  ///< lines before `offset` whose agent or target was not known, ascending

  static std::filesystem::path path_of(const std::filesystem::path& file) { return file.string() + ".progress"; }
  static Result<Progress> load(const std::filesystem::path& file) {
    Progress progress;
    const auto path = path_of(file);
    if (!CRETO_TRY(io::real_files().exists(path))) return progress;
    const Bytes bytes = CRETO_TRY(io::real_files().read(path, progress_bytes_max));
    const auto damaged = [&] {
      return invalid(fmt::format("`{}` is no progress of an import: remove it, or give --restart", path.string()));
    };
    const auto json = parse_json(as_text(bytes), {.bytes_max = progress_bytes_max});
    if (!json) return damaged();
    JsonReader reader(*json, "progress");
    const auto number = [&](std::string_view name) { return static_cast<std::uint64_t>(reader.integer(name)); };
    progress.offset = number("offset");
    progress.hash = reader.text("hash");
    progress.refused = {number("refused_bytes"), number("reasons_bytes"), number("refused")};
    progress.taken = number("taken");
    progress.known = number("known");
    for (const Json& line : reader.array("waiting")) {
      if (!line.is_number_unsigned()) return damaged();
      progress.waiting.push_back(line.get<std::uint64_t>());
    }
    if (!reader.finish()) return damaged();
    return progress;
  }
  Result<> save(const std::filesystem::path& file) const {
    const Json json{{"offset", std::to_string(offset)},
                    {"hash", hash},
                    {"refused", std::to_string(refused.count)},
                    {"refused_bytes", std::to_string(refused.lines)},
                    {"reasons_bytes", std::to_string(refused.reasons)},
                    {"taken", std::to_string(taken)},
                    {"known", std::to_string(known)},
                    {"waiting", waiting}};
    return io::write_durably(io::real_files(), path_of(file), as_bytes(json.dump() + "\n"), 0644);
  }
};

/// Sends reports and CloudEvents in batches and sorts what became of them.
class Import {
 public:
  Import(cli::Server& server, Refused& refused) : server_(server), refused_(refused) {}

  Result<> add(Line line, Json event) {
    // A CloudEvent says so; what it is decides the call, so a batch has one kind.
    const bool cloud = event.is_object() && event.contains("specversion");
    if (!batch_.empty() && cloud != cloud_) CRETO_TRY(send());
    cloud_ = cloud;
    bytes_ += line.text.size();
    batch_.push_back(std::move(event));
    lines_.push_back(std::move(line));
    return batch_.size() == batch_events || bytes_ >= batch_bytes ? send() : Result<>();
  }
  Result<> send() {
    if (batch_.empty()) return {};
    const Json request{{"events", std::move(batch_)}};
    const Json response =
        CRETO_TRY(server_.call(std::string(service) + (cloud_ ? "IngestCloudEvents" : "ReportUsage"), request));
    const Json items = response.value("items", Json::array());
    if (items.size() != lines_.size())
      return Error(Product::platform, ErrorKind::internal, "the server's answer is short");
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (!items[i].contains("error")) {
        ++(items[i].value("duplicate", false) ? known_ : taken_);
        continue;
      }
      const std::string code = items[i]["error"].value("code", "");
      const std::string why = fmt::format("{} {}", code, items[i]["error"].value("message", ""));
      // Who or what it names may come later, in this file or elsewhere.
      if (code == "MT-404" && waiting_.size() < waiting_max) {
        const std::uint64_t number = lines_[i].number;
        waiting_.emplace(number, Waiting{std::move(lines_[i]), why});
      } else {
        CRETO_TRY(refused_.add(lines_[i], why));
      }
    }
    batch_ = Json::array();
    lines_.clear();
    bytes_ = 0;
    return {};
  }
  bool empty() const { return batch_.empty(); }
  struct Waiting {
    Line line;
    std::string why;
  };
  std::map<std::uint64_t, Waiting>& waiting() { return waiting_; }
  std::uint64_t taken() const { return taken_; }
  std::uint64_t known() const { return known_; }
  std::uint64_t seen() const { return taken_ + known_ + waiting_.size() + refused_.sizes().count; }
  void go_on_from(const Progress& progress) {
    taken_ = progress.taken;
    known_ = progress.known;
  }

 private:
  cli::Server& server_;
  Refused& refused_;
  Json batch_ = Json::array();
  std::vector<Line> lines_;
  std::size_t bytes_ = 0;
  bool cloud_ = false;
  std::uint64_t taken_ = 0, known_ = 0;
  std::map<std::uint64_t, Waiting> waiting_;
};

/// What a line says: JSON, or a row under the names of the first.
class Format {
 public:
  explicit Format(bool csv) : csv_(csv) {}
  /// Whether the line only gives names.
  Result<bool> take_header(const Line& line) {
    if (!csv_ || !names_.empty()) return false;
    names_ = CRETO_TRY(cli::split_csv(line.text));
    return true;
  }
  Result<Json> read(const Line& line) const {
    if (!csv_) return parse_json(line.text);
    const auto cells = CRETO_TRY(cli::split_csv(line.text));
    return cli::report_of_csv(names_, cells);
  }

 private:
  const bool csv_;
  std::vector<std::string> names_;
};

/// One file on its way in.
class FileImport {
 public:
  FileImport(const ImportOptions& given, bool csv, cli::Server& server)
      : given_(given), format_(csv), refused_(given.file), import_(server, refused_) {}

  Result<> run() {
    Progress progress;
    if (!given_.restart) progress = CRETO_TRY(Progress::load(given_.file));
    CRETO_TRY(refused_.begin(progress.refused));
    import_.go_on_from(progress);
    auto reader = CRETO_TRY(LineReader::open(given_.file));
    const std::uint64_t size = CRETO_TRY(io::real_files().size(given_.file));
    const bool tell = ::isatty(STDERR_FILENO) == 1;
    bool resumed = progress.offset == 0;
    Line line;
    for (;;) {
      const LineReader::Got got = CRETO_TRY(reader.next(line));
      const bool before = reader.offset() <= progress.offset;
      if (!resumed && (got == LineReader::Got::end || !before || reader.offset() == progress.offset)) {
        if (reader.offset() != progress.offset || hex(reader.hash()) != progress.hash) return other_file();
        resumed = true;
      }
      if (got == LineReader::Got::end) break;
      CRETO_TRY(take(got, std::move(line), before, progress));
      if (before || !import_.empty()) continue;
      CRETO_TRY(save(reader));
      if (tell)
        fmt::print(stderr, "\r{} events, {} %", import_.seen(),
                   reader.offset() * 100 / std::max<std::uint64_t>(size, 1));
    }
    CRETO_TRY(import_.send());
    CRETO_TRY(save(reader));
    CRETO_TRY(try_again());
    CRETO_TRY(refused_.sync());
    CRETO_TRY(io::real_files().remove(Progress::path_of(given_.file)));
    if (tell) fmt::print(stderr, "\r{} events, 100 %\n", import_.seen());
    return {};
  }

  Output output() const {
    const std::uint64_t refused = refused_.sizes().count;
    Output output;
    output.text = fmt::format("{} taken, {} known already, {} refused\n", import_.taken(), import_.known(), refused);
    for (const std::string& refusal : refused_.shown()) output.text += refusal + "\n";
    if (refused > 0)
      output.text += fmt::format("`{}` has the lines that were refused, `{}.why` the reason of each\n",
                                 refused_.path().string(), refused_.path().string());
    output.json = Json{{"taken", import_.taken()},
                       {"known", import_.known()},
                       {"refused", refused},
                       {"refusals", refused_.shown()},
                       {"refused_file", refused > 0 ? refused_.path().string() : ""}}
                      .dump(2);
    output.exit_code = refused == 0 ? 0 : 1;
    return output;
  }

 private:
  Result<> take(LineReader::Got got, Line line, bool before, const Progress& progress) {
    if (got == LineReader::Got::too_long) {
      if (before) return {};
      return refused_.add(line, fmt::format("is over {} bytes, and is not kept", line_bytes_max), false);
    }
    if (line.text.empty()) return {};
    if (CRETO_TRY(format_.take_header(line))) {
      refused_.use_header(line.text);
      return {};
    }
    if (before) {
      if (std::ranges::binary_search(progress.waiting, line.number))
        import_.waiting().emplace(line.number, Import::Waiting{line, ""});
      return {};
    }
    auto event = format_.read(line);
    if (!event) return refused_.add(line, event.error().message());
    return import_.add(std::move(line), *std::move(event));
  }

  Result<> save(const LineReader& reader) {
    CRETO_TRY(refused_.sync());
    Progress progress{.offset = reader.offset(),
                      .hash = hex(reader.hash()),
                      .refused = refused_.sizes(),
                      .taken = import_.taken(),
                      .known = import_.known()};
    for (const auto& [number, waiting] : import_.waiting()) progress.waiting.push_back(number);
    return progress.save(given_.file);
  }

  /// What was not known may be by now, also by what stood behind it. Whoever is still unknown is refused.
  Result<> try_again() {
    for (std::size_t attempt = 1; attempt < attempts_max && !import_.waiting().empty(); ++attempt) {
      auto again = std::exchange(import_.waiting(), {});
      for (auto& [number, waiting] : again) {
        auto event = format_.read(waiting.line);
        if (!event) return std::move(event).error();
        CRETO_TRY(import_.add(std::move(waiting.line), *std::move(event)));
      }
      CRETO_TRY(import_.send());
    }
    for (const auto& [number, waiting] : import_.waiting()) CRETO_TRY(refused_.add(waiting.line, waiting.why));
    import_.waiting().clear();
    return {};
  }

  Error other_file() const {
    return invalid(fmt::format("`{}` is of a file with another beginning: remove it, or give --restart",
                               Progress::path_of(given_.file).string()));
  }

  const ImportOptions& given_;
  Format format_;
  Refused refused_;
  Import import_;
};

}  // namespace

Result<Output> import_usage(const ImportOptions& given, const cli::CallOptions& options) {
  const std::string format = !given.format.empty() ? given.format : given.file.extension() == ".csv" ? "csv" : "jsonl";
  if (format != "csv" && format != "jsonl") return invalid(fmt::format("--format `{}`: must be jsonl or csv", format));
  const Home home = CRETO_TRY(Home::locate());
  const auto server = CRETO_TRY(cli::Server::connect(home, options));
  FileImport import(given, format == "csv", *server);
  CRETO_TRY(import.run());
  return import.output();
}

}  // namespace creto::app
