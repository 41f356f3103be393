#include "creto/testing/message_fuzz.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "creto/common/bytes.h"
#include "creto/testing/fuzz_seeds.h"

namespace creto::testing {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr int elements_max = 8;
constexpr int depth_max = 6;
constexpr std::size_t text_max = 256;

/// What texts of our messages are made of, beside a module's own words.
constexpr std::string_view common_words[] = {"",
                                             "agent:nhi:ed25519:11111111111111111111111111111111",
                                             "human:ada@example.com",
                                             "service:billing",
                                             "{}",
                                             "{\"a\":1}",
                                             "12.5",
                                             "USD",
                                             "2026-11-29T20:35:04Z",
                                             "Ed25519",
                                             "01890a5d01890a5d01890a5d01890a5d"};
constexpr std::string_view id_prefixes[] = {"sb",   "req", "evt", "sub", "msg", "inv", "del",
                                            "tsub", "mem", "obj", "act", "res", "aud", "sdl"};
constexpr std::int64_t edges[] = {0,         1,        -1, 999'999'999, 1'000'000'000, 9'223'372'035, 253'402'300'799,
                                  INT64_MAX, INT64_MIN};

class Mutator {
 public:
  Mutator(Words words, unsigned seed) : words_(words), random_(seed) {}

  void change(Message& message, int depth) {
    const auto* type = message.GetDescriptor();
    if (type->field_count() == 0) return;
    const FieldDescriptor* field = type->field(below(type->field_count()));
    const Reflection& reflection = *message.GetReflection();
    if (field->is_repeated()) {
      repeated(message, reflection, *field, depth);
    } else if (one_in(8)) {
      reflection.ClearField(&message, field);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (depth < depth_max) change(*reflection.MutableMessage(&message, field), depth + 1);
    } else {
      scalar(message, reflection, *field);
    }
  }

  int below(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }
  bool one_in(int count) { return below(count) == 0; }
  auto pick(const auto& from) { return from[static_cast<std::size_t>(below(static_cast<int>(std::size(from))))]; }

 private:
  void repeated(Message& message, const Reflection& reflection, const FieldDescriptor& field, int depth) {
    const int size = reflection.FieldSize(message, &field);
    if (size > 0 && one_in(4)) {
      reflection.SwapElements(&message, &field, below(size), size - 1);
      reflection.RemoveLast(&message, &field);
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (depth >= depth_max) return;
      const bool fresh = size == 0 || (size < elements_max && one_in(2));
      change(fresh ? *reflection.AddMessage(&message, &field)
                   : *reflection.MutableRepeatedMessage(&message, &field, below(size)),
             depth + 1);
    } else if (size < elements_max) {
      // A changed element is one that goes and one that comes.
      add(message, reflection, field);
    }
  }

  void add(Message& message, const Reflection& reflection, const FieldDescriptor& field) {
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        reflection.AddString(&message, &field, text(field, {}));
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection.AddEnumValue(&message, &field, enum_value(field));
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection.AddBool(&message, &field, one_in(2));
        break;
      case FieldDescriptor::CPPTYPE_FLOAT:
        reflection.AddFloat(&message, &field, number<float>(0));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.AddDouble(&message, &field, number<double>(0));
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        reflection.AddInt32(&message, &field, number<std::int32_t>(0));
        break;
      case FieldDescriptor::CPPTYPE_UINT32:
        reflection.AddUInt32(&message, &field, number<std::uint32_t>(0));
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection.AddInt64(&message, &field, number<std::int64_t>(0));
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection.AddUInt64(&message, &field, number<std::uint64_t>(0));
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        break;
    }
  }

  void scalar(Message& message, const Reflection& reflection, const FieldDescriptor& field) {
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        reflection.SetString(&message, &field, text(field, reflection.GetString(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection.SetEnumValue(&message, &field, enum_value(field));
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection.SetBool(&message, &field, one_in(2));
        break;
      case FieldDescriptor::CPPTYPE_FLOAT:
        reflection.SetFloat(&message, &field, number(reflection.GetFloat(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.SetDouble(&message, &field, number(reflection.GetDouble(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_INT32:
        reflection.SetInt32(&message, &field, number(reflection.GetInt32(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_UINT32:
        reflection.SetUInt32(&message, &field, number(reflection.GetUInt32(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        reflection.SetInt64(&message, &field, number(reflection.GetInt64(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        reflection.SetUInt64(&message, &field, number(reflection.GetUInt64(message, &field)));
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        break;
    }
  }

  std::string text(const FieldDescriptor& field, std::string now) {
    if (one_in(4)) return word();
    const std::size_t size = std::min(now.size(), text_max);
    now.resize(text_max);
    now.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(now.data()), size, text_max));
    // protobuf itself refuses a string that is no UTF-8.
    if (field.type() == FieldDescriptor::TYPE_STRING && !is_valid_utf8(now))
      for (char& c : now) c = static_cast<char>(c & 0x7f);
    return now;
  }

  std::string word() {
    switch (below(words_.empty() ? 2 : 3)) {
      case 0:
        return std::string(pick(common_words));
      case 1:
        return std::string(pick(id_prefixes)) + "-01890a5d-ac96-774b-bcce-b302099a8057";
      default:
        return std::string(pick(words_));
    }
  }

  int enum_value(const FieldDescriptor& field) {
    const auto* type = field.enum_type();
    return one_in(16) ? number<std::int32_t>(0) : type->value(below(type->value_count()))->number();
  }

  template <class T>
  T number(T now) {
    if (one_in(2)) return static_cast<T>(pick(edges));
    std::array<std::uint8_t, sizeof(T)> bytes;
    std::memcpy(bytes.data(), &now, sizeof(T));
    const std::size_t size = LLVMFuzzerMutate(bytes.data(), bytes.size(), bytes.size());
    std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(size), bytes.end(), std::uint8_t{0});
    std::memcpy(&now, bytes.data(), sizeof(T));
    return now;
  }

  const Words words_;
  std::minstd_rand random_;
};

}  // namespace

std::unique_ptr<Message> read_message(std::span<const Message* const> prototypes, const std::uint8_t* data,
                                      std::size_t size) {
  if (size == 0) return nullptr;
  std::unique_ptr<Message> message(prototypes[data[0] % prototypes.size()]->New());
  if (!message->ParseFromArray(data + 1, static_cast<int>(size - 1))) return nullptr;
  return message;
}

std::size_t mutate_message(std::span<const Message* const> prototypes, Words words, std::uint8_t* data,
                           std::size_t size, std::size_t size_max, unsigned random) {
  Mutator mutator(words, random);
  auto message = read_message(prototypes, data, size);
  if (!message || mutator.one_in(32)) {
    const int which = mutator.below(static_cast<int>(prototypes.size()));
    data[0] = static_cast<std::uint8_t>(which);
    message.reset(prototypes[static_cast<std::size_t>(which)]->New());
  }
  for (int changes = 1 + mutator.below(4); changes > 0; --changes) mutator.change(*message, 0);
  const std::string bytes = stable_bytes(*message);
  if (bytes.size() + 1 > size_max) return LLVMFuzzerMutate(data, size, size_max);
  std::ranges::copy(bytes, data + 1);
  return bytes.size() + 1;
}

const Context& some_caller() {
  static const Context known = Context::of_service(Identity::service("billing").value());
  return known;
}

std::string stable_bytes(const Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

}  // namespace creto::testing
