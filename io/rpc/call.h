#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "creto/io/rpc.h"
#include "rpc/worker_pool.h"

namespace google::protobuf {
class MethodDescriptor;
}

namespace creto::rpc {

/// One running call as its transport sees it. Each is used for one call and shared until that call is answered.
class Call {
 public:
  virtual ~Call() = default;

  /// Of a header or metadata entry whose name is in lower case; empty where absent.
  virtual std::string_view metadata(std::string_view name) const = 0;
  virtual std::vector<std::string> certificate_uris() const = 0;
  virtual std::string peer() const = 0;
  /// What the caller is ready to wait.
  virtual std::optional<Nanos> timeout() const = 0;
  virtual Result<> parse(google::protobuf::Message& request) = 0;

  /// Once; either a message or an error.
  virtual void answer(const google::protobuf::Message& message) = 0;
  virtual void fail(const Error& error) = 0;
  /// The handler has returned without an answer and the request is no longer looked at: from now on the transport may
  /// end the call by itself when its caller goes away.
  virtual void park() {}
  /// For a stream instead of `answer`. Null where the transport cannot.
  virtual std::shared_ptr<detail::Outlet> open_stream(std::size_t queue_max) = 0;
  /// Whether it is one message of an exchange, which `fail` ends.
  virtual bool in_exchange() const { return false; }
};

/// A registered method with all that is looked up once.
struct Entry {
  detail::Method method;
  std::string full_name;  ///< "/creto.nhi.v1.NhiService/GetAgent"
  const google::protobuf::MethodDescriptor* descriptor;
  Counter* succeeded;
  Histogram* seconds;
};

class Router;

class DispatcherImpl final : public Dispatcher {
 public:
  DispatcherImpl(Ports ports, DispatcherOptions options);
  ~DispatcherImpl() override;

  http::AsyncHandler rest() override;
  void mount(std::string prefix, http::Handler handler) override;
  std::size_t rest_body_bytes_max(const http::Request& head) const override;
  std::string openapi() const override;
  void stop() override;
  std::size_t request_bytes_max(const Entry& entry) const {
    return entry.method.request_bytes_max > 0 ? entry.method.request_bytes_max : options_.request_bytes_max;
  }

  /// Runs `call` here or on a worker, and answers it.
  void dispatch(const Entry& entry, const std::shared_ptr<Call>& call);

  const std::vector<std::unique_ptr<Entry>>& entries() const { return entries_; }
  const DispatcherOptions& options() const { return options_; }
  const Ports& ports() const { return ports_; }

 private:
  struct Running;
  void add(detail::Method method) override;
  /// Has `next` done on a thread of `pool`, or the call refused.
  void leave_to(io::WorkerPool& pool, const Entry& entry, const std::shared_ptr<Running>& running,
                void (DispatcherImpl::*next)(const Entry&, const std::shared_ptr<Running>&));
  void work(const Entry& entry, const std::shared_ptr<Running>& running);
  void wait(const Entry& entry, const std::shared_ptr<Running>& running);
  void run(const Entry& entry, const std::shared_ptr<Running>& running);
  bool admit(const Entry& entry, Running& running, const Credentials& credentials,
             const google::protobuf::Message& request);
  void serve(const http::Handler& handler, http::Request request, http::Respond respond);
  void finish(const Entry& entry, Running& running, const Error* error, const google::protobuf::Message* message);
  Result<Context> context_of(const Call& call, Credentials& credentials) const;

  const Ports ports_;
  const DispatcherOptions options_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unique_ptr<Router> router_;
  std::vector<std::pair<std::string, http::Handler>> mounts_;
  std::atomic<bool> stopped_ = false;
  Counter& put_off_;
  io::WorkerPool workers_;
  /// For who has to wait before it is known whether a call may be: whatever is slow there, the workers are not in it.
  io::WorkerPool waiting_;
};

/// Fields of an OpenAPI 3.0 document; see openapi.cc.
std::string make_openapi(const std::vector<std::unique_ptr<Entry>>& entries);

}  // namespace creto::rpc
