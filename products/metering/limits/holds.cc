#include "limits/holds.h"

#include <algorithm>

#include "creto/common/assert.h"

namespace creto::metering {

const Hold* Holds::Shard::find(const ReservationId& id) const {
  const auto found = open_.find(id);
  return found == open_.end() ? nullptr : &found->second;
}

Hold& Holds::Shard::open(const ReservationId& id, std::int64_t expires_ns) {
  if (spare_.empty()) {
    spare_.push_back([&] {
      Table made;
      made.try_emplace(id);
      return made.extract(id);
    }());
  }
  Table::node_type node = std::move(spare_.back());
  spare_.pop_back();
  node.key() = id;
  Hold& hold = node.mapped();
  hold.expires_ns = expires_ns;
  hold.accounts.clear();
  hold.parts.clear();
  CRETO_ASSERT(open_.insert(std::move(node)).inserted);

  if (by_expiry_.size() > 2 * open_.size() + 64) forget_ended();
  by_expiry_.push_back({expires_ns, id});
  std::push_heap(by_expiry_.begin(), by_expiry_.end(), std::greater<>());
  note_earliest();
  return hold;
}

void Holds::Shard::extend(const ReservationId& id, std::int64_t expires_ns) {
  Hold& hold = open_.at(id);
  if (expires_ns <= hold.expires_ns) return;
  hold.expires_ns = expires_ns;
  if (by_expiry_.size() > 2 * open_.size() + 64) forget_ended();
  by_expiry_.push_back({expires_ns, id});
  std::push_heap(by_expiry_.begin(), by_expiry_.end(), std::greater<>());
  note_earliest();
}

Holds::Shard::Due Holds::Shard::pop_due() {
  std::pop_heap(by_expiry_.begin(), by_expiry_.end(), std::greater<>());
  const Due due = by_expiry_.back();
  by_expiry_.pop_back();
  note_earliest();
  return due;
}

void Holds::Shard::forget_ended() {
  std::erase_if(by_expiry_, [&](const Due& due) {
    const Hold* hold = find(due.id);
    return hold == nullptr || hold->expires_ns != due.ns;
  });
  std::make_heap(by_expiry_.begin(), by_expiry_.end(), std::greater<>());
}

void Holds::Shard::note_earliest() {
  earliest_.store(by_expiry_.empty() ? INT64_MAX : by_expiry_.front().ns, std::memory_order_release);
}

void Holds::Shard::recycle(Table::node_type node) {
  if (spare_.size() < spare_max) spare_.push_back(std::move(node));
}

}  // namespace creto::metering
