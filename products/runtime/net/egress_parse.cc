#include <algorithm>
#include <cstring>

#include "net/egress_proxy.h"

namespace creto::runtime::egress {
namespace {

constexpr std::size_t greeting_max = 16 << 10;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return lower(c); });
  return out;
}

/// Reads big-endian numbers; `ok` turns false where the bytes end.
struct Cursor {
  std::string_view bytes;
  bool ok = true;

  std::uint32_t number(std::size_t size) {
    if (bytes.size() < size) {
      ok = false;
      bytes = {};
      return 0;
    }
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    bytes.remove_prefix(size);
    return value;
  }
  std::string_view take(std::size_t size) {
    if (bytes.size() < size) {
      ok = false;
      bytes = {};
      return {};
    }
    const auto taken = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return taken;
  }
};

}  // namespace

Peek tls_server_name(std::string_view bytes) {
  const Peek none{Peek::State::none, {}};
  const Peek more{Peek::State::need_more, {}};
  // The hello may be cut into several records.
  std::string hello;
  Cursor records{bytes};
  for (;;) {
    if (records.bytes.size() < 5) {
      if (!records.bytes.empty() && records.bytes[0] != 0x16) return none;
      return bytes.size() > greeting_max ? none : more;
    }
    if (records.number(1) != 0x16) return none;
    records.number(2);
    const auto length = records.number(2);
    if (length == 0 || length > 16384) return none;
    const bool whole = records.bytes.size() >= length;
    hello.append(records.take(std::min<std::size_t>(length, records.bytes.size())));
    if (hello.size() >= 4) {
      Cursor head{hello};
      if (head.number(1) != 1) return none;
      const auto size = head.number(3);
      if (size > greeting_max) return none;
      if (hello.size() >= 4 + size) {
        hello = hello.substr(4, size);
        break;
      }
    }
    if (!whole) return bytes.size() > greeting_max ? none : more;
  }
  Cursor in{hello};
  in.take(2 + 32);
  in.take(in.number(1));
  in.take(in.number(2));
  in.take(in.number(1));
  Cursor extensions{in.take(in.number(2))};
  while (in.ok && extensions.ok && !extensions.bytes.empty()) {
    const auto type = extensions.number(2);
    Cursor body{extensions.take(extensions.number(2))};
    if (type != 0) continue;
    body.number(2);
    if (body.number(1) != 0) return none;
    const auto name = body.take(body.number(2));
    if (!body.ok || name.empty()) return none;
    return {Peek::State::found, lower(name)};
  }
  return none;
}

Peek http_host(std::string_view bytes) {
  // The first line begins with printable text; its end may be half here.
  auto first = bytes.substr(0, std::min<std::size_t>(16, bytes.find("\r\n")));
  if (first.size() == bytes.size() && first.ends_with('\r')) first.remove_suffix(1);
  if (!std::all_of(first.begin(), first.end(), [](char c) { return c >= ' ' && c < 127; }))
    return {Peek::State::none, {}};
  const auto end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos)
    return {bytes.size() <= greeting_max ? Peek::State::need_more : Peek::State::none, {}};
  std::size_t at = bytes.find("\r\n");
  std::string host;
  bool named = false;
  while (at < end) {
    at += 2;
    const auto stop = bytes.find("\r\n", at);
    const auto line = bytes.substr(at, stop - at);
    if (line.size() >= 5 && lower(line.substr(0, 5)) == "host:") {
      auto value = line.substr(5);
      while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
      while (!value.empty() && value.back() == ' ') value.remove_suffix(1);
      if (const auto colon = value.rfind(':'); colon != std::string_view::npos) value = value.substr(0, colon);
      if (named) host += ',';
      host += lower(value);
      named = true;
    }
    at = stop;
  }
  return host.empty() ? Peek{Peek::State::none, {}} : Peek{Peek::State::found, host};
}

std::optional<DnsQuestion> dns_question(std::string_view packet) {
  Cursor in{packet};
  in.take(2);
  const auto flags = in.number(2);
  const auto questions = in.number(2);
  in.take(6);
  if (!in.ok || (flags & 0xF800) != 0 || questions != 1) return std::nullopt;
  DnsQuestion question;
  for (;;) {
    const auto length = in.number(1);
    if (!in.ok || length > 63) return std::nullopt;
    if (length == 0) break;
    if (!question.name.empty()) question.name += '.';
    question.name += lower(in.take(length));
    if (!in.ok || question.name.size() > 253) return std::nullopt;
  }
  question.type = static_cast<std::uint16_t>(in.number(2));
  in.number(2);
  if (!in.ok || !is_host_name(question.name)) return std::nullopt;
  question.end = packet.size() - in.bytes.size();
  return question;
}

std::string dns_answer(std::string_view packet, const DnsQuestion& question, std::optional<std::uint32_t> ipv4,
                       bool failed) {
  std::string answer(packet.substr(0, question.end));
  answer[2] = static_cast<char>(0x84 | (answer[2] & 1));  // response, authoritative, recursion desired as asked
  answer[3] = static_cast<char>(0x80 | (failed ? 2 : 0));
  answer[6] = 0;
  answer[7] = ipv4 ? 1 : 0;
  for (std::size_t i = 8; i < 12; ++i) answer[i] = 0;
  if (ipv4) {
    answer.append("\xC0\x0C\x00\x01\x00\x01\x00\x00\x00\x3C\x00\x04", 12);
    answer.append(reinterpret_cast<const char*>(&*ipv4), 4);
  }
  return answer;
}

bool is_host_name(std::string_view name) {
  if (name.empty() || name.size() > 253 || name.front() == '.' || name.back() == '.') return false;
  if (name.find("..") != std::string_view::npos) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  });
}

}  // namespace creto::runtime::egress
