#include "key_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <queue>

#include "creto/common/assert.h"
#include "creto/crypto/hash.h"
#include "layout.h"
#include "tables/number_table.h"

// A run: the magic; pages of 4 KiB with up to 102 entries in the order of their keys (newest first among equals), the
// number of entries and a checksum; the filter; the first key of each page; a footer of fixed size.
namespace creto::metering {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "CRETOK1\n";
constexpr std::size_t page_bytes = 4096;
constexpr std::size_t page_entries = (page_bytes - 12) / sizeof(KnownKey);
constexpr std::size_t bits_per_key = 16;
constexpr std::size_t merge_width = 8;
constexpr std::size_t smallest_class = 1 << 17;
constexpr std::size_t write_chunk = 4 << 20;

bool before(const KnownKey& a, const KnownKey& b) { return a.key != b.key ? a.key < b.key : a.arrived_s > b.arrived_s; }

std::uint64_t checksum(BytesView bytes) {
  const Hash256 hash = crypto::blake3(bytes);
  std::uint64_t sum = 0;
  std::memcpy(&sum, hash.data(), sizeof sum);
  return sum;
}

/// A blocked Bloom filter: all bits of a key lie in one cache line.
class Filter {
 public:
  struct alignas(64) Line {
    std::array<std::uint64_t, 8> words{};
  };
  using Lines = std::vector<Line, LargePages<Line>>;
  static constexpr int probes = 7;

  Filter() = default;
  explicit Filter(std::size_t keys) : lines_(keys * bits_per_key / 512 + 1) {}
  explicit Filter(Lines lines) : lines_(std::move(lines)) {}

  void add(const KeyHash& key) {
    Line& line = lines_[place(key)];
    each_bit(key, [&](std::size_t word, std::uint64_t bit) {
      line.words[word] |= bit;
      return true;
    });
  }
  bool may_have(const KeyHash& key) const {
    const Line& line = lines_[place(key)];
    return each_bit(key, [&](std::size_t word, std::uint64_t bit) { return (line.words[word] & bit) != 0; });
  }
  void prefetch(const KeyHash& key) const { __builtin_prefetch(&lines_[place(key)]); }
  BytesView bytes() const {
    return {reinterpret_cast<const std::uint8_t*>(lines_.data()), lines_.size() * sizeof(Line)};
  }

 private:
  std::size_t place(const KeyHash& key) const {
    __extension__ typedef unsigned __int128 Wide;
    return static_cast<std::size_t>(static_cast<Wide>(key.high) * lines_.size() >> 64);
  }
  template <class F>
  static bool each_bit(const KeyHash& key, F&& use) {
    std::uint64_t bits = key.low;
    for (int i = 0; i < probes; ++i, bits >>= 9) {
      if (!use((bits >> 6) & 7, std::uint64_t{1} << (bits & 63))) return false;
    }
    return true;
  }
  Lines lines_;
};

struct Footer {
  std::uint64_t entries = 0;
  std::uint64_t pages = 0;
  std::uint64_t filter_bytes = 0;
  std::uint32_t first = 0, last = 0;  ///< segments
  std::uint32_t newest_s = 0;
  std::uint32_t reserved = 0;
  std::uint64_t sum = 0;  ///< of filter, fences and what stands before
};

Error damaged(const fs::path& path) {
  return Error(Product::metering, ErrorKind::hash_mismatch, fmt::format("`{}` is damaged", path.string()));
}

}  // namespace

/// Entries in the order of their arrival, found by a few bits of their keys: a key never seen costs one cache line.
class KeyIndex::Table {
 public:
  explicit Table(std::size_t expected) : numbers_(expected) { entries_.reserve(expected); }

  void prefetch(const KeyHash& key) const { numbers_.prefetch(short_of(key)); }
  /// Of several the newest.
  const KnownKey* find(const KeyHash& key) const {
    const KnownKey* found = nullptr;
    numbers_.find(short_of(key), [&](std::uint32_t number) {
      const KnownKey& entry = entries_[number - 1];
      if (entry.key == key && (found == nullptr || entry.arrived_s >= found->arrived_s)) found = &entry;
      return false;
    });
    return found;
  }
  void insert(const KnownKey& entry) {
    CRETO_ASSERT(entries_.size() < UINT32_MAX);
    entries_.push_back(entry);
    numbers_.insert(short_of(entry.key), static_cast<std::uint32_t>(entries_.size()));
  }
  void erase_last(const KeyHash& key) {
    CRETO_ASSERT(!entries_.empty() && entries_.back().key == key);
    numbers_.erase(short_of(key), static_cast<std::uint32_t>(entries_.size()));
    entries_.pop_back();
  }
  std::size_t size() const { return entries_.size(); }
  std::size_t memory_bytes() const { return entries_.capacity() * sizeof(KnownKey) + numbers_.memory_bytes(); }
  std::vector<KnownKey> sorted() const {
    std::vector<KnownKey> entries(entries_.begin(), entries_.end());
    std::ranges::sort(entries, before);
    return entries;
  }

 private:
  static std::uint32_t short_of(const KeyHash& key) { return static_cast<std::uint32_t>(key.high); }

  std::vector<KnownKey, LargePages<KnownKey>> entries_;
  NumberTable numbers_;
};

class KeyIndex::Run {
 public:
  Run(io::FileSystem& files, fs::path path, Footer footer, Filter filter, std::vector<std::uint64_t> fences)
      : files_(files),
        path_(std::move(path)),
        footer_(footer),
        filter_(std::move(filter)),
        fences_(std::move(fences)) {}

  static Result<std::shared_ptr<const Run>> open(io::FileSystem& files, const fs::path& path) {
    const std::uint64_t size = CRETO_TRY(files.size(path));
    if (size < magic.size() + sizeof(Footer)) return damaged(path);
    const Bytes tail = CRETO_TRY(files.read_at(path, size - sizeof(Footer), sizeof(Footer)));
    if (tail.size() != sizeof(Footer)) return damaged(path);
    Footer footer;
    std::memcpy(&footer, tail.data(), sizeof footer);
    const std::uint64_t index_bytes = footer.filter_bytes + footer.pages * 8;
    const bool fits = footer.pages <= size / page_bytes && footer.filter_bytes <= size &&
                      magic.size() + footer.pages * page_bytes + index_bytes + sizeof(Footer) == size &&
                      footer.filter_bytes % sizeof(Filter::Line) == 0 && footer.filter_bytes > 0;
    if (!fits) return damaged(path);
    Bytes index = CRETO_TRY(files.read_at(path, magic.size() + footer.pages * page_bytes, index_bytes));
    if (index.size() != index_bytes || sum_of(footer, index) != footer.sum) return damaged(path);
    Filter::Lines lines(footer.filter_bytes / sizeof(Filter::Line));
    std::memcpy(lines.data(), index.data(), footer.filter_bytes);
    std::vector<std::uint64_t> fences(footer.pages);
    if (!fences.empty()) std::memcpy(fences.data(), index.data() + footer.filter_bytes, footer.pages * 8);
    return std::make_shared<const Run>(files, path, footer, Filter(std::move(lines)), std::move(fences));
  }

  static std::uint64_t sum_of(Footer footer, BytesView index) {
    footer.sum = 0;
    crypto::Hasher hasher(crypto::HashAlgorithm::blake3);
    hasher.update(index);
    hasher.update({reinterpret_cast<const std::uint8_t*>(&footer), sizeof footer});
    const Hash256 hash = hasher.finish();
    std::uint64_t sum = 0;
    std::memcpy(&sum, hash.data(), sizeof sum);
    return sum;
  }

  void prefetch(const KeyHash& key) const { filter_.prefetch(key); }

  Result<std::optional<KnownKey>> find(const KeyHash& key, std::uint32_t since_s) const {
    if (!filter_.may_have(key)) return std::optional<KnownKey>();
    // The last page that begins at or before the key; where it begins with it, the newest may end the page before.
    std::optional<KnownKey> newest;
    for (auto fence = std::ranges::upper_bound(fences_, key.high); fence != fences_.begin();) {
      --fence;
      const auto entries = CRETO_TRY(page(static_cast<std::size_t>(fence - fences_.begin())));
      const auto found = std::ranges::lower_bound(entries, key, {}, &KnownKey::key);
      if (found != entries.end() && found->key == key) newest = *found;
      if (found != entries.begin()) break;
    }
    if (newest && newest->arrived_s < since_s) newest.reset();
    return newest;
  }

  Result<std::vector<KnownKey>> page(std::size_t number) const {
    const Bytes bytes = CRETO_TRY(files_.read_at(path_, magic.size() + number * page_bytes, page_bytes));
    return entries_of(bytes);
  }
  Result<std::vector<KnownKey>> entries_of(BytesView bytes) const {
    layout::Reader reader(bytes);
    const BytesView content = reader.bytes(page_entries * sizeof(KnownKey));
    const auto count = reader.get<std::uint32_t>();
    const auto sum = reader.get<std::uint64_t>();
    if (!reader.ok() || count > page_entries || checksum(bytes.first(page_entries * sizeof(KnownKey) + 4)) != sum) {
      return damaged(path_);
    }
    std::vector<KnownKey> entries(count);
    if (count > 0) std::memcpy(entries.data(), content.data(), count * sizeof(KnownKey));
    return entries;
  }

  io::FileSystem& files() const { return files_; }
  const fs::path& path() const { return path_; }
  const Footer& footer() const { return footer_; }
  std::size_t size_class() const {
    std::size_t size_class = 0;
    for (std::size_t bound = smallest_class; footer_.entries > bound; bound *= merge_width) ++size_class;
    return size_class;
  }
  std::size_t memory_bytes() const { return filter_.bytes().size() + fences_.size() * 8; }

 private:
  io::FileSystem& files_;
  const fs::path path_;
  const Footer footer_;
  const Filter filter_;
  const std::vector<std::uint64_t> fences_;
};

namespace {

/// Writes entries that come in their order.
class RunWriter {
 public:
  RunWriter(io::FileSystem& files, fs::path path, std::uint32_t first, std::uint32_t last, std::size_t entries_max)
      : files_(files), path_(std::move(path)), filter_(entries_max) {
    footer_.first = first;
    footer_.last = last;
    layout::put_bytes(buffer_, as_bytes(magic));
  }

  Result<> add(const KnownKey& entry) {
    if (in_page_ == 0) fences_.push_back(entry.key.high);
    page_[in_page_++] = entry;
    filter_.add(entry.key);
    ++footer_.entries;
    footer_.newest_s = std::max(footer_.newest_s, entry.arrived_s);
    return in_page_ == page_entries ? end_page() : Result<>();
  }

  Result<std::shared_ptr<const KeyIndex::Run>> finish() {
    if (in_page_ > 0) CRETO_TRY(end_page());
    footer_.pages = fences_.size();
    footer_.filter_bytes = filter_.bytes().size();
    Bytes index = to_bytes(filter_.bytes());
    layout::put_bytes(index, {reinterpret_cast<const std::uint8_t*>(fences_.data()), fences_.size() * 8});
    footer_.sum = KeyIndex::Run::sum_of(footer_, index);
    layout::put_bytes(buffer_, index);
    layout::put(buffer_, footer_);
    CRETO_TRY(write());
    CRETO_TRY(file_->sync());
    file_.reset();
    CRETO_TRY(files_.rename(temporary(), path_));
    // Before the parts of a merge are removed, and before a later run: a gap at the front would not be seen.
    CRETO_TRY(files_.sync_directory(path_.parent_path()));
    return std::make_shared<const KeyIndex::Run>(files_, path_, footer_, std::move(filter_), std::move(fences_));
  }

 private:
  fs::path temporary() const {
    fs::path path = path_;
    return path += ".new";
  }
  Result<> end_page() {
    std::fill(page_.begin() + static_cast<std::ptrdiff_t>(in_page_), page_.end(), KnownKey{});
    const std::size_t at = buffer_.size();
    layout::put_bytes(buffer_, {reinterpret_cast<const std::uint8_t*>(page_.data()), sizeof page_});
    layout::put(buffer_, static_cast<std::uint32_t>(in_page_));
    layout::put(buffer_, checksum(BytesView(buffer_).subspan(at)));
    buffer_.resize(at + page_bytes);
    in_page_ = 0;
    return buffer_.size() >= write_chunk ? write() : Result<>();
  }
  Result<> write() {
    if (!file_) file_ = CRETO_TRY(files_.create(temporary()));
    CRETO_TRY(file_->append(buffer_));
    buffer_.clear();
    return {};
  }

  io::FileSystem& files_;
  const fs::path path_;
  std::unique_ptr<io::WritableFile> file_;
  Bytes buffer_;
  std::array<KnownKey, page_entries> page_{};
  std::size_t in_page_ = 0;
  Filter filter_;
  std::vector<std::uint64_t> fences_;
  Footer footer_;
};

/// The entries of a run in their order.
class RunReader {
 public:
  explicit RunReader(const KeyIndex::Run& run) : run_(run) {}
  const KnownKey& front() const { return entries_[at_]; }
  /// False at the end.
  Result<bool> next() {
    if (++at_ < entries_.size()) return true;
    entries_.clear();
    at_ = 0;
    while (entries_.empty() && page_ < run_.footer().pages) {
      if (in_chunk_ == chunk_.size()) {
        const std::uint64_t pages = std::min<std::uint64_t>(run_.footer().pages - page_, 256);
        chunk_ = CRETO_TRY(run_.files().read_at(run_.path(), magic.size() + page_ * page_bytes, pages * page_bytes));
        in_chunk_ = 0;
        if (chunk_.size() != pages * page_bytes) return damaged(run_.path());
      }
      entries_ = CRETO_TRY(run_.entries_of(BytesView(chunk_).subspan(in_chunk_, page_bytes)));
      in_chunk_ += page_bytes;
      ++page_;
    }
    return !entries_.empty();
  }

 private:
  const KeyIndex::Run& run_;
  Bytes chunk_;
  std::size_t in_chunk_ = 0;
  std::uint64_t page_ = 0;
  std::vector<KnownKey> entries_;
  std::size_t at_ = 0;
};

/// The segments that a file's name says it covers.
std::optional<std::pair<std::uint32_t, std::uint32_t>> range_of(std::string_view name) {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  const char* end = name.data() + name.size();
  auto [at, failed] = std::from_chars(name.data(), end, first);
  if (failed != std::errc() || at == end || *at != '-') return std::nullopt;
  const auto second = std::from_chars(at + 1, end, last);
  if (second.ec != std::errc() || std::string_view(second.ptr, end) != ".keys" || first == 0 || last < first)
    return std::nullopt;
  return std::pair(first, last);
}

}  // namespace

KeyIndex::KeyIndex(io::FileSystem& files, fs::path directory)
    : files_(files), directory_(std::move(directory)), table_(std::make_shared<Table>(0)) {}
KeyIndex::~KeyIndex() = default;

fs::path KeyIndex::path_of(std::uint32_t first, std::uint32_t last) const {
  return directory_ / fmt::format("{:08}-{:08}.keys", first, last);
}

Result<std::unique_ptr<KeyIndex>> KeyIndex::open(io::FileSystem& files, fs::path directory) {
  CRETO_TRY(files.create_directories(directory));
  auto index = std::unique_ptr<KeyIndex>(new KeyIndex(files, std::move(directory)));
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges;
  const auto names = CRETO_TRY(files.list(index->directory_));
  for (const std::string& name : names) {
    if (const auto range = range_of(name)) {
      ranges.push_back(*range);
    } else if (name.ends_with(".new")) {
      CRETO_TRY(files.remove(index->directory_ / name));
    }
  }
  // A merge that was not followed by the removal of its parts leaves both: the longest from each first segment counts.
  std::ranges::sort(ranges, [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : a.second > b.second;
  });
  bool whole = true;
  for (const auto& [first, last] : ranges) {
    const fs::path path = index->path_of(first, last);
    const std::uint32_t end = index->runs_.empty() ? first - 1 : index->runs_.back()->footer().last;
    if (last <= end) {
      CRETO_TRY(files.remove(path));
      continue;
    }
    // Behind a gap or damage everything is made again.
    std::shared_ptr<const Run> run;
    if (whole && first == end + 1) {
      auto opened = Run::open(files, path);
      if (opened)
        run = *std::move(opened);
      else if (opened.error().kind() != ErrorKind::hash_mismatch)
        return std::move(opened).error();
    }
    if (run) {
      index->runs_.push_back(std::move(run));
    } else {
      whole = false;
      CRETO_TRY(files.remove(path));
    }
  }
  return index;
}

std::uint32_t KeyIndex::covered() const { return runs_.empty() ? 0 : runs_.back()->footer().last; }

void KeyIndex::prefetch(const KeyHash& key) const {
  table_->prefetch(key);
  for (const Frozen& frozen : frozen_) frozen.table->prefetch(key);
  for (const auto& run : runs_) run->prefetch(key);
}

Result<std::optional<KnownKey>> KeyIndex::find(const KeyHash& key, std::uint32_t since_s) const {
  const KnownKey* found = table_->find(key);
  for (auto frozen = frozen_.rbegin(); found == nullptr && frozen != frozen_.rend(); ++frozen) {
    found = frozen->table->find(key);
  }
  if (found != nullptr) return found->arrived_s < since_s ? std::optional<KnownKey>() : std::optional(*found);
  for (auto run = runs_.rbegin(); run != runs_.rend(); ++run) {
    if ((*run)->footer().newest_s < since_s) continue;
    auto in_run = CRETO_TRY((*run)->find(key, since_s));
    if (in_run) return in_run;
  }
  return std::optional<KnownKey>();
}

void KeyIndex::insert(const KnownKey& entry) { table_->insert(entry); }
void KeyIndex::erase_last(const KeyHash& key) { table_->erase_last(key); }

std::shared_ptr<const KeyIndex::Table> KeyIndex::freeze(std::uint32_t segment) {
  std::shared_ptr<const Table> full = std::move(table_);
  table_ = std::make_shared<Table>(full->size());
  frozen_.push_back({segment, full});
  return full;
}

Result<std::shared_ptr<const KeyIndex::Run>> KeyIndex::write_run(std::uint32_t segment, const Table& frozen) const {
  const std::vector<KnownKey> entries = frozen.sorted();
  RunWriter writer(files_, path_of(segment, segment), segment, segment, entries.size());
  for (const KnownKey& entry : entries) CRETO_TRY(writer.add(entry));
  return writer.finish();
}

Result<std::shared_ptr<const KeyIndex::Run>> KeyIndex::merge(const Runs& runs, std::uint32_t since_s) const {
  CRETO_ASSERT(runs.size() > 1);
  std::size_t entries = 0;
  for (const auto& run : runs) entries += run->footer().entries;
  const auto later = [](const RunReader* a, const RunReader* b) { return before(b->front(), a->front()); };
  std::priority_queue<RunReader*, std::vector<RunReader*>, decltype(later)> order(later);
  std::vector<std::unique_ptr<RunReader>> all;
  for (const auto& run : runs) {
    all.push_back(std::make_unique<RunReader>(*run));
    if (CRETO_TRY(all.back()->next())) order.push(all.back().get());
  }
  const std::uint32_t first = runs.front()->footer().first;
  const std::uint32_t last = runs.back()->footer().last;
  RunWriter writer(files_, path_of(first, last), first, last, entries);
  while (!order.empty()) {
    RunReader* reader = order.top();
    order.pop();
    if (reader->front().arrived_s >= since_s) CRETO_TRY(writer.add(reader->front()));
    if (CRETO_TRY(reader->next())) order.push(reader);
  }
  return writer.finish();
}

Result<> KeyIndex::adopt(std::shared_ptr<const Run> run) {
  const Footer& range = run->footer();
  std::erase_if(frozen_,
                [&](const Frozen& frozen) { return frozen.segment >= range.first && frozen.segment <= range.last; });
  std::vector<fs::path> replaced;
  std::erase_if(runs_, [&](const std::shared_ptr<const Run>& old) {
    if (old->footer().first < range.first || old->footer().last > range.last) return false;
    replaced.push_back(old->path());
    return true;
  });
  runs_.insert(std::ranges::upper_bound(runs_, range.first, {}, [](const auto& one) { return one->footer().first; }),
               std::move(run));
  for (const fs::path& path : replaced) CRETO_TRY(files_.remove(path));
  return {};
}

KeyIndex::Runs KeyIndex::mergeable() const {
  for (std::size_t end = runs_.size(); end > 0;) {
    std::size_t begin = end - 1;
    while (begin > 0 && runs_[begin - 1]->size_class() <= runs_[end - 1]->size_class()) --begin;
    if (end - begin >= merge_width) {
      return {runs_.begin() + static_cast<std::ptrdiff_t>(begin), runs_.begin() + static_cast<std::ptrdiff_t>(end)};
    }
    end = begin;
  }
  return {};
}

Result<> KeyIndex::forget_before(std::uint32_t since_s) {
  // From the front only, so that those left still follow each other.
  while (runs_.size() > 1 && runs_.front()->footer().newest_s < since_s) {
    const fs::path path = runs_.front()->path();
    runs_.erase(runs_.begin());
    CRETO_TRY(files_.remove(path));
  }
  return {};
}

std::size_t KeyIndex::memory_bytes() const {
  std::size_t bytes = table_->memory_bytes();
  for (const Frozen& frozen : frozen_) bytes += frozen.table->memory_bytes();
  for (const auto& run : runs_) bytes += run->memory_bytes();
  return bytes;
}

std::size_t KeyIndex::runs() const { return runs_.size(); }

}  // namespace creto::metering
