#pragma once

#include <google/protobuf/message.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "creto/common/assert.h"
#include "creto/common/context.h"
#include "creto/common/result.h"

namespace creto::testing {

/// The message that `data` holds, of the type that its first byte picks from `prototypes`; null where it holds none.
std::unique_ptr<google::protobuf::Message> read_message(std::span<const google::protobuf::Message* const> prototypes,
                                                        const std::uint8_t* data, std::size_t size);
using Words = std::span<const std::string_view>;
/// Changes fields of the message that `data` holds, so that it stays one, now and then to one of `words`; the new size.
std::size_t mutate_message(std::span<const google::protobuf::Message* const> prototypes, Words words,
                           std::uint8_t* data, std::size_t size, std::size_t size_max, unsigned random);
/// For converters that fill in who calls.
const Context& some_caller();
/// The same bytes for equal messages.
std::string stable_bytes(const google::protobuf::Message& message);

/// A fuzz target over a module's converters: what `from` takes, `to` writes as a message that `from` takes as the same.
///
/// `Convert` has `from(const Message&)`, a domain value or a Result of one, and `to(value, Message&)` for each of
/// `Messages`; and `words`, of which the module's texts are made.
template <class Convert, class... Messages>
struct MessageFuzz {
  static void run(const std::uint8_t* data, std::size_t size) {
    const auto message = read_message(prototypes(), data, size);
    if (message) (check<Messages>(*message), ...);
  }
  static std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t size_max, unsigned random) {
    return mutate_message(prototypes(), Convert::words, data, size, size_max, random);
  }

 private:
  static std::array<const google::protobuf::Message*, sizeof...(Messages)> prototypes() {
    return {&Messages::default_instance()...};
  }

  template <class M>
  static void check(const google::protobuf::Message& any) {
    const auto* message = dynamic_cast<const M*>(&any);
    if (message == nullptr) return;
    const auto taken = taken_from(*message);
    if (!taken) return;
    M written;
    Convert::to(*taken, written);
    const auto again = taken_from(written);
    CRETO_ASSERT(again.has_value());
    M rewritten;
    Convert::to(*again, rewritten);
    CRETO_ASSERT(stable_bytes(written) == stable_bytes(rewritten));
  }

  /// `Convert::from` as something with `has_value`, whether or not it can refuse.
  template <class M>
  static auto taken_from(const M& message) {
    using Taken = decltype(Convert::from(message));
    if constexpr (requires(const Taken& taken) { taken.error(); }) {
      return Convert::from(message);
    } else {
      return std::make_optional(Convert::from(message));
    }
  }
};

}  // namespace creto::testing

/// The target itself; `...` are the converters and the messages as for MessageFuzz.
#define CRETO_FUZZ_MESSAGES(...)                                                                             \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {                        \
    creto::testing::MessageFuzz<__VA_ARGS__>::run(data, size);                                               \
    return 0;                                                                                                \
  }                                                                                                          \
  extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t size_max, \
                                                 unsigned random) {                                          \
    return creto::testing::MessageFuzz<__VA_ARGS__>::mutate(data, size, size_max, random);                   \
  }
