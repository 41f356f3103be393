#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "creto/storage/storage.h"

namespace creto::storage {

/// Uploads that come in several calls. Lives in this process alone: after a restart the client begins anew, as nothing
/// of an unfinished upload is kept. Thread-safe.
class UploadTable {
 public:
  static constexpr std::size_t per_caller_max = 10;
  static constexpr Nanos idle_max = std::chrono::minutes(10);

  explicit UploadTable(const Clock& clock) : clock_(clock) {}

  /// Errors: resource_exhausted where the caller has too many
  Result<std::string> add(const Context& ctx, std::unique_ptr<Upload> upload);
  /// Takes `data` at `offset`; the size afterwards. What was the last piece may be sent again.
  /// Errors: not_found; conflict where `offset` is another; those of the upload, which is gone then
  Result<std::uint64_t> append(const Context& ctx, const std::string& id, std::uint64_t offset, BytesView data);
  Result<ObjectMetadata> finish(const Context& ctx, const std::string& id);

 private:
  struct Entry {
    std::mutex mutex;
    std::unique_ptr<Upload> upload;
    std::string caller;
    std::string org;
    std::uint64_t size = 0;
    std::uint64_t last_size = 0;  ///< of the last piece
    Monotonic used{};
  };
  std::shared_ptr<Entry> find(const Context& ctx, const std::string& id);
  void drop(const std::string& id);

  const Clock& clock_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;
};

}  // namespace creto::storage
