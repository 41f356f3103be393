#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "creto/consensus/timestamp_source.h"

namespace creto::consensus {

Result<std::vector<std::size_t>> order_events(std::span<const Timestamp> events) {
  std::vector<std::size_t> order(events.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return compare(events[a], events[b]) == std::strong_ordering::less; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (compare(events[order[i - 1]], events[order[i]]) == std::strong_ordering::equal) {
      return Error(Product::platform, ErrorKind::conflict,
                   fmt::format("events {} and {} have the same timestamp", order[i - 1], order[i]));
    }
  }
  return order;
}

}  // namespace creto::consensus
