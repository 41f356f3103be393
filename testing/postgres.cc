#include "creto/testing/postgres.h"

#include <fcntl.h>
#include <grp.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "creto/testing/temp_dir.h"

namespace creto::testing {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "no PostgreSQL for this test: %s; ./dev deps installs it\n", why.c_str());
  std::abort();
}

fs::path find_binaries() {
  if (const char* given = std::getenv("CRETO_POSTGRES_BIN")) return given;
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ignored)) {
    if (fs::exists(version.path() / "bin/postgres")) found.push_back(version.path() / "bin");
  }
  if (found.empty()) give_up("it is not below /usr/lib/postgresql");
  return *std::max_element(found.begin(), found.end());
}

struct User {
  uid_t uid;
  gid_t gid;
};

/// PostgreSQL refuses to run as root.
std::optional<User> other_user() {
  if (::geteuid() != 0) return std::nullopt;
  for (const char* name : {"postgres", "nobody"}) {
    if (const passwd* entry = ::getpwnam(name)) return User{entry->pw_uid, entry->pw_gid};
  }
  give_up("we are root, and there is no user postgres or nobody");
}

pid_t start(const std::vector<std::string>& command, const std::optional<User>& user, const fs::path& log) {
  std::vector<char*> arguments;
  for (const auto& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) give_up("cannot fork");
  if (pid > 0) return pid;
  const int output = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::dup2(output, 1);
  ::dup2(output, 2);
  if (user && (::setgroups(0, nullptr) != 0 || ::setgid(user->gid) != 0 || ::setuid(user->uid) != 0)) ::_exit(126);
  // After the change of user, which clears it. Whatever ends the test process ends the server.
  ::prctl(PR_SET_PDEATHSIG, SIGINT);
  if (::getppid() != parent) ::_exit(0);
  if (::chdir("/") != 0) ::_exit(126);
  ::setenv("LC_ALL", "C", 1);
  // A sanitizer's runtime options are for us, not for it.
  ::unsetenv("LD_PRELOAD");
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

std::string tail(const fs::path& log) {
  std::string text;
  if (FILE* file = std::fopen(log.c_str(), "r")) {
    char buffer[4096];
    const std::size_t size = std::fread(buffer, 1, sizeof buffer, file);
    text.assign(buffer, size);
    std::fclose(file);
  }
  return text;
}

class Server {
 public:
  explicit Server(bool syncs)
      : directory_("creto-pg"),
        owner_(::getpid()),
        user_(other_user()),
        binaries_(find_binaries()),
        data_(directory_ / "data"),
        log_(directory_ / "log"),
        sync_(syncs ? "on" : "off") {
    fs::create_directory(data_);
    if (user_) {
      for (const auto& path : {directory_.path(), data_}) {
        if (::chown(path.c_str(), user_->uid, user_->gid) != 0) give_up("cannot hand over its directory");
      }
    }
    const pid_t init = start({binaries_ / "initdb", "-D", data_, "-U", "creto", "-A", "trust", "-E", "UTF8",
                              "--locale=C", "--no-sync", "--no-instructions"},
                             user_, log_);
    int status = 0;
    ::waitpid(init, &status, 0);
    if (status != 0) give_up("initdb failed: " + tail(log_));
    begin();
  }

  ~Server() {
    if (::getpid() != owner_) {
      // A fork of the test process: the server is the parent's.
      if (keeper_.joinable()) keeper_.detach();
      return;
    }
    end();
  }

  void begin() {
    gone_ = false;
    // PR_SET_PDEATHSIG follows the thread that forked; a thread of its own that waits keeps it alive as long as we are.
    keeper_ = std::thread([this] {
      pid_ = start({binaries_ / "postgres", "-D", data_, "-k", directory_.path(), "-c", "listen_addresses=", "-c",
                    "fsync=" + sync_, "-c", "full_page_writes=" + sync_, "-c", "max_connections=200", "-c",
                    "shared_buffers=16MB", "-c", "max_wal_size=64MB", "-c", "dynamic_shared_memory_type=mmap"},
                   user_, log_);
      ::waitpid(pid_, nullptr, 0);
      gone_ = true;
    });
    for (int i = 0; i < 600; ++i) {
      if (gone_) give_up("it ended at once: " + tail(log_));
      PGconn* connection = PQconnectdb(conninfo("postgres").c_str());
      const bool ready = PQstatus(connection) == CONNECTION_OK;
      PQfinish(connection);
      if (ready) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    give_up("it did not start within 60 s: " + tail(log_));
  }

  void end() {
    if (!keeper_.joinable()) return;
    if (pid_ > 0) ::kill(pid_, SIGQUIT);
    keeper_.join();
  }

  std::string create() {
    const std::string name = "test_" + std::to_string(++count_) + "_" + std::to_string(::getpid());
    PGconn* connection = PQconnectdb(conninfo("postgres").c_str());
    PGresult* result = PQexec(connection, ("CREATE DATABASE " + name).c_str());
    if (PQresultStatus(result) != PGRES_COMMAND_OK) give_up(PQerrorMessage(connection));
    PQclear(result);
    PQfinish(connection);
    return conninfo(name);
  }

 private:
  std::string conninfo(const std::string& name) const {
    return "host=" + directory_.path().string() + " user=creto dbname=" + name;
  }

  TempDir directory_;
  pid_t owner_;
  std::optional<User> user_;
  const fs::path binaries_, data_, log_;
  const std::string sync_;
  std::atomic<pid_t> pid_ = 0;
  std::atomic<bool> gone_ = false;
  std::atomic<int> count_ = 0;
  std::thread keeper_;
};

}  // namespace

std::string fresh_postgres_database() {
  static Server server(false);
  return server.create();
}

std::string durable_postgres_database() {
  static Server server(true);
  return server.create();
}

struct OwnPostgres::Impl {
  Server server{false};
};

OwnPostgres::OwnPostgres() : impl_(std::make_unique<Impl>()) {}
OwnPostgres::~OwnPostgres() = default;
std::string OwnPostgres::fresh_database() { return impl_->server.create(); }
void OwnPostgres::stop() { impl_->server.end(); }
void OwnPostgres::start() { impl_->server.begin(); }

}  // namespace creto::testing
