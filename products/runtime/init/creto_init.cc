// The first process inside a sandbox. It connects to the runtime over a unix
// socket that is mounted into the sandbox, takes identity, environment and
// secrets from there, and starts the commands it is told to. Linked statically,
// without exceptions: it runs in any image, even an empty one.
//
//   creto-init SOCKET SANDBOX-ID UID GID
//
// It outlives the runtime: when the connection breaks it keeps its commands
// running and connects again, and tells again what was not acknowledged: what
// the commands wrote, and that they ended.

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "driver/control_protocol.h"

using namespace creto::runtime::control;

namespace {

[[noreturn]] void die(const char* what) {
  fprintf(stderr, "creto-init: %s: %s\n", what, strerror(errno));
  _exit(111);
}

void wipe(void* data, size_t size) {
  memset(data, 0, size);
  __asm__ volatile("" : : "r"(data) : "memory");
}

/// A growing run of bytes; wiped when freed, because secrets pass through.
struct Buffer {
  uint8_t* data = nullptr;
  size_t size = 0, capacity = 0;

  void reserve(size_t wanted) {
    if (wanted <= capacity) return;
    size_t next = capacity ? capacity : 4096;
    while (next < wanted) next *= 2;
    auto* fresh = static_cast<uint8_t*>(malloc(next));
    if (!fresh) die("out of memory");
    if (size) memcpy(fresh, data, size);
    if (data) {
      wipe(data, capacity);
      free(data);
    }
    data = fresh;
    capacity = next;
  }
  void append(const void* bytes, size_t count) {
    reserve(size + count);
    if (count) memcpy(data + size, bytes, count);
    size += count;
  }
  void u32(uint32_t value) { append(&value, 4); }
  void text(const char* s) {
    u32(static_cast<uint32_t>(strlen(s)));
    append(s, strlen(s));
  }
  void drop_front(size_t count) {
    memmove(data, data + count, size - count);
    wipe(data + size - count, count);
    size -= count;
  }
  void release() {
    if (data) {
      wipe(data, capacity);
      free(data);
    }
    data = nullptr;
    size = capacity = 0;
  }
};

/// Reads a payload; `ok` turns false at the first byte that is not there.
struct Reader {
  const uint8_t* data;
  size_t size;
  bool ok = true;

  template <class T>
  T number() {
    T value = 0;
    if (size < sizeof value) {
      ok = false;
      return 0;
    }
    memcpy(&value, data, sizeof value);
    data += sizeof value;
    size -= sizeof value;
    return value;
  }
  uint8_t u8() { return number<uint8_t>(); }
  uint32_t u32() { return number<uint32_t>(); }
  uint64_t u64() { return number<uint64_t>(); }
  /// A fresh zero-terminated copy; a zero byte inside is refused.
  char* text(uint32_t* length = nullptr) {
    const uint32_t n = u32();
    if (!ok || n > size || (!length && memchr(data, 0, n))) {
      ok = false;
      return nullptr;
    }
    auto* copy = static_cast<char*>(malloc(n + 1));
    if (!copy) die("out of memory");
    memcpy(copy, data, n);
    copy[n] = 0;
    data += n;
    size -= n;
    if (length) *length = n;
    return copy;
  }
};

struct List {
  char** items = nullptr;  ///< ends with a null
  uint32_t count = 0;

  void add(char* item) {
    items = static_cast<char**>(realloc(items, (count + 2) * sizeof(char*)));
    if (!items) die("out of memory");
    items[count++] = item;
    items[count] = nullptr;
  }
  void release() {
    for (uint32_t i = 0; i < count; ++i) {
      wipe(items[i], strlen(items[i]));
      free(items[i]);
    }
    free(items);
    items = nullptr;
    count = 0;
  }
};

constexpr uint32_t list_max = 4096;

bool read_list(Reader& in, List& out) {
  const uint32_t n = in.u32();
  if (n > list_max) in.ok = false;
  for (uint32_t i = 0; in.ok && i < n; ++i)
    if (char* item = in.text()) out.add(item);
  return in.ok;
}

/// One of a command's outputs: what the runtime has not acknowledged yet.
struct Output {
  int fd = -1;
  Buffer kept;
  uint64_t offset = 0;  ///< of the first byte kept
  size_t sent = 0;      ///< of those kept, over this connection
};

struct Command {
  uint32_t stream = 0;
  pid_t pid = 0;
  int in = -1;
  Output outputs[2];  ///< stdout, stderr
  Buffer pending_in;
  bool close_in = false;
  bool exited = false;  ///< the process is gone; pipes may still hold output
  bool told = false;    ///< `ended` was queued over this connection
  uint32_t status = 0;
};

constexpr int commands_max = 64;
constexpr size_t kept_max = 2u << 20;  ///< of all commands; beyond it their output waits in their pipes
constexpr size_t chunk_max = 32768;
constexpr size_t stdin_max = 4u << 20;
constexpr int retry_ms = 250;

Command commands[commands_max];
int command_count = 0;
List environment;  ///< from the claim
const char* socket_path;
const char* sandbox_id;
uid_t run_uid;
gid_t run_gid;

int connection = -1;
Buffer incoming;
Buffer outgoing;           ///< whole frames; at most one of them tells of output or an end
size_t outgoing_sent = 0;  ///< of the first frame

void queue(FrameType type, uint32_t stream, const void* payload, size_t size) {
  const FrameHeader header{frame_magic, frame_version, static_cast<uint8_t>(type),
                           0,           stream,        static_cast<uint32_t>(size)};
  outgoing.append(&header, sizeof header);
  outgoing.append(payload, size);
}

void queue_error(FrameType type, uint32_t stream, int error, const char* what) {
  Buffer payload;
  payload.u32(static_cast<uint32_t>(error));
  payload.text(what);
  queue(type, stream, payload.data, payload.size);
  payload.release();
}

Command* find(uint32_t stream) {
  for (int i = 0; i < command_count; ++i)
    if (commands[i].stream == stream) return &commands[i];
  return nullptr;
}

void close_fd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

void forget(Command* command) {
  close_fd(command->in);
  for (Output& output : command->outputs) {
    close_fd(output.fd);
    output.kept.release();
  }
  command->pending_in.release();
  *command = commands[--command_count];
  commands[command_count] = Command();
}

void become_the_agent() {
  if (getuid() != 0) return;
  if (setgroups(0, nullptr) != 0 && errno != EPERM) _exit(126);
  if (setgid(run_gid) != 0 || setuid(run_uid) != 0) _exit(126);
}

/// Written by a child that has already dropped its rights, so that the files
/// belong to the agent.
int write_files(Reader& in, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    char* path = in.text();
    uint32_t size = 0;
    char* content = path ? in.text(&size) : nullptr;
    if (!content) return EPROTO;
    for (char* slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
      *slash = 0;
      mkdir(path, 0700);
      *slash = '/';
    }
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return errno;
    for (uint32_t done = 0; done < size;) {
      const ssize_t n = write(fd, content + done, size - done);
      if (n < 0) return errno;
      done += static_cast<uint32_t>(n);
    }
    close(fd);
    wipe(content, size);
    free(content);
    free(path);
  }
  return 0;
}

void on_claim(Reader in) {
  List fresh;
  if (!read_list(in, fresh)) return queue_error(FrameType::claimed, 0, EPROTO, "malformed claim");
  const uint32_t files = in.u32();
  if (!in.ok || files > list_max) return queue_error(FrameType::claimed, 0, EPROTO, "malformed claim");
  environment.release();
  environment = fresh;
  if (files > 0) {
    const pid_t pid = fork();
    if (pid < 0) return queue_error(FrameType::claimed, 0, errno, "fork");
    if (pid == 0) {
      become_the_agent();
      _exit(write_files(in, files));
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    const int error = WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
    if (error != 0) return queue_error(FrameType::claimed, 0, error, "cannot write a file of the claim");
  }
  queue_error(FrameType::claimed, 0, 0, "");
}

void on_start(uint32_t stream, Reader in) {
  char* cwd = in.text();
  List argv, more;
  if (!cwd || !read_list(in, argv) || !read_list(in, more) || argv.count == 0) {
    queue_error(FrameType::failed, stream, EPROTO, "malformed start");
  } else if (find(stream) || command_count == commands_max) {
    queue_error(FrameType::failed, stream, EBUSY, "too many commands, or the stream is in use");
  } else {
    List env;
    for (uint32_t i = 0; i < environment.count; ++i) env.add(strdup(environment.items[i]));
    for (uint32_t i = 0; i < more.count; ++i) env.add(strdup(more.items[i]));
    if (!env.items) env.items = static_cast<char**>(calloc(1, sizeof(char*)));
    int in_pipe[2], out_pipe[2], err_pipe[2], fail_pipe[2];
    if (pipe2(in_pipe, O_CLOEXEC) || pipe2(out_pipe, O_CLOEXEC) || pipe2(err_pipe, O_CLOEXEC) ||
        pipe2(fail_pipe, O_CLOEXEC))
      die("pipe2");
    const pid_t pid = fork();
    if (pid == 0) {
      setsid();
      dup2(in_pipe[0], 0);
      dup2(out_pipe[1], 1);
      dup2(err_pipe[1], 2);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      signal(SIGPIPE, SIG_DFL);
      become_the_agent();
      prctl(PR_SET_DUMPABLE, 0);
      int error = 0;
      if (chdir(cwd[0] ? cwd : "/") != 0) {
        error = errno;
      } else {
        execvpe(argv.items[0], argv.items, env.items);
        error = errno;
      }
      if (write(fail_pipe[1], &error, sizeof error) < 0) _exit(126);
      _exit(127);
    }
    close(in_pipe[0]);
    close(out_pipe[1]);
    close(err_pipe[1]);
    close(fail_pipe[1]);
    int error = pid < 0 ? errno : 0;
    if (pid > 0 && read(fail_pipe[0], &error, sizeof error) <= 0) error = 0;
    close(fail_pipe[0]);
    if (error != 0) {
      close(in_pipe[1]);
      close(out_pipe[0]);
      close(err_pipe[0]);
      if (pid > 0) waitpid(pid, nullptr, 0);
      queue_error(FrameType::failed, stream, error, argv.items[0]);
    } else {
      Command& command = commands[command_count++];
      command.stream = stream;
      command.pid = pid;
      command.in = in_pipe[1];
      command.outputs[0].fd = out_pipe[0];
      command.outputs[1].fd = err_pipe[0];
      fcntl(command.in, F_SETFL, O_NONBLOCK);
      const auto id = static_cast<uint32_t>(pid);
      queue(FrameType::started, stream, &id, 4);
    }
    env.release();
  }
  free(cwd);
  argv.release();
  more.release();
}

void feed_stdin(Command& command) {
  while (command.in >= 0 && command.pending_in.size > 0) {
    const ssize_t n = write(command.in, command.pending_in.data, command.pending_in.size);
    if (n > 0) {
      command.pending_in.drop_front(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      close_fd(command.in);
    }
  }
  if (command.close_in) close_fd(command.in);
}

void on_acknowledge(Command& command, Reader in) {
  const uint8_t which = in.u8();
  const uint64_t offset = in.u64();
  if (!in.ok || which < 1 || which > 2) return;
  Output& output = command.outputs[which - 1];
  if (offset <= output.offset) return;
  const uint64_t count = offset - output.offset;
  if (count > output.sent) return;  // nobody can have what was not sent
  output.kept.drop_front(static_cast<size_t>(count));
  output.sent -= static_cast<size_t>(count);
  output.offset = offset;
}

void handle(const FrameHeader& header, const uint8_t* payload) {
  Reader in{payload, header.length};
  Command* command = find(header.stream);
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::claim:
      return on_claim(in);
    case FrameType::start:
      return on_start(header.stream, in);
    case FrameType::input:
      if (!command || command->in < 0) return;
      if (header.length == 0) command->close_in = true;
      if (command->pending_in.size + header.length > stdin_max) return close_fd(command->in);
      command->pending_in.append(payload, header.length);
      return feed_stdin(*command);
    case FrameType::signal: {
      const uint32_t number = in.u32();
      if (command && !command->exited && in.ok) kill(-command->pid, static_cast<int>(number));
      return;
    }
    case FrameType::ping:
      return queue(FrameType::pong, header.stream, payload, header.length);
    case FrameType::forget:
      if (command && command->told) forget(command);
      return;
    case FrameType::acknowledge:
      if (command) on_acknowledge(*command, in);
      return;
    default:
      return;  // from a later runtime: nothing we would know how to do
  }
}

/// What was sent and not acknowledged goes again over the next connection, and so does the first frame, whole.
void disconnect() {
  close_fd(connection);
  incoming.size = 0;
  outgoing_sent = 0;
  Buffer rest;
  for (size_t at = 0; at < outgoing.size;) {
    FrameHeader header;
    memcpy(&header, outgoing.data + at, sizeof header);
    const auto type = static_cast<FrameType>(header.type);
    if (type != FrameType::output && type != FrameType::ended && type != FrameType::hello)
      rest.append(outgoing.data + at, sizeof header + header.length);
    at += sizeof header + header.length;
  }
  outgoing.release();
  outgoing = rest;
  for (int i = 0; i < command_count; ++i) {
    commands[i].told = false;
    for (Output& output : commands[i].outputs) output.sent = 0;
  }
}

int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

void connect_again() {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    close(fd);
    return;
  }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  connection = fd;
  Buffer hello;
  hello.text(sandbox_id);
  hello.u32(static_cast<uint32_t>(command_count));
  for (int i = 0; i < command_count; ++i) hello.u32(commands[i].stream);
  Buffer rest = outgoing;
  outgoing = Buffer();
  queue(FrameType::hello, 0, hello.data, hello.size);
  outgoing.append(rest.data, rest.size);
  rest.release();
  hello.release();
}

/// Queues the next piece of output that was not sent yet or, behind all of it, a command's end. False where there is
/// none. The commands take turns.
bool queue_news() {
  static int turn = 0;
  for (int i = 0; i < command_count; ++i) {
    turn = (turn + 1) % command_count;
    Command& command = commands[turn];
    for (uint8_t which = 1; which <= 2; ++which) {
      Output& output = command.outputs[which - 1];
      const size_t waiting = output.kept.size - output.sent;
      if (waiting == 0) continue;
      const size_t size = waiting < chunk_max ? waiting : chunk_max;
      const uint64_t offset = output.offset + output.sent;
      Buffer payload;
      payload.append(&which, 1);
      payload.append(&offset, 8);
      payload.append(output.kept.data + output.sent, size);
      queue(FrameType::output, command.stream, payload.data, payload.size);
      payload.release();
      output.sent += size;
      return true;
    }
    if (!command.exited || command.told || command.outputs[0].fd >= 0 || command.outputs[1].fd >= 0) continue;
    command.told = true;
    queue(FrameType::ended, command.stream, &command.status, 4);
    return true;
  }
  return false;
}

void send_outgoing() {
  while (connection >= 0 && (outgoing.size > 0 || queue_news())) {
    FrameHeader header;
    memcpy(&header, outgoing.data, sizeof header);
    const size_t whole = sizeof header + header.length;
    const ssize_t n = send(connection, outgoing.data + outgoing_sent, whole - outgoing_sent, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) disconnect();
      return;
    }
    outgoing_sent += static_cast<size_t>(n);
    if (outgoing_sent == whole) {
      outgoing.drop_front(whole);
      outgoing_sent = 0;
    }
  }
}

void receive() {
  for (;;) {
    incoming.reserve(incoming.size + 65536);
    const ssize_t n = recv(connection, incoming.data + incoming.size, 65536, 0);
    if (n == 0) return disconnect();
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return disconnect();
      break;
    }
    incoming.size += static_cast<size_t>(n);
    if (n < 65536) break;
  }
  while (incoming.size >= sizeof(FrameHeader)) {
    FrameHeader header;
    memcpy(&header, incoming.data, sizeof header);
    if (header.magic != frame_magic || header.version != frame_version || header.length > frame_payload_max)
      return disconnect();
    const size_t whole = sizeof header + header.length;
    if (incoming.size < whole) return;
    handle(header, incoming.data + sizeof header);
    if (connection < 0) return;
    incoming.drop_front(whole);
  }
}

void keep(Output& output) {
  output.kept.reserve(output.kept.size + chunk_max);
  const ssize_t n = read(output.fd, output.kept.data + output.kept.size, chunk_max);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0) return close_fd(output.fd);
  output.kept.size += static_cast<size_t>(n);
}

bool room_for_output() {
  size_t kept = 0;
  for (int i = 0; i < command_count; ++i)
    for (const Output& output : commands[i].outputs) kept += output.kept.size;
  return kept < kept_max;
}

void reap() {
  int status = 0;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (int i = 0; i < command_count; ++i) {
      if (commands[i].pid != pid || commands[i].exited) continue;
      commands[i].exited = true;
      commands[i].status = static_cast<uint32_t>(status);
      kill(-pid, SIGKILL);  // what it left behind would hold its pipes open
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: creto-init SOCKET SANDBOX-ID UID GID\n");
    return 2;
  }
  socket_path = argv[1];
  sandbox_id = argv[2];
  run_uid = static_cast<uid_t>(atoi(argv[3]));  // tidy(c-string): written by the runtime, no libstdc++ here
  run_gid = static_cast<gid_t>(atoi(argv[4]));  // tidy(c-string): same
  umask(077);
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_DUMPABLE, 0);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  const int children = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (children < 0) die("signalfd");

  int64_t tried_ms = -retry_ms;
  for (;;) {
    if (connection < 0 && now_ms() - tried_ms >= retry_ms) {
      tried_ms = now_ms();
      connect_again();
    }
    send_outgoing();
    pollfd fds[2 + commands_max * 3];
    int* owners[2 + commands_max * 3];
    nfds_t count = 0;
    fds[count++] = {children, POLLIN, 0};
    fds[count++] = {connection, static_cast<short>(outgoing.size ? POLLIN | POLLOUT : POLLIN), 0};
    const bool room = room_for_output();
    for (int i = 0; i < command_count; ++i) {
      for (Output& output : commands[i].outputs) {
        if (output.fd < 0 || !room) continue;
        owners[count] = &output.fd;
        fds[count++] = {output.fd, POLLIN, 0};
      }
      if (commands[i].in >= 0 && commands[i].pending_in.size > 0) {
        owners[count] = &commands[i].in;
        fds[count++] = {commands[i].in, POLLOUT, 0};
      }
    }
    // Without a runtime there is nobody to wake us: look for it four times a
    // second.
    if (poll(fds, count, connection < 0 ? retry_ms : -1) < 0 && errno != EINTR) die("poll");
    if (fds[0].revents) {
      signalfd_siginfo info;
      while (read(children, &info, sizeof info) > 0) {
      }
      reap();
    }
    for (nfds_t k = 2; k < count; ++k) {
      if (!fds[k].revents) continue;
      for (int i = 0; i < command_count; ++i) {
        for (Output& output : commands[i].outputs)
          if (owners[k] == &output.fd) keep(output);
        if (owners[k] == &commands[i].in) feed_stdin(commands[i]);
      }
    }
    if (connection >= 0 && fds[1].revents) receive();  // last: it may move the commands about
  }
}
