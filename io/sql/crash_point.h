#pragma once

#include <string>
#include <string_view>
#include <vector>

/// Where the crash tests end this process: right before and right after a commit. Only in builds with assertions.
namespace creto::sql::detail {

#ifdef NDEBUG

struct CrashPoint {
  void wrote(std::string_view) {}
  void before_commit() const {}
  void after_commit() const {}
};

#else

/// Follows one transaction, to know which kind of commit it ends with: the kind is what it writes, each once, in the
/// order of the first.
///
/// $CRETO_CRASH_AT names a side, `before` or `after`, and a file, as in `before:/tmp/kinds`. At that side of each
/// commit whose kind is not yet a line of the file, the line is added and the process gets SIGKILL. So a server that is
/// started again and again dies once at every kind of commit that it reaches, and then lives.
class CrashPoint {
 public:
  /// Notes a statement; those that only read, and savepoints, do not count.
  void wrote(std::string_view sql);
  void before_commit() const;
  void after_commit() const;

 private:
  std::vector<std::string> written_;
};

#endif

}  // namespace creto::sql::detail
