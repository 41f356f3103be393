#pragma once

#include <fmt/format.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

#include "creto/common/access.h"

namespace creto::testing {

/// Permits what a test lists. Thread-safe: the service that asks may be at the other end of a connection.
class ListedAccess final : public AccessControl {
 public:
  Result<> require(const Context& ctx, std::string_view action, std::string_view, std::string_view id) override {
    if (down) return Error(Product::platform, ErrorKind::unavailable, "authz does not answer");
    const std::lock_guard lock(mutex_);
    if (permits_.contains(fmt::format("{} {} {}", ctx.caller_text(), action, id))) return {};
    return Error(Product::platform, ErrorKind::permission_denied, "denied by policy");
  }
  /// `what`: "<caller> <action> <resource id>".
  void permit(std::string what) {
    const std::lock_guard lock(mutex_);
    permits_.insert(std::move(what));
  }

  std::atomic<bool> down = false;

 private:
  std::mutex mutex_;
  std::set<std::string> permits_;
};

}  // namespace creto::testing
