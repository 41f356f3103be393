#include "creto/testing/fault_files.h"

#include <algorithm>
#include <random>
#include <utility>

namespace creto::testing {
namespace {

namespace fs = std::filesystem;

Error refusal(ErrorKind kind, const fs::path& path) {
  return Error(Product::platform, kind, "`" + path.string() + "`: " + std::string(to_string(kind)));
}

std::string key_of(const fs::path& path) {
  auto text = path.lexically_normal().string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}
std::string parent_of(const std::string& key) {
  auto parent = fs::path(key).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

struct FaultFiles::Inode {
  bool directory = false;
  Bytes content;
  Bytes durable;
};

class FaultFiles::Open final : public io::WritableFile {
 public:
  Open(FaultFiles& files, std::shared_ptr<Inode> inode, std::uint64_t generation, fs::path path)
      : files_(files), inode_(std::move(inode)), generation_(generation), path_(std::move(path)) {}

  Result<> append(BytesView bytes) override {
    std::lock_guard lock(files_.mutex_);
    CRETO_TRY(usable());
    if (files_.used() + bytes.size() > files_.disk_bytes_max_) return refusal(ErrorKind::resource_exhausted, path_);
    inode_->content.insert(inode_->content.end(), bytes.begin(), bytes.end());
    return {};
  }
  Result<> sync() override {
    std::unique_lock lock(files_.mutex_);
    files_.unstalled_.wait(lock, [this] { return !files_.stalled_; });
    CRETO_TRY(usable());
    if (std::exchange(files_.sync_fails_, false)) return refusal(ErrorKind::unavailable, path_);
    inode_->durable = inode_->content;
    return {};
  }
  std::uint64_t size() const override {
    std::lock_guard lock(files_.mutex_);
    return inode_->content.size();
  }

 private:
  Result<> usable() {
    if (generation_ != files_.generation_) return refusal(ErrorKind::unavailable, path_);
    return files_.change();
  }

  FaultFiles& files_;
  std::shared_ptr<Inode> inode_;
  std::uint64_t generation_;
  fs::path path_;
};

FaultFiles::FaultFiles() = default;
FaultFiles::~FaultFiles() = default;

void FaultFiles::crash(std::uint64_t seed) {
  std::lock_guard lock(mutex_);
  ++generation_;
  die_at_ = 0;
  disk_bytes_max_ = UINT64_MAX;
  std::mt19937_64 random(seed);
  const auto survives = [&] { return seed != 0 && random() % 2 == 0; };
  // Names first: an entry of a directory that was not synced may or may not have reached the disk.
  Names names = durable_names_;
  for (const auto& [name, inode] : names_) {
    const auto durable = durable_names_.find(name);
    if ((durable == durable_names_.end() || durable->second != inode) && survives()) names[name] = inode;
  }
  for (const auto& [name, inode] : durable_names_) {
    if (!names_.contains(name) && survives()) names.erase(name);
  }
  // What stands below a directory that is gone is gone.
  for (auto entry = names.begin(); entry != names.end();) {
    const auto parent = parent_of(entry->first);
    const bool orphan = parent != "." && parent != "/" && !names.contains(parent);
    entry = orphan ? names.erase(entry) : std::next(entry);
  }
  std::set<Inode*> seen;
  for (auto& [name, inode] : names) {
    if (!seen.insert(inode.get()).second) continue;
    Bytes left = inode->durable;
    if (survives() && inode->content.size() > left.size() &&
        std::equal(left.begin(), left.end(), inode->content.begin())) {
      // A torn append: some of the tail, its end possibly never written.
      const auto kept = random() % (inode->content.size() - left.size() + 1);
      left.assign(inode->content.begin(), inode->content.begin() + static_cast<std::ptrdiff_t>(left.size() + kept));
      if (kept > 0 && survives()) left.back() = 0;
    }
    inode->content = inode->durable = std::move(left);
  }
  names_ = durable_names_ = std::move(names);
}

void FaultFiles::die_at(std::uint64_t step) {
  std::lock_guard lock(mutex_);
  steps_ = 0;
  die_at_ = step;
}
std::uint64_t FaultFiles::steps() const {
  std::lock_guard lock(mutex_);
  return steps_;
}
bool FaultFiles::dead() const {
  std::lock_guard lock(mutex_);
  return die_at_ != 0 && steps_ >= die_at_;
}
void FaultFiles::set_disk_bytes_max(std::uint64_t bytes) {
  std::lock_guard lock(mutex_);
  disk_bytes_max_ = bytes;
}
void FaultFiles::stall_syncs(bool stall) {
  {
    std::lock_guard lock(mutex_);
    stalled_ = stall;
  }
  unstalled_.notify_all();
}

void FaultFiles::fail_sync() {
  std::lock_guard lock(mutex_);
  sync_fails_ = true;
}

void FaultFiles::flip_bit(const fs::path& path, std::uint64_t bit) {
  std::lock_guard lock(mutex_);
  Inode& inode = *names_.at(key_of(path));
  inode.content.at(bit / 8) ^= static_cast<std::uint8_t>(1U << (bit % 8));
  inode.durable = inode.content;
}

Result<> FaultFiles::change() {
  ++steps_;
  if (die_at_ != 0 && steps_ >= die_at_) {
    return Error(Product::platform, ErrorKind::unavailable, "the process died here");
  }
  return {};
}

Result<std::shared_ptr<FaultFiles::Inode>> FaultFiles::find(const fs::path& path) const {
  const auto found = names_.find(key_of(path));
  if (found == names_.end()) return refusal(ErrorKind::not_found, path);
  return found->second;
}

std::uint64_t FaultFiles::used() const {
  std::uint64_t sum = 0;
  for (const auto& [name, inode] : names_) sum += inode->content.size();
  return sum;
}

Result<std::unique_ptr<io::WritableFile>> FaultFiles::open(const fs::path& path, bool empty) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  const auto key = key_of(path);
  const auto parent = parent_of(key);
  if (parent != "." && parent != "/" && !names_.contains(parent)) return refusal(ErrorKind::not_found, parent);
  auto& inode = names_[key];
  if (!inode) inode = std::make_shared<Inode>();
  if (inode->directory) return refusal(ErrorKind::unavailable, path);
  if (empty) inode->content.clear();
  return std::unique_ptr<io::WritableFile>(std::make_unique<Open>(*this, inode, generation_, path));
}

Result<std::unique_ptr<io::WritableFile>> FaultFiles::create(const fs::path& path, unsigned) {
  return open(path, true);
}
Result<std::unique_ptr<io::WritableFile>> FaultFiles::open_append(const fs::path& path, unsigned) {
  return open(path, false);
}

Result<Bytes> FaultFiles::read(const fs::path& path, std::uint64_t bytes_max) {
  std::lock_guard lock(mutex_);
  const auto inode = CRETO_TRY(find(path));
  if (inode->content.size() > bytes_max) return refusal(ErrorKind::too_large, path);
  return inode->content;
}

Result<Bytes> FaultFiles::read_at(const fs::path& path, std::uint64_t offset, std::size_t size) {
  std::lock_guard lock(mutex_);
  const auto inode = CRETO_TRY(find(path));
  const BytesView content = inode->content;
  if (offset >= content.size()) return Bytes();
  return to_bytes(content.subspan(offset, std::min<std::size_t>(size, content.size() - offset)));
}

Result<std::uint64_t> FaultFiles::size(const fs::path& path) {
  std::lock_guard lock(mutex_);
  return CRETO_TRY(find(path))->content.size();
}

Result<bool> FaultFiles::exists(const fs::path& path) {
  std::lock_guard lock(mutex_);
  return names_.contains(key_of(path));
}

Result<> FaultFiles::truncate(const fs::path& path, std::uint64_t size) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  const auto inode = CRETO_TRY(find(path));
  inode->content.resize(size);
  inode->durable = inode->content;
  return {};
}

Result<> FaultFiles::rename(const fs::path& from, const fs::path& to) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  const auto inode = CRETO_TRY(find(from));
  names_[key_of(to)] = inode;
  names_.erase(key_of(from));
  return {};
}

Result<> FaultFiles::remove(const fs::path& path) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  names_.erase(key_of(path));
  return {};
}

Result<> FaultFiles::create_directories(const fs::path& path) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  for (auto key = key_of(path); key != "." && key != "/" && !names_.contains(key); key = parent_of(key)) {
    auto inode = std::make_shared<Inode>();
    inode->directory = true;
    names_[key] = durable_names_[key] = inode;
  }
  return {};
}

Result<> FaultFiles::sync_directory(const fs::path& path) {
  std::lock_guard lock(mutex_);
  CRETO_TRY(change());
  const auto key = key_of(path);
  if (key != "." && key != "/" && !names_.contains(key)) return refusal(ErrorKind::not_found, path);
  std::erase_if(durable_names_,
                [&](const auto& entry) { return parent_of(entry.first) == key && !names_.contains(entry.first); });
  for (const auto& [name, inode] : names_) {
    if (parent_of(name) == key) durable_names_[name] = inode;
  }
  return {};
}

Result<std::vector<std::string>> FaultFiles::list(const fs::path& path) {
  std::lock_guard lock(mutex_);
  const auto key = key_of(path);
  std::vector<std::string> found;
  for (const auto& [name, inode] : names_) {
    if (parent_of(name) == key) found.push_back(fs::path(name).filename().string());
  }
  if (found.empty() && !names_.contains(key)) return refusal(ErrorKind::not_found, path);
  return found;
}

}  // namespace creto::testing
