#include "creto/io/http_client.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace creto::http {
namespace {

struct CurlFree {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using Handle = std::unique_ptr<CURL, CurlFree>;

struct Transfer {
  const ClientRequest* request;
  Response response;
  std::size_t header_bytes = 0;
  bool too_large = false;
  bool refused_address = false;
  bool ok = false;  // the status line said 200
  bool stopped = false;
};

std::size_t on_body(char* data, std::size_t, std::size_t size, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (transfer.response.body.size() + size > transfer.request->body_bytes_max) {
    transfer.too_large = true;
    return 0;
  }
  transfer.response.body.append(data, size);
  if (transfer.ok && transfer.request->on_body && !transfer.request->on_body(std::string_view(data, size))) {
    transfer.stopped = true;
    return 0;
  }
  return size;
}

std::size_t on_header(char* data, std::size_t, std::size_t size, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  transfer.header_bytes += size;
  if (transfer.header_bytes > 256 << 10) {
    transfer.too_large = true;
    return 0;
  }
  std::string_view line(data, size);
  if (line.starts_with("HTTP/")) {
    transfer.response.headers.clear();  // a redirect's or an interim answer's
    const auto space = line.find(' ');
    transfer.ok = space != line.npos && line.substr(space).starts_with(" 200");
    return size;
  }
  std::size_t colon = line.find(':');
  if (colon == line.npos) return size;
  std::string name(line.substr(0, colon));
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  std::string_view value = line.substr(colon + 1);
  auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!value.empty() && blank(value.front())) value.remove_prefix(1);
  while (!value.empty() && blank(value.back())) value.remove_suffix(1);
  transfer.response.headers.emplace_back(std::move(name), std::string(value));
  return size;
}

bool is_private_v4(std::uint32_t ip) {
  auto in = [ip](std::uint32_t net, int bits) { return (ip >> (32 - bits)) == (net >> (32 - bits)); };
  return in(0x00000000, 8) || in(0x0a000000, 8) || in(0x64400000, 10) || in(0x7f000000, 8) || in(0xa9fe0000, 16) ||
         in(0xac100000, 12) || in(0xc0000000, 24) || in(0xc0a80000, 16) || in(0xc6120000, 15) || ip >= 0xe0000000;
}

bool is_private(const sockaddr& address) {
  if (address.sa_family == AF_INET)
    return is_private_v4(ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr));
  if (address.sa_family != AF_INET6) return true;
  const in6_addr& ip = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  const std::uint8_t* b = ip.s6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&ip) || IN6_IS_ADDR_V4COMPAT(&ip))
    return is_private_v4(static_cast<std::uint32_t>(b[12] << 24 | b[13] << 16 | b[14] << 8 | b[15]));
  return IN6_IS_ADDR_UNSPECIFIED(&ip) || IN6_IS_ADDR_LOOPBACK(&ip) || (b[0] & 0xfe) == 0xfc ||
         (b[0] == 0xfe && (b[1] & 0xc0) == 0x80) || b[0] == 0xff || (b[0] == 0x00 && b[1] == 0x64);
}

/// Sees the address that is really connected to, so that a name cannot resolve to something else after a check.
curl_socket_t on_open(void* user, curlsocktype, curl_sockaddr* address) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (transfer.request->refuse_private_addresses && is_private(address->addr)) {
    transfer.refused_address = true;
    return CURL_SOCKET_BAD;
  }
  return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

curl_blob blob(const std::string& text) { return {const_cast<char*>(text.data()), text.size(), CURL_BLOB_NOCOPY}; }

class ClientImpl final : public Client {
 public:
  ClientImpl(const Clock& clock, CircuitBreakerOptions breaker) : clock_(clock), breaker_options_(breaker) {
    static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
    (void)initialized;
  }

  Result<Response> send(const Context& ctx, const ClientRequest& request) override {
    Nanos timeout = request.timeout;
    if (ctx.deadline != Monotonic::max()) timeout = std::min(timeout, Nanos(ctx.deadline - clock_.monotonic()));
    if (timeout <= Nanos(0)) return Error(Product::platform, ErrorKind::timeout, "the deadline has passed");
    std::optional<Result<Response>> answer;
    const auto breaker = breaker_of(request);
    const Result<> called = breaker->run(
        [&]() -> Result<> {
          answer = transfer(request, timeout);
          if (!*answer) return Error(answer->error());
          const int status = (*answer)->status;
          if (status != 502 && status != 503 && status != 504) return {};
          return Error(Product::platform, ErrorKind::unavailable, fmt::format("it answered with {}", status));
        },
        [&](const Error& error) {
          if (error.kind() == ErrorKind::timeout) return timeout == request.timeout;  // else its caller was in a hurry
          return error.kind() == ErrorKind::unavailable;
        });
    if (!answer) return Error(called.error());
    return *std::move(answer);
  }

 private:
  Result<Response> transfer(const ClientRequest& request, Nanos timeout) {
    for (const auto& [name, value] : request.headers)
      if (name.find_first_of("\r\n:") != name.npos || value.find_first_of("\r\n") != value.npos)
        return Error(Product::platform, ErrorKind::invalid_input, "a header must not contain a line break");

    Handle handle = take();
    CURL* curl = handle.get();
    Transfer state{&request, {}, 0, false, false};
    auto ms = [](Nanos t) { return static_cast<long>(std::chrono::ceil<std::chrono::milliseconds>(t).count()); };
    curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, request.redirects_max > 0 ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, static_cast<long>(request.redirects_max));
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, ms(timeout));
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, ms(std::min(request.connect_timeout, timeout)));
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &state);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &state);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, &on_open);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, &state);
    if (request.refuse_private_addresses) curl_easy_setopt(curl, CURLOPT_FRESH_CONNECT, 1L);
    if (!request.unix_path.empty()) curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, request.unix_path.c_str());
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
    if (request.method == "HEAD") curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    if (!request.body.empty() || request.method == "POST" || request.method == "PUT" || request.method == "PATCH") {
      curl_easy_setopt(curl, CURLOPT_POST, 1L);
      curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
      curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.data());
    }
    std::unique_ptr<curl_slist, CurlFree> headers(curl_slist_append(nullptr, "Expect:"));
    bool typed = false;
    for (const auto& [name, value] : request.headers) {
      if (name.size() == 12 && ::strcasecmp(name.c_str(), "content-type") == 0) typed = true;
      curl_slist_append(headers.get(), (value.empty() ? name + ";" : name + ": " + value).c_str());
    }
    if (!typed) curl_slist_append(headers.get(), "Content-Type:");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
    curl_blob authority = blob(request.authority_pem), certificate = blob(request.certificate_pem),
              key = blob(request.key_pem);
    if (authority.len > 0) curl_easy_setopt(curl, CURLOPT_CAINFO_BLOB, &authority);
    if (certificate.len > 0) {
      curl_easy_setopt(curl, CURLOPT_SSLCERT_BLOB, &certificate);
      curl_easy_setopt(curl, CURLOPT_SSLKEY_BLOB, &key);
    }

    CURLcode code = curl_easy_perform(curl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    std::string host = host_of(request.url);
    if (code == CURLE_OK) {
      give_back(std::move(handle));
      state.response.status = static_cast<int>(status);
      return std::move(state.response);
    }
    if (state.stopped)
      return Error(Product::platform, ErrorKind::cancelled,
                   fmt::format("the answer of `{}` was not read to its end", host));
    if (state.too_large)
      return Error(Product::platform, ErrorKind::too_large,
                   fmt::format("the answer of `{}` is over {} bytes", host, request.body_bytes_max));
    if (state.refused_address)
      return Error(Product::platform, ErrorKind::invalid_input, fmt::format("`{}` is a private address", host));
    switch (code) {
      case CURLE_UNSUPPORTED_PROTOCOL:
      case CURLE_URL_MALFORMAT:
        return Error(Product::platform, ErrorKind::invalid_input, "the url is not a valid http or https one");
      case CURLE_OPERATION_TIMEDOUT:
        return Error(Product::platform, ErrorKind::timeout, fmt::format("`{}` did not answer in time", host));
      default:
        return Error(Product::platform, ErrorKind::unavailable,
                     fmt::format("cannot reach `{}`: {}", host, curl_easy_strerror(code)));
    }
  }

  std::shared_ptr<CircuitBreaker> breaker_of(const ClientRequest& request) {
    const std::string host = request.unix_path.empty() ? host_of(request.url) : request.unix_path;
    const std::lock_guard lock(mutex_);
    if (const auto known = breakers_.find(host); known != breakers_.end()) return known->second;
    // Hosts may be named from outside; of those that work nothing need be remembered.
    if (breakers_.size() >= breakers_max)
      std::erase_if(breakers_, [](const auto& one) { return one.second->state() == CircuitBreaker::State::closed; });
    if (breakers_.size() >= breakers_max) breakers_.clear();
    return breakers_.emplace(host, std::make_shared<CircuitBreaker>(host, breaker_options_, clock_)).first->second;
  }

  /// Without user, path and query, which may hold secrets.
  static std::string host_of(const std::string& url) {
    std::size_t begin = url.find("://");
    begin = begin == std::string::npos ? 0 : begin + 3;
    std::string host = url.substr(begin, url.find_first_of("/?#", begin) - begin);
    return host.substr(host.rfind('@') + 1).substr(0, 255);
  }

  Handle take() {
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        Handle handle = std::move(idle_.back());
        idle_.pop_back();
        return handle;
      }
    }
    return Handle(curl_easy_init());
  }

  void give_back(Handle handle) {
    curl_easy_reset(handle.get());  // keeps live connections
    std::lock_guard lock(mutex_);
    if (idle_.size() < 16) idle_.push_back(std::move(handle));
  }

  static constexpr std::size_t breakers_max = 1024;

  const Clock& clock_;
  const CircuitBreakerOptions breaker_options_;
  std::mutex mutex_;
  std::vector<Handle> idle_;
  std::map<std::string, std::shared_ptr<CircuitBreaker>> breakers_;
};

}  // namespace

std::shared_ptr<Client> Client::create(const Clock& clock, CircuitBreakerOptions breaker) {
  return std::make_shared<ClientImpl>(clock, breaker);
}

}  // namespace creto::http
