// What the sanitizers should know in every executable, so that a test run by hand behaves as one run by ./dev test.

#define SYMBOLIZER "external_symbolizer_path=/usr/bin/llvm-symbolizer-19"

extern "C" {

const char* __asan_default_options() { return "detect_stack_use_after_return=1:strict_string_checks=1:" SYMBOLIZER; }

const char* __ubsan_default_options() { return "print_stacktrace=1:" SYMBOLIZER; }

// gRPC 1.51 leaves c-ares' library-wide state to the end of the process.
const char* __lsan_default_suppressions() { return "leak:libcares.so\n"; }

const char* __lsan_default_options() { return "print_suppressions=0"; }

// Debian's libraries are not built with ThreadSanitizer, which then does not see the synchronisation inside them. Tests
// that kill a process fork it from one that has threads.
const char* __tsan_default_options() {
  return "ignore_noninstrumented_modules=1:second_deadlock_stack=1:die_after_fork=0:" SYMBOLIZER;
}

// Their inline parts are compiled with ours, and race with what happens inside: the innermost frame tells. Not so with
// gRPC, whose templates end in std::function; what it calls back is its own and our reactors, which it runs one after
// another in an order that is not seen here. Handlers run on our own workers, so their races are found.
const char* __tsan_default_suppressions() {
  return "race:grpc::internal::\n"
         "race_top:absl::\n"
         "race_top:grpc::\n"
         "race_top:google::protobuf::\n"
         "race_top:.pb.cc\n"
         "race_top:.pb.h\n";
}

}  // extern "C"
