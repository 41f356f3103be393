#include "vectors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <unordered_map>

#include "creto/common/assert.h"

namespace creto::memory {
namespace {

static_assert(std::endian::native == std::endian::little, "vectors are kept as this machine has them");

// Words so common that sharing them says nothing.
constexpr std::array stop_words{"a",    "an",  "and", "are",  "as",   "at",    "be",    "by",   "for",   "from", "has",
                                "have", "he",  "i",   "if",   "in",   "is",    "it",    "its",  "not",   "of",   "on",
                                "or",   "our", "she", "so",   "that", "the",   "their", "then", "there", "they", "this",
                                "to",   "was", "we",  "were", "what", "which", "will",  "with", "you"};
static_assert(std::ranges::is_sorted(stop_words, [](std::string_view a, std::string_view b) { return a < b; }));

bool is_word_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || static_cast<unsigned char>(c) >= 0x80;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

/// FNV-1a, then the finalizer of splitmix64. Part of the model: another hash would be another model name.
std::uint64_t hash(char kind, std::string_view text) {
  std::uint64_t h = 0xcbf29ce484222325;
  const auto mix = [&](char c) { h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3; };
  mix(kind);
  for (const char c : text) mix(c);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
  h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
  return h ^ (h >> 31);
}

}  // namespace

float dot(std::span<const float> a, std::span<const float> b) {
  CRETO_ASSERT(a.size() == b.size());
  std::array<float, 8> sums{};
  std::size_t i = 0;
  for (; i + 8 <= a.size(); i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float rest = 0;
  for (; i < a.size(); ++i) rest += a[i] * b[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])) + rest;
}

void normalize(std::span<float> vector) {
  double squares = 0;
  for (const float x : vector) squares += static_cast<double>(x) * static_cast<double>(x);
  if (squares <= 0) return;
  const auto scale = 1 / std::sqrt(squares);
  for (float& x : vector) x = static_cast<float>(static_cast<double>(x) * scale);
}

Bytes encode_vector(std::span<const float> vector) {
  const auto bytes = std::as_bytes(vector);
  const auto* begin = reinterpret_cast<const std::uint8_t*>(bytes.data());
  return {begin, begin + bytes.size()};
}

Result<std::vector<float>> decode_vector(BytesView bytes, std::size_t dimension) {
  if (bytes.size() != dimension * sizeof(float)) {
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("a vector of {} bytes where {} dimensions were expected", bytes.size(), dimension));
  }
  std::vector<float> vector(dimension);
  std::ranges::copy(bytes, reinterpret_cast<std::uint8_t*>(vector.data()));
  if (!std::ranges::all_of(vector, [](float x) { return std::isfinite(x); })) {
    return Error(Product::platform, ErrorKind::invalid_input, "a vector holds something that is no number");
  }
  return vector;
}

std::vector<float> hash_embedding(std::string_view text) {
  // Each word counts as itself and, with less weight, as the trigrams of "^word$", so that inflected and misspelt words
  // meet.
  std::unordered_map<std::uint64_t, float> features;
  std::string word;
  const auto take = [&] {
    if (word.empty()) return;
    if (!std::ranges::binary_search(stop_words, std::string_view(word))) {
      features[hash('w', word)] += 1.0F;
      const auto framed = "^" + word + "$";
      const auto trigrams = framed.size() - 2;
      const auto weight = 0.7F / std::sqrt(static_cast<float>(trigrams));
      for (std::size_t i = 0; i < trigrams; ++i) features[hash('t', std::string_view(framed).substr(i, 3))] += weight;
    }
    word.clear();
  };
  for (const char raw : text) {
    const char c = lower(raw);
    if (is_word_byte(c)) {
      word += c;
      if (word.size() == 64) take();
    } else {
      take();
    }
  }
  take();
  std::vector<float> vector(hash_dimension, 0.0F);
  for (const auto& [feature, count] : features) {
    // Often is more than once, but not as many times more.
    const auto weight = count <= 1 ? count : 1 + std::log(count);
    vector[feature % hash_dimension] += (feature >> 63) != 0 ? weight : -weight;
  }
  normalize(vector);
  return vector;
}

}  // namespace creto::memory
