#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "memory_store.h"

namespace creto::memory {

struct Hit {
  MemoryId id;
  float relevance = 0;
};

/// One agent's vectors of one model, side by side in memory. Holds what the tables hold, as far as `progress`. Not
/// thread-safe.
class AgentIndex {
 public:
  AgentIndex(std::string model, std::size_t dimension) : model_(std::move(model)), dimension_(dimension) {}

  /// Brings it to what `tx` sees, or leaves it where it is further.
  Result<> catch_up(sql::Tx& tx, const Context& ctx, const Identity& agent);

  /// The best `limit` with at least `threshold`, best first. `vector` has length 1.
  std::vector<Hit> search(std::span<const float> vector, const Query& query, float threshold, std::size_t limit,
                          Instant now) const;

  std::size_t size() const { return entries_.size(); }
  std::size_t bytes() const { return entries_.size() * (sizeof(Place) + dimension_ * sizeof(float)); }

 private:
  struct Place {
    MemoryId id;
    MemoryType type;
    Instant created_at;
    Instant expires_at;
  };
  void clear();

  const std::string model_;
  const std::size_t dimension_;
  Progress progress_;
  std::vector<Place> entries_;
  std::vector<float> vectors_;  ///< entries_.size() * dimension_
};

/// The indexes of the agents that were asked last, up to `bytes_max` together. Thread-safe; who holds a lock searches
/// alone.
class IndexCache {
 public:
  struct Slot {
    std::mutex mutex;
    AgentIndex index;
    Slot(const std::string& model, std::size_t dimension) : index(model, dimension) {}
  };

  IndexCache(std::string model, std::size_t dimension, std::size_t bytes_max)
      : model_(std::move(model)), dimension_(dimension), bytes_max_(bytes_max) {}

  std::shared_ptr<Slot> slot(const Context& ctx, const Identity& agent);
  /// Says how large a slot has become; drops the least recently used ones where it is too much.
  void used(const Context& ctx, const Identity& agent, std::size_t bytes);

 private:
  using Key = std::pair<std::string, std::string>;
  struct Held {
    std::shared_ptr<Slot> slot;
    std::size_t bytes = 0;
    std::list<Key>::iterator place;
  };
  const std::string model_;
  const std::size_t dimension_;
  const std::size_t bytes_max_;
  std::mutex mutex_;
  std::list<Key> order_;  ///< most recently used first
  std::map<Key, Held> held_;
  std::size_t bytes_ = 0;
};

}  // namespace creto::memory
