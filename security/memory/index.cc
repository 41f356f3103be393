#include "index.h"

#include <algorithm>

#include "vectors.h"

namespace creto::memory {
namespace {
constexpr std::size_t load_batch = 2000;
}

void AgentIndex::clear() {
  progress_ = {};
  entries_.clear();
  vectors_.clear();
}

Result<> AgentIndex::catch_up(sql::Tx& tx, const Context& ctx, const Identity& agent) {
  const auto now_there = CRETO_TRY(store::progress(tx, ctx, agent));
  // A search that began later may have brought it further than this snapshot; what is not in the snapshot is passed
  // over then.
  if (progress_.inserted >= now_there.inserted && progress_.erased >= now_there.erased) return {};
  if (progress_.erased != now_there.erased) clear();
  auto reached = progress_.inserted;
  while (true) {
    auto batch = store::load(tx, ctx, agent, model_, dimension_, reached, load_batch);
    if (!batch) {
      clear();
      return std::move(batch).error();
    }
    for (const auto& entry : *batch) {
      entries_.push_back(Place{entry.id, entry.type, entry.created_at, entry.expires_at.value_or(Instant::max())});
      vectors_.insert(vectors_.end(), entry.vector.begin(), entry.vector.end());
      reached = entry.number;
    }
    if (batch->size() < load_batch) break;
  }
  progress_ = now_there;
  return {};
}

std::vector<Hit> AgentIndex::search(std::span<const float> vector, const Query& query, float threshold,
                                    std::size_t limit, Instant now) const {
  const auto better = [](const Hit& a, const Hit& b) {
    return a.relevance > b.relevance || (a.relevance == b.relevance && a.id > b.id);
  };
  std::vector<Hit> best;  // a heap with the worst on top
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const auto& entry = entries_[i];
    if (entry.expires_at <= now) continue;
    if (query.from && entry.created_at < *query.from) continue;
    if (query.to && entry.created_at >= *query.to) continue;
    if (!query.types.empty() && std::ranges::find(query.types, entry.type) == query.types.end()) continue;
    const auto cosine = dot(vector, std::span(vectors_).subspan(i * dimension_, dimension_));
    const Hit hit{entry.id, std::clamp(cosine, 0.0F, 1.0F)};
    if (hit.relevance < threshold) continue;
    if (best.size() == limit && !better(hit, best.front())) continue;
    if (best.size() == limit) {
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
    best.push_back(hit);
    std::ranges::push_heap(best, better);
  }
  std::ranges::sort_heap(best, better);
  return best;
}

std::shared_ptr<IndexCache::Slot> IndexCache::slot(const Context& ctx, const Identity& agent) {
  const std::scoped_lock lock(mutex_);
  Key key{ctx.org, agent.text()};
  if (const auto found = held_.find(key); found != held_.end()) {
    order_.splice(order_.begin(), order_, found->second.place);
    return found->second.slot;
  }
  order_.push_front(key);
  auto slot = std::make_shared<Slot>(model_, dimension_);
  held_.emplace(std::move(key), Held{slot, 0, order_.begin()});
  return slot;
}

void IndexCache::used(const Context& ctx, const Identity& agent, std::size_t bytes) {
  const std::scoped_lock lock(mutex_);
  const auto found = held_.find(Key{ctx.org, agent.text()});
  if (found != held_.end()) {
    bytes_ += bytes - found->second.bytes;
    found->second.bytes = bytes;
  }
  while (bytes_ > bytes_max_ && order_.size() > 1) {
    const auto oldest = held_.find(order_.back());
    bytes_ -= oldest->second.bytes;
    held_.erase(oldest);
    order_.pop_back();
  }
}

}  // namespace creto::memory
