#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "creto/common/clock.h"

namespace creto::nhi {

/// Values by text key, each for a time. A value read before `clear` is never put after it.
template <class T>
class Cache {
 public:
  Cache(std::size_t entries_max, Nanos ttl, const Clock& clock) : entries_max_(entries_max), ttl_(ttl), clock_(clock) {}

  std::shared_ptr<const T> find(const std::string& key) const {
    std::shared_lock lock(mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end() || found->second.until <= clock_.monotonic()) return nullptr;
    return found->second.value;
  }
  std::uint64_t generation() const {
    std::shared_lock lock(mutex_);
    return generation_;
  }
  std::shared_ptr<const T> put(const std::string& key, T value, std::uint64_t generation) {
    auto shared = std::make_shared<const T>(std::move(value));
    std::unique_lock lock(mutex_);
    if (generation == generation_) {
      if (entries_.size() >= entries_max_) entries_.clear();
      entries_[key] = {shared, clock_.monotonic() + ttl_};
    }
    return shared;
  }
  void clear() {
    std::unique_lock lock(mutex_);
    ++generation_;
    entries_.clear();
  }

 private:
  struct Entry {
    std::shared_ptr<const T> value;
    Monotonic until;
  };
  const std::size_t entries_max_;
  const Nanos ttl_;
  const Clock& clock_;
  mutable std::shared_mutex mutex_;
  std::uint64_t generation_ = 0;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace creto::nhi
