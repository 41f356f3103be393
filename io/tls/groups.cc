// gRPC 1.51 fixes its key exchange to P-256 through the macro SSL_CTX_set_tmp_ecdh, which is SSL_CTX_ctrl command 4.
// The function below has the same name as OpenSSL's and, being in the executable, is found first by gRPC's library;
// where gRPC would set its one curve it sets the post-quantum hybrid group with classical ones behind it instead.
// Everything else goes on to OpenSSL.

#include <dlfcn.h>
#include <openssl/ssl.h>

#include "creto/common/assert.h"
#include "creto/io/tls.h"

namespace {
constexpr const char* groups = "X25519MLKEM768:X25519:P-256";
using Ctrl = long (*)(SSL_CTX*, int, long, void*);

Ctrl openssl_ctrl() {
  static const Ctrl next = reinterpret_cast<Ctrl>(::dlsym(RTLD_NEXT, "SSL_CTX_ctrl"));
  return next;
}
}  // namespace

extern "C" long SSL_CTX_ctrl(SSL_CTX* context, int command, long number, void* pointer) {
  if (command == SSL_CTRL_SET_TMP_ECDH) {
    long done = openssl_ctrl()(context, SSL_CTRL_SET_GROUPS_LIST, 0, const_cast<char*>(groups));
    if (done == 1) return done;
  }
  return openssl_ctrl()(context, command, number, pointer);
}

namespace creto::tls {

bool use_post_quantum_groups() {
  CRETO_ASSERT(openssl_ctrl() != nullptr);
  SSL_CTX* context = SSL_CTX_new(TLS_method());
  bool ours = context != nullptr && SSL_CTX_ctrl(context, SSL_CTRL_SET_TMP_ECDH, 0, nullptr) == 1;
  SSL_CTX_free(context);
  return ours;
}

}  // namespace creto::tls
