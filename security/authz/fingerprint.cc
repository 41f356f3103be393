#include "fingerprint.h"

#include "creto/common/assert.h"
#include "creto/crypto/random.h"
#include "hash.h"

namespace creto::authz {
namespace {

template <class T>
void draw(T& number) {
  crypto::random_fill({reinterpret_cast<std::uint8_t*>(&number), sizeof(number)});
}

}  // namespace

FingerprintKey::FingerprintKey() {
  draw(first_);
  draw(second_);
  draw(place_);
  for (Half& half : halves_) {
    draw(half.constant);
    draw(half.low);
    draw(half.high);
    draw(half.length);
  }
}

std::uint64_t FingerprintKey::Half::reduce(Wide sum, std::size_t count) const {
  const Wide all =
      constant + low * static_cast<std::uint64_t>(sum) + high * static_cast<std::uint64_t>(sum >> 64) + length * count;
  return static_cast<std::uint64_t>(all >> 64);
}

Fingerprint FingerprintKey::of(std::span<const std::uint64_t> words) const {
  CRETO_ASSERT(words.size() <= words_max);
  Wide first = 0, second = 0, place = 0;
  const std::uint64_t* const word = words.data();
  // One loop for the three: what bounds it are the multiplications, which do not wait for each other.
  for (std::size_t i = 0; i < words.size(); i += 2) {
    const std::uint64_t a = word[i], b = word[i + 1];
    first += static_cast<Wide>(a + first_.data()[i]) * (b + first_.data()[i + 1]);
    second += static_cast<Wide>(a + second_.data()[i]) * (b + second_.data()[i + 1]);
    place += static_cast<Wide>(a + place_.data()[i]) * (b + place_.data()[i + 1]);
  }
  return {{halves_[0].reduce(first, words.size()), halves_[1].reduce(second, words.size())},
          fold(static_cast<std::uint64_t>(place) ^ words.size(),
               static_cast<std::uint64_t>(place >> 64) ^ 0xa0761d6478bd642fu)};
}

}  // namespace creto::authz
