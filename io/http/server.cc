// The one translation unit that includes Beast: with TLS it costs most of a minute of compiling.

#include <fmt/format.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/dispatch.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <set>
#include <thread>

#include "creto/io/http_server.h"
#include "rpc/worker_pool.h"

namespace creto::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using boost::system::error_code;
using local = asio::local::stream_protocol;

class ServerImpl;

/// What the server knows of a connection whatever it runs over.
class Connection {
 public:
  virtual ~Connection() = default;
  /// From any thread: end it, at once or after the answer that is being made.
  virtual void close(bool at_once) = 0;
};

class ServerImpl final : public Server, public std::enable_shared_from_this<ServerImpl> {
 public:
  ServerImpl(ServerOptions options, AsyncHandler handler, Telemetry& telemetry)
      : options_(std::move(options)), handler_(std::move(handler)), telemetry_(telemetry) {}
  ~ServerImpl() override = default;

  Result<> listen();
  void stop(Nanos grace) override;
  std::uint16_t port() const override { return port_; }

  const ServerOptions& options() const { return options_; }
  const AsyncHandler& handler() const { return handler_; }
  asio::io_context& io() { return io_; }

  bool enter(const std::shared_ptr<Connection>& connection) {
    std::lock_guard lock(mutex_);
    if (stopping_ || connections_.size() >= options_.connections_max) return false;
    connections_.insert(connection);
    return true;
  }
  void leave(const std::shared_ptr<Connection>& connection) {
    std::lock_guard lock(mutex_);
    connections_.erase(connection);
    left_.notify_all();
  }
  bool stopping() {
    std::lock_guard lock(mutex_);
    return stopping_;
  }
  /// For answers from other threads. Once the server has stopped nobody would run it, and it would keep itself alive.
  template <class Executor, class F>
  void post(const Executor& executor, F function) {
    std::lock_guard lock(post_mutex_);
    if (!drained_) asio::post(executor, std::move(function));
  }

 private:
  Result<> make_tls();
  template <class Acceptor>
  void accept(Acceptor& acceptor);

  const ServerOptions options_;
  const AsyncHandler handler_;
  Telemetry& telemetry_;
  asio::io_context io_;
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work_{io_.get_executor()};
  std::optional<asio::ssl::context> tls_;
  std::optional<tcp::acceptor> tcp_;
  std::optional<local::acceptor> unix_;
  std::uint16_t port_ = 0;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable left_;
  std::set<std::shared_ptr<Connection>> connections_;
  bool stopping_ = false;
  std::mutex post_mutex_;
  bool drained_ = false;
};

// TCP and Unix sockets alike: each further type of stream costs a quarter of a minute of compiling.
using PlainStream = beast::basic_stream<asio::generic::stream_protocol, asio::any_io_executor>;
using TlsStream = beast::ssl_stream<PlainStream>;

std::vector<std::string> uris_of(SSL* ssl) {
  std::vector<std::string> uris;
  X509* certificate = SSL_get0_peer_certificate(ssl);
  if (certificate == nullptr || SSL_get_verify_result(ssl) != X509_V_OK) return uris;
  auto* names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type == GEN_URI)
      uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier)),
                        static_cast<std::size_t>(ASN1_STRING_length(name->d.uniformResourceIdentifier)));
  }
  GENERAL_NAMES_free(names);
  return uris;
}

/// One connection: reads a request, has it answered, writes the answer, and again. Everything runs on its strand.
template <class Stream>
class Session final : public Connection, public std::enable_shared_from_this<Session<Stream>> {
 public:
  static constexpr bool is_tls = std::is_same_v<Stream, TlsStream>;

  template <class... Args>
  Session(std::shared_ptr<ServerImpl> server, std::string peer, Args&&... args)
      : server_(std::move(server)),
        stream_(std::forward<Args>(args)...),
        peer_(std::move(peer)),
        timer_(stream_.get_executor()) {}

  void start() {
    asio::dispatch(stream_.get_executor(), [self = this->shared_from_this()] {
      if constexpr (is_tls) {
        self->lowest().expires_after(self->server_->options().read_timeout);
        self->stream_.async_handshake(asio::ssl::stream_base::server, [self](error_code error) {
          if (error) return self->end();
          self->uris_ = uris_of(self->stream_.native_handle());
          self->read();
        });
      } else {
        self->read();
      }
    });
  }

  void close(bool at_once) override {
    asio::post(stream_.get_executor(), [self = this->shared_from_this(), at_once] {
      self->last_ = true;
      if (!at_once && !self->idle_) return;
      if (self->waiting_) return self->end();
      self->lowest().close();
    });
  }

 private:
  auto& lowest() { return beast::get_lowest_layer(stream_); }

  void end() {
    waiting_ = false;
    timer_.cancel();
    error_code ignored;
    lowest().socket().shutdown(asio::socket_base::shutdown_both, ignored);
    lowest().close();
    server_->leave(this->shared_from_this());
  }

  void read() {
    parser_.emplace();
    // How large the body may be depends on what it is for, and so does whether its length is refused.
    parser_->body_limit(boost::none);
    parser_->header_limit(static_cast<std::uint32_t>(server_->options().header_bytes_max));
    lowest().expires_after(server_->options().read_timeout);
    idle_ = true;
    beast::http::async_read_header(stream_, buffer_, *parser_,
                                   [self = this->shared_from_this()](error_code error, std::size_t) {
                                     self->idle_ = false;
                                     if (error) return self->refuse(error);
                                     self->read_body();
                                   });
  }

  void read_body() {
    const auto& head = parser_->get();
    body_bytes_max_ = server_->options().body_bytes_max;
    if (const auto& limit_of = server_->options().body_bytes_of) {
      Request request;
      request.method = std::string(head.method_string());
      request.target = std::string(head.target());
      if (const std::size_t limit = limit_of(request); limit > 0) body_bytes_max_ = limit;
    }
    if (parser_->content_length().value_or(0) > body_bytes_max_)
      return refuse(make_error_code(beast::http::error::body_limit));
    parser_->body_limit(body_bytes_max_);
    beast::http::async_read(stream_, buffer_, *parser_,
                            [self = this->shared_from_this()](error_code error, std::size_t) {
                              if (error) return self->refuse(error);
                              self->answer();
                            });
  }

  void refuse(error_code error) {
    using Failure = beast::http::error;
    Error refusal(Product::platform, ErrorKind::invalid_input, fmt::format("malformed HTTP: {}", error.message()));
    int status = 400;
    if (error == Failure::body_limit) {
      refusal =
          Error(Product::platform, ErrorKind::too_large, fmt::format("the body is over {} bytes", body_bytes_max_));
      status = 413;
    } else if (error == Failure::header_limit) {
      refusal = Error(Product::platform, ErrorKind::too_large, "the header is too large");
      status = 431;
    } else if (error.category() != beast::http::make_error_code(Failure::end_of_stream).category() ||
               error == Failure::end_of_stream || error == Failure::partial_message) {
      return end();
    }
    last_ = true;
    Response response = error_response(refusal);
    response.status = status;
    write(std::move(response), 11);
  }

  void answer() {
    auto message = parser_->release();
    Request request;
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    for (const auto& field : message) {
      std::string name(field.name_string());
      for (char& c : name)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
      request.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    request.body = std::move(message.body());
    request.peer = peer_;
    request.peer_uris = uris_;
    unsigned version = message.version();
    head_ = message.method() == beast::http::verb::head;
    if (!message.keep_alive()) last_ = true;

    // Whoever answers first, handler or timer, wins; both come through the strand.
    std::uint64_t number = ++request_number_;
    waiting_ = true;
    lowest().expires_never();
    timer_.expires_after(server_->options().handler_timeout);
    timer_.async_wait([self = this->shared_from_this(), number, version](error_code error) {
      if (error || number != self->request_number_ || self->answered_ == number) return;
      self->last_ = true;
      self->reply(number, version,
                  error_response(Error(Product::platform, ErrorKind::timeout, "the request took too long")));
    });
    struct Once {
      std::shared_ptr<Session> session;
      std::uint64_t number;
      unsigned version;
      std::atomic<bool> used = false;
      void send(Response response) {
        if (used.exchange(true)) return;
        session->server_->post(session->stream_.get_executor(), [session = session, number = number, version = version,
                                                                 response = std::move(response)]() mutable {
          session->reply(number, version, std::move(response));
        });
      }
      ~Once() {
        send(error_response(Error(Product::platform, ErrorKind::internal, "the request was dropped unanswered")));
      }
    };
    auto once = std::make_shared<Once>(this->shared_from_this(), number, version);
    server_->handler()(std::move(request), [once](Response response) { once->send(std::move(response)); });
  }

  void reply(std::uint64_t number, unsigned version, Response response) {
    if (number != request_number_ || answered_ == number || !waiting_) return;
    answered_ = number;
    waiting_ = false;
    timer_.cancel();
    write(std::move(response), version);
  }

  void write(Response response, unsigned version) {
    out_.emplace();
    out_->version(version);
    out_->result(static_cast<unsigned>(response.status));
    for (auto& [name, value] : response.headers) {
      // A header that came from outside must not smuggle in another one.
      if (value.find_first_of("\r\n") == std::string::npos) out_->insert(name, value);
    }
    std::size_t size = response.body.size();
    if (!head_) out_->body() = std::move(response.body);
    out_->content_length(size);
    if (server_->stopping()) last_ = true;
    out_->keep_alive(!last_);
    lowest().expires_after(server_->options().read_timeout);
    beast::http::async_write(stream_, *out_, [self = this->shared_from_this()](error_code error, std::size_t) {
      if (error || self->last_) return self->end();
      self->read();
    });
  }

  std::shared_ptr<ServerImpl> server_;
  Stream stream_;
  const std::string peer_;
  asio::steady_timer timer_;
  std::vector<std::string> uris_;
  beast::flat_buffer buffer_;
  std::optional<beast::http::request_parser<beast::http::string_body>> parser_;
  std::optional<beast::http::response<beast::http::string_body>> out_;
  std::uint64_t request_number_ = 0, answered_ = 0;
  std::size_t body_bytes_max_ = 0;  ///< of the request that is being read
  bool head_ = false, last_ = false, idle_ = false, waiting_ = false;
};

Error cannot_listen(const std::string& where, const error_code& error) {
  return Error(Product::platform, ErrorKind::unavailable,
               fmt::format("cannot listen on `{}`: {}", where, error.message()));
}

Result<> ServerImpl::make_tls() {
  tls_.emplace(asio::ssl::context::tls_server);
  SSL_CTX* context = tls_->native_handle();
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set1_groups_list(context, "X25519MLKEM768:X25519:P-256");
  error_code error;
  auto buffer = [](const std::string& text) { return asio::const_buffer(text.data(), text.size()); };
  tls_->use_certificate_chain(buffer(options_.tls->certificate), error);
  if (!error) tls_->use_private_key(buffer(options_.tls->key), asio::ssl::context::pem, error);
  if (!error && !options_.tls->authority.empty()) {
    tls_->add_certificate_authority(buffer(options_.tls->authority), error);
    auto mode =
        asio::ssl::verify_peer | (options_.require_client_certificate ? asio::ssl::verify_fail_if_no_peer_cert : 0);
    if (!error) tls_->set_verify_mode(mode, error);
    // Resumed sessions would need a context id; with client certificates OpenSSL refuses them without one.
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0);
  }
  if (error)
    return Error(Product::platform, ErrorKind::invalid_input,
                 fmt::format("the TLS certificate or key is not valid: {}", error.message()));
  return {};
}

Result<> ServerImpl::listen() {
  std::signal(SIGPIPE, SIG_IGN);
  error_code error;
  if (options_.port) {
    if (options_.tls) CRETO_TRY(make_tls());
    std::string where = fmt::format("{}:{}", options_.address, *options_.port);
    auto address = asio::ip::make_address(options_.address, error);
    if (error) return cannot_listen(where, error);
    tcp::endpoint endpoint(address, *options_.port);
    tcp_.emplace(io_);
    if (tcp_->open(endpoint.protocol(), error)) return cannot_listen(where, error);
    tcp_->set_option(asio::socket_base::reuse_address(true), error);
    if (tcp_->bind(endpoint, error) || tcp_->listen(1024, error)) return cannot_listen(where, error);
    port_ = tcp_->local_endpoint(error).port();
  }
  if (!options_.unix_path.empty()) {
    if (options_.unix_path.size() >= sizeof(sockaddr_un::sun_path))
      return Error(Product::platform, ErrorKind::invalid_input,
                   fmt::format("the socket path `{}` is too long", options_.unix_path));
    ::unlink(options_.unix_path.c_str());
    local::endpoint endpoint(options_.unix_path);
    unix_.emplace(io_);
    if (unix_->open(endpoint.protocol(), error)) return cannot_listen(options_.unix_path, error);
    // Between bind and chmod nobody can connect yet: listen comes after.
    if (unix_->bind(endpoint, error)) return cannot_listen(options_.unix_path, error);
    if (::chmod(options_.unix_path.c_str(), static_cast<mode_t>(options_.unix_mode)) != 0)
      return cannot_listen(options_.unix_path, boost::system::error_code(errno, boost::system::system_category()));
    if (unix_->listen(1024, error)) return cannot_listen(options_.unix_path, error);
  }
  if (tcp_) accept(*tcp_);
  if (unix_) accept(*unix_);
  for (std::size_t i = 0; i < std::max<std::size_t>(options_.io_threads, 1); ++i)
    threads_.emplace_back([this] { io_.run(); });
  return {};
}

template <class Acceptor>
void ServerImpl::accept(Acceptor& acceptor) {
  acceptor.async_accept(asio::make_strand(io_), [self = shared_from_this(), &acceptor](error_code error, auto socket) {
    if (!acceptor.is_open()) return;
    if (error) {
      // Out of descriptors: trying again at once would spin.
      self->telemetry_.warn("platform", "http_accept_failed", {{"error", error.message()}});
      auto pause = std::make_shared<asio::steady_timer>(self->io_, std::chrono::milliseconds(50));
      pause->async_wait([self, pause, &acceptor](error_code) {
        if (acceptor.is_open()) self->accept(acceptor);
      });
      return;
    }
    auto begin = [&](const auto& session) {
      // Over the limit the connection is closed unanswered.
      if (self->enter(session)) session->start();
    };
    if constexpr (std::is_same_v<Acceptor, local::acceptor>) {
      begin(std::make_shared<Session<PlainStream>>(self, "unix", PlainStream(std::move(socket))));
    } else {
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      auto remote = socket.remote_endpoint(ignored);
      std::string peer = ignored ? "" : fmt::format("{}:{}", remote.address().to_string(), remote.port());
      if (self->tls_) {
        begin(std::make_shared<Session<TlsStream>>(self, std::move(peer), PlainStream(std::move(socket)), *self->tls_));
      } else {
        begin(std::make_shared<Session<PlainStream>>(self, std::move(peer), PlainStream(std::move(socket))));
      }
    }
    self->accept(acceptor);
  });
}

void ServerImpl::stop(Nanos grace) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
  }
  asio::post(io_, [this] {
    error_code ignored;
    if (tcp_) tcp_->close(ignored);
    if (unix_) unix_->close(ignored);
  });
  auto close_all = [&](bool at_once) {
    std::set<std::shared_ptr<Connection>> all;
    {
      std::lock_guard lock(mutex_);
      all = connections_;
    }
    for (const auto& connection : all) connection->close(at_once);
  };
  close_all(false);
  {
    std::unique_lock lock(mutex_);
    left_.wait_for(lock, grace, [&] { return connections_.empty(); });
  }
  close_all(true);
  {
    std::lock_guard lock(post_mutex_);
    drained_ = true;
  }
  // With every socket and timer closed the threads run out of work: no handler is left behind that would own what owns
  // it.
  work_.reset();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  if (!options_.unix_path.empty()) ::unlink(options_.unix_path.c_str());
  std::lock_guard lock(mutex_);
  connections_.clear();
}

/// Stops before it lets go: connections and the threads share ownership of the server.
class Handle final : public Server {
 public:
  Handle(std::shared_ptr<ServerImpl> server, std::shared_ptr<io::WorkerPool> pool)
      : server_(std::move(server)), pool_(std::move(pool)) {}
  ~Handle() override { stop(std::chrono::seconds(1)); }
  std::uint16_t port() const override { return server_->port(); }
  void stop(Nanos grace) override {
    server_->stop(grace);
    if (pool_) pool_->stop();
  }

 private:
  std::shared_ptr<ServerImpl> server_;
  std::shared_ptr<io::WorkerPool> pool_;
};

Result<std::unique_ptr<Server>> start_server(ServerOptions options, AsyncHandler handler, Telemetry& telemetry,
                                             std::shared_ptr<io::WorkerPool> pool) {
  auto server = std::make_shared<ServerImpl>(std::move(options), std::move(handler), telemetry);
  CRETO_TRY(server->listen());
  return std::unique_ptr<Server>(std::make_unique<Handle>(std::move(server), std::move(pool)));
}

}  // namespace

Result<std::unique_ptr<Server>> Server::start(ServerOptions options, Handler handler, Telemetry& telemetry) {
  auto pool = std::make_shared<io::WorkerPool>(options.workers, options.queue_max);
  AsyncHandler async = [pool, handler = std::move(handler), &telemetry](Request request, const Respond& respond) {
    auto shared = std::make_shared<Request>(std::move(request));
    bool queued = pool->submit([handler, shared, respond, &telemetry] {
      try {
        respond(handler(*shared));
      } catch (const std::exception& exception) {
        telemetry.error("platform", "http_handler_threw", {{"path", shared->path()}, {"error", exception.what()}});
        respond(error_response(Error(Product::platform, ErrorKind::internal, "internal error")));
      }
    });
    if (!queued)
      respond(error_response(Error(Product::platform, ErrorKind::unavailable, "too many requests are waiting")
                                 .with_retry_after(std::chrono::seconds(1))));
  };
  return start_server(std::move(options), std::move(async), telemetry, std::move(pool));
}

Result<std::unique_ptr<Server>> Server::start_async(ServerOptions options, AsyncHandler handler, Telemetry& telemetry) {
  return start_server(std::move(options), std::move(handler), telemetry, nullptr);
}

}  // namespace creto::http
