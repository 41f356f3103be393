#include "rpc/upload_table.h"

#include <fmt/format.h>

#include <vector>

namespace creto::storage {
namespace {

CRETO_ID(UploadId, "upl");

Error no_upload(const std::string& id) {
  return Error(Product::platform, ErrorKind::not_found, fmt::format("there is no upload `{}`", id.substr(0, 64)));
}

}  // namespace

Result<std::string> UploadTable::add(const Context& ctx, std::unique_ptr<Upload> upload) {
  auto entry = std::make_shared<Entry>();
  entry->upload = std::move(upload);
  entry->caller = ctx.caller_text();
  entry->org = ctx.org;
  entry->used = clock_.monotonic();
  const auto id = UploadId::fresh(clock_.now()).to_string();
  std::vector<std::shared_ptr<Entry>> idle;  // destroyed without the lock: that removes files
  const std::scoped_lock lock(mutex_);
  std::size_t of_caller = 0;
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (clock_.monotonic() - it->second->used > idle_max) {
      idle.push_back(std::move(it->second));
      it = entries_.erase(it);
      continue;
    }
    if (it->second->caller == entry->caller && it->second->org == entry->org) ++of_caller;
    ++it;
  }
  if (of_caller >= per_caller_max) {
    return Error(Product::platform, ErrorKind::resource_exhausted,
                 fmt::format("more than {} uploads at once", per_caller_max));
  }
  entries_.emplace(id, std::move(entry));
  return id;
}

Result<std::uint64_t> UploadTable::append(const Context& ctx, const std::string& id, std::uint64_t offset,
                                          BytesView data) {
  const auto entry = find(ctx, id);
  if (!entry) return no_upload(id);
  const std::scoped_lock lock(entry->mutex);
  if (!entry->upload) return no_upload(id);
  if (offset + data.size() == entry->size && data.size() == entry->last_size) return entry->size;
  if (offset != entry->size) {
    return Error(Product::platform, ErrorKind::conflict,
                 fmt::format("the upload has {} bytes, so the next begins there", entry->size));
  }
  auto appended = entry->upload->append(data);
  if (!appended) {
    entry->upload.reset();
    drop(id);
    return std::move(appended).error();
  }
  entry->size += data.size();
  entry->last_size = data.size();
  return entry->size;
}

Result<ObjectMetadata> UploadTable::finish(const Context& ctx, const std::string& id) {
  const auto entry = find(ctx, id);
  if (!entry) return no_upload(id);
  const std::scoped_lock lock(entry->mutex);
  if (!entry->upload) return no_upload(id);
  auto stored = entry->upload->finish();
  entry->upload.reset();
  drop(id);
  return stored;
}

std::shared_ptr<UploadTable::Entry> UploadTable::find(const Context& ctx, const std::string& id) {
  const std::scoped_lock lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second->caller != ctx.caller_text() || found->second->org != ctx.org)
    return nullptr;
  found->second->used = clock_.monotonic();
  return found->second;
}

void UploadTable::drop(const std::string& id) {
  const std::scoped_lock lock(mutex_);
  entries_.erase(id);
}

}  // namespace creto::storage
