#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace creto::authz {

/// Texts in order, to be read from any of them on. A value: a copy shares everything with its original, and a change
/// costs what it changes.
class SortedNames {
 public:
  /// Nothing happens where it is there already.
  void insert(std::string_view name);
  void erase(std::string_view name);
  std::size_t size() const { return size_; }

  /// Calls `use` with each in order until it returns false; whether it went through all.
  template <class F>
  bool each(F&& use) const {
    for (const auto& block : blocks_)
      for (const std::string& name : *block)
        if (!use(name)) return false;
    return true;
  }
  /// Calls `use` with each that is greater than `after`, in order, until it returns false.
  template <class F>
  bool each_behind(std::string_view after, F&& use) const {
    for (auto block = block_of(after); block != blocks_.end(); ++block)
      for (auto name = std::upper_bound((*block)->begin(), (*block)->end(), after); name != (*block)->end(); ++name)
        if (!use(*name)) return false;
    return true;
  }

 private:
  static constexpr std::size_t block_max = 512;
  /// Sorted, not empty.
  using Block = std::vector<std::string>;
  using Blocks = std::vector<std::shared_ptr<Block>>;

  /// The first with a name that is not less.
  Blocks::const_iterator block_of(std::string_view name) const {
    return std::partition_point(blocks_.begin(), blocks_.end(),
                                [&](const std::shared_ptr<Block>& block) { return block->back() < name; });
  }
  /// To be changed: nobody else's.
  Block& own(std::size_t block);

  Blocks blocks_;
  std::size_t size_ = 0;
};

}  // namespace creto::authz
