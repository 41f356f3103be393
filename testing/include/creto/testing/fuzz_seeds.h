#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

/// libFuzzer's own mutation of `data`, which has room for `size_max`; the new size.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t size_max);

namespace creto::testing {

/// For LLVMFuzzerCustomMutator: mutates as libFuzzer does, and now and then begins anew from one of `seeds`. For
/// formats whose words it would take hours to guess.
inline std::size_t mutate_from(std::span<const std::string_view> seeds, std::uint8_t* data, std::size_t size,
                               std::size_t size_max, unsigned random) {
  const std::string_view fresh = seeds[random / 1024 % seeds.size()];
  if (fresh.size() > size_max || (size > 2 && random % 1024 != 0)) return LLVMFuzzerMutate(data, size, size_max);
  std::ranges::copy(fresh, data);
  return fresh.size();
}

}  // namespace creto::testing

/// What the fuzz target of this program begins from: texts.
#define CRETO_FUZZ_SEEDS(...)                                                                                \
  extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t size_max, \
                                                 unsigned random) {                                          \
    static constexpr std::string_view seeds[] = {__VA_ARGS__};                                               \
    return creto::testing::mutate_from(seeds, data, size, size_max, random);                                 \
  }
