#include "sorted_names.h"

namespace creto::authz {

SortedNames::Block& SortedNames::own(std::size_t block) {
  auto& shared = blocks_[block];
  if (shared.use_count() > 1) shared = std::make_shared<Block>(*shared);
  return *shared;
}

void SortedNames::insert(std::string_view name) {
  if (blocks_.empty()) {
    blocks_.push_back(std::make_shared<Block>(1, std::string(name)));
    ++size_;
    return;
  }
  const auto at = static_cast<std::size_t>(block_of(name) - blocks_.cbegin());
  const std::size_t number = std::min(at, blocks_.size() - 1);
  const auto place = std::lower_bound(blocks_[number]->begin(), blocks_[number]->end(), name);
  if (place != blocks_[number]->end() && *place == name) return;
  const auto offset = place - blocks_[number]->begin();
  Block& block = own(number);
  block.emplace(block.begin() + offset, name);
  ++size_;
  if (block.size() <= block_max) return;
  const auto middle = block.begin() + block_max / 2;
  auto upper = std::make_shared<Block>(std::make_move_iterator(middle), std::make_move_iterator(block.end()));
  block.erase(middle, block.end());
  blocks_.insert(blocks_.begin() + static_cast<std::ptrdiff_t>(number) + 1, std::move(upper));
}

void SortedNames::erase(std::string_view name) {
  const auto at = block_of(name);
  if (at == blocks_.end()) return;
  const auto place = std::lower_bound((*at)->begin(), (*at)->end(), name);
  if (*place != name) return;
  const auto offset = place - (*at)->begin();
  const auto number = at - blocks_.cbegin();
  --size_;
  Block& block = own(static_cast<std::size_t>(number));
  block.erase(block.begin() + offset);
  if (block.empty()) blocks_.erase(blocks_.begin() + number);
}

}  // namespace creto::authz
