#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace creto::metering {

/// A hash table that only grows: `find` takes no lock and does not allocate, entries stay where they are until the
/// table goes. `V` has `std::uint64_t hash` and is compared with `matches(const V&)`.
///
/// Invariant: a reader sees each entry that was inserted before it began. Old bucket arrays are kept for readers still
/// in them; doubling makes them as large as the newest one together.
template <class V>
class PublishedMap {
 public:
  PublishedMap() { publish(1024); }

  template <class Matches>
  V* find(std::uint64_t hash, Matches&& matches) const {
    const Table* table = current_.load(std::memory_order_acquire);
    for (const Node* node = table->buckets[hash & table->mask].load(std::memory_order_acquire); node != nullptr;
         node = node->next) {
      if (node->value->hash == hash && matches(*node->value)) return node->value;
    }
    return nullptr;
  }

  /// The entry, made by `make(size before) -> std::unique_ptr<V>` where there is none.
  template <class Matches, class Make>
  V* find_or_insert(std::uint64_t hash, Matches&& matches, Make&& make) {
    if (V* found = find(hash, matches)) return found;
    const std::scoped_lock lock(mutex_);
    if (V* found = find(hash, matches)) return found;
    values_.push_back(make(values_.size()));
    V* value = values_.back().get();
    Table* table = tables_.back().get();
    if (values_.size() > table->mask + 1) {
      table = publish((table->mask + 1) * 2);
    } else {
      insert(*table, value);
    }
    return value;
  }

  std::size_t size() const {
    const std::scoped_lock lock(mutex_);
    return values_.size();
  }

  /// In order of insertion. Requires: `index` is less than a size seen before.
  V& at(std::size_t index) const {
    const std::scoped_lock lock(mutex_);
    return *values_[index];
  }

 private:
  struct Node {
    V* value;
    const Node* next;
  };
  struct Table {
    explicit Table(std::size_t size) : mask(size - 1), buckets(size) { nodes.reserve(size + 1); }
    std::size_t mask;
    std::vector<std::atomic<const Node*>> buckets;
    std::vector<std::unique_ptr<Node>> nodes;
  };

  static void insert(Table& table, V* value) {
    auto& bucket = table.buckets[value->hash & table.mask];
    table.nodes.push_back(std::make_unique<Node>(Node{value, bucket.load(std::memory_order_relaxed)}));
    bucket.store(table.nodes.back().get(), std::memory_order_release);
  }

  Table* publish(std::size_t size) {
    auto table = std::make_unique<Table>(size);
    for (const auto& value : values_) insert(*table, value.get());
    tables_.push_back(std::move(table));
    current_.store(tables_.back().get(), std::memory_order_release);
    return tables_.back().get();
  }

  mutable std::mutex mutex_;
  std::atomic<const Table*> current_{nullptr};
  std::vector<std::unique_ptr<Table>> tables_;
  std::vector<std::unique_ptr<V>> values_;
};

}  // namespace creto::metering
