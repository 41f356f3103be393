#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "creto/common/assert.h"
#include "creto/io/files.h"

namespace creto::io {
namespace {

namespace fs = std::filesystem;

Error failed(const char* action, const fs::path& path, int error) {
  ErrorKind kind = ErrorKind::unavailable;
  if (error == ENOENT || error == ENOTDIR) kind = ErrorKind::not_found;
  if (error == EEXIST) kind = ErrorKind::already_exists;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) kind = ErrorKind::resource_exhausted;
  if (error == EACCES || error == EPERM || error == EROFS) kind = ErrorKind::permission_denied;
  return Error(Product::platform, kind, fmt::format("cannot {} `{}`: {}", action, path.string(), std::strerror(error)));
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }

 private:
  int value_;
};

Result<Descriptor> open_file(const fs::path& path, int flags, unsigned mode = 0) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (descriptor < 0) return failed("open", path, errno);
  return Descriptor(descriptor);
}

class RealFile final : public WritableFile {
 public:
  RealFile(Descriptor descriptor, fs::path path, std::uint64_t size)
      : descriptor_(std::move(descriptor)), path_(std::move(path)), size_(size) {}

  Result<> append(BytesView bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_.get(), bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return failed("write", path_, errno);
      }
      size_ += static_cast<std::uint64_t>(written);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return {};
  }

  Result<> sync() override {
    if (::fsync(descriptor_.get()) != 0) return failed("sync", path_, errno);
    return {};
  }

  std::uint64_t size() const override { return size_; }

 private:
  Descriptor descriptor_;
  fs::path path_;
  std::uint64_t size_;
};

class RealFiles final : public FileSystem {
 public:
  Result<std::unique_ptr<WritableFile>> create(const fs::path& path, unsigned mode) override {
    auto descriptor = CRETO_TRY(open_file(path, O_WRONLY | O_CREAT | O_TRUNC, mode));
    return std::unique_ptr<WritableFile>(std::make_unique<RealFile>(std::move(descriptor), path, 0));
  }

  Result<std::unique_ptr<WritableFile>> open_append(const fs::path& path, unsigned mode) override {
    auto descriptor = CRETO_TRY(open_file(path, O_WRONLY | O_CREAT | O_APPEND, mode));
    struct stat status{};
    if (::fstat(descriptor.get(), &status) != 0) return failed("stat", path, errno);
    return std::unique_ptr<WritableFile>(
        std::make_unique<RealFile>(std::move(descriptor), path, static_cast<std::uint64_t>(status.st_size)));
  }

  Result<Bytes> read(const fs::path& path, std::uint64_t bytes_max) override {
    const auto descriptor = CRETO_TRY(open_file(path, O_RDONLY));
    struct stat status{};
    if (::fstat(descriptor.get(), &status) != 0) return failed("stat", path, errno);
    if (!S_ISREG(status.st_mode)) return failed("read", path, EINVAL);
    if (static_cast<std::uint64_t>(status.st_size) > bytes_max) {
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("`{}` has more than {} bytes", path.string(), bytes_max));
    }
    return read_from(descriptor.get(), path, 0, static_cast<std::size_t>(status.st_size));
  }

  Result<Bytes> read_at(const fs::path& path, std::uint64_t offset, std::size_t size) override {
    const auto descriptor = CRETO_TRY(open_file(path, O_RDONLY));
    return read_from(descriptor.get(), path, offset, size);
  }

  Result<std::uint64_t> size(const fs::path& path) override {
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0) return failed("stat", path, errno);
    return static_cast<std::uint64_t>(status.st_size);
  }

  Result<bool> exists(const fs::path& path) override {
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0) return true;
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return failed("stat", path, errno);
  }

  Result<> truncate(const fs::path& path, std::uint64_t size) override {
    const auto descriptor = CRETO_TRY(open_file(path, O_WRONLY));
    if (::ftruncate(descriptor.get(), static_cast<off_t>(size)) != 0) return failed("truncate", path, errno);
    if (::fsync(descriptor.get()) != 0) return failed("sync", path, errno);
    return {};
  }

  Result<> rename(const fs::path& from, const fs::path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) return failed("rename", from, errno);
    return {};
  }

  Result<> remove(const fs::path& path) override {
    if (::remove(path.c_str()) != 0 && errno != ENOENT) return failed("remove", path, errno);
    return {};
  }

  Result<> create_directories(const fs::path& path) override {
    if (path.empty() || CRETO_TRY(exists(path))) return {};
    const fs::path parent = path.parent_path();
    CRETO_TRY(create_directories(parent));
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return failed("create", path, errno);
    return sync_directory(parent.empty() ? fs::path(".") : parent);
  }

  Result<> sync_directory(const fs::path& path) override {
    const auto descriptor = CRETO_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
    if (::fsync(descriptor.get()) != 0) return failed("sync", path, errno);
    return {};
  }

  Result<std::vector<std::string>> list(const fs::path& path) override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return failed("list", path, errno);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(directory)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    const int error = errno;
    ::closedir(directory);
    if (error != 0) return failed("list", path, error);
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  static Result<Bytes> read_from(int descriptor, const fs::path& path, std::uint64_t offset, std::size_t size) {
    Bytes bytes(size);
    std::size_t done = 0;
    while (done < size) {
      const ssize_t got = ::pread(descriptor, bytes.data() + done, size - done, static_cast<off_t>(offset + done));
      if (got < 0) {
        if (errno == EINTR) continue;
        return failed("read", path, errno);
      }
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    bytes.resize(done);
    return bytes;
  }
};

}  // namespace

FileSystem& real_files() {
  static RealFiles files;
  return files;
}

Result<> write_durably(FileSystem& files, const fs::path& path, BytesView bytes, unsigned mode) {
  // One name for the temporary file: a crash leaves at most one behind, and the next write replaces it.
  fs::path temporary = path;
  temporary += ".new";
  {
    auto file = CRETO_TRY(files.create(temporary, mode));
    CRETO_TRY(file->append(bytes));
    CRETO_TRY(file->sync());
  }
  CRETO_TRY(files.rename(temporary, path));
  const fs::path parent = path.parent_path();
  return files.sync_directory(parent.empty() ? fs::path(".") : parent);
}

}  // namespace creto::io
