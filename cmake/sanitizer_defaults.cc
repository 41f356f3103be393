// What the sanitizers should know in every executable, so that a test run by hand behaves as one run by ./dev test.

extern "C" {

const char* __asan_default_options() { return "detect_stack_use_after_return=1:strict_string_checks=1"; }

const char* __ubsan_default_options() { return "print_stacktrace=1"; }

// gRPC 1.51 leaves c-ares' library-wide state to the end of the process.
const char* __lsan_default_suppressions() { return "leak:libcares.so\n"; }

const char* __lsan_default_options() { return "print_suppressions=0"; }

// Debian's libraries are not built with ThreadSanitizer, which then does not see the synchronisation inside them.
const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1:second_deadlock_stack=1"; }

// Their inline parts are compiled with ours, and race with what happens inside. Only the innermost frame counts here: a
// race in a handler that gRPC calls is still found.
const char* __tsan_default_suppressions() {
  return "race_top:absl::\n"
         "race_top:grpc::\n"
         "race_top:google::protobuf::\n"
         "race_top:.pb.cc\n"
         "race_top:.pb.h\n";
}

}  // extern "C"
