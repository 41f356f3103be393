#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "creto/common/bytes.h"

namespace creto::memory {

/// Eight sums side by side, so that the compiler can use SIMD without reordering a single sum.
/// Requires: equal sizes.
float dot(std::span<const float> a, std::span<const float> b);

/// Scales to length 1; a zero vector stays one.
void normalize(std::span<float> vector);

/// Little-endian IEEE 754, as kept in the table.
Bytes encode_vector(std::span<const float> vector);
/// Errors: invalid_input unless it holds exactly `dimension` finite numbers
Result<std::vector<float>> decode_vector(BytesView bytes, std::size_t dimension);

/// What create_hash_embedder computes. Pure.
inline constexpr std::size_t hash_dimension = 384;
std::vector<float> hash_embedding(std::string_view text);

}  // namespace creto::memory
