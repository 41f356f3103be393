#include "chores.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "creto/io/idempotency.h"
#include "system.h"

namespace creto::app {
namespace {

class ChoreThread final : public Chores {
 public:
  explicit ChoreThread(System& system) : system_(system), thread_([this] { run(); }) {
    // Only another process can have changed policies behind our back, and only where it shares the database.
    if (system_.database->dialect() == sql::Dialect::postgres) refresh_ = std::thread([this] { refresh(); });
  }
  ~ChoreThread() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
    if (refresh_.joinable()) refresh_.join();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (std::uint64_t second = 0; !stopping_; ++second) {
      lock.unlock();
      Context ctx = Context::of_service(self_);
      ctx.org = system_.settings.org;
      if (second % 60 == 0) each_minute(ctx);
      if (second % 3600 == 0) each_hour(ctx);
      lock.lock();
      wake_.wait_for(lock, std::chrono::seconds(1), [this] { return stopping_; });
    }
  }

  /// On a thread of its own, because checks deny where this has not happened for long, and other chores may take long.
  void refresh() {
    Context ctx = Context::of_service(self_);
    ctx.org = system_.settings.org;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      lock.unlock();
      ctx.deadline = system_clock().monotonic() + std::chrono::seconds(10);
      attempt("nhi", [&] { return system_.nhi->refresh(ctx); });
      attempt("authz", [&] { return system_.authz->refresh(ctx); });
      lock.lock();
      wake_.wait_for(lock, std::chrono::seconds(1), [this] { return stopping_; });
    }
  }

  void each_minute(const Context& ctx) {
    if (system_.local_metering) attempt("metering", [&] { return system_.local_metering->tick(); });
    if (system_.runs("messaging")) attempt("messaging", [&] { return system_.messaging->clean_up(ctx); });
    attempt("provisioning", [&] { return system_.provisioning->resume(); });
    if (system_.runtime) attempt("runtime", [&] { return system_.runtime->sweep(ctx); });
    if (system_.endpoint) attempt("prekeys", [&] { return system_.endpoint->follow_rotations(ctx); });
    attempt("memory", [&] { return system_.memory->sweep(ctx); });
    attempt("storage", [&] { return system_.storage->sweep(ctx); });
    attempt("idempotency", [&] { return io::forget_expired(*system_.database); });
  }

  void each_hour(const Context& ctx) {
    if (system_.endpoint) attempt("prekeys", [&] { return system_.endpoint->publish_keys(ctx); });
  }

  template <class F>
  void attempt(std::string_view chore, F action) {
    const auto result = action();
    if (!result)
      system_.telemetry->error("platform", "chore_failed", {{"chore", chore}, {"error", result.error().to_string()}});
  }

  System& system_;
  const Identity self_ = Identity::service("creto").value();
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
  std::thread refresh_;
};

}  // namespace

std::unique_ptr<Chores> start_chores(System& system) { return std::make_unique<ChoreThread>(system); }

}  // namespace creto::app
