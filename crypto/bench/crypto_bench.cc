// What cryptography costs here: the floor under every other figure. Medians; the specification asks for a hybrid
// signature to be verified within 2 ms (001 §3.1).

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/random.h"
#include "creto/crypto/signing.h"
#include "creto/testing/bench.h"

namespace creto::crypto {
namespace {

using creto::testing::BenchReport;
using creto::testing::measure;

constexpr std::size_t megabyte = 1 << 20;

template <class F>
double median_us(std::size_t calls, F&& fn) {
  return 1e6 * creto::testing::percentile(measure(calls, std::forward<F>(fn)), 0.5);
}

template <class F>
double gb_per_s(F&& fn) {
  return 1e-9 * megabyte / creto::testing::percentile(measure(100, std::forward<F>(fn)), 0.5);
}

/// One call is too short for the clock.
template <class F>
double nanoseconds(F&& fn) {
  constexpr int batch = 1000;
  return 1e9 / batch *
         creto::testing::percentile(measure(200,
                                            [&] {
                                              for (int i = 0; i < batch; ++i) fn();
                                            }),
                                    0.5);
}

int run(int argc, char** argv) {
  BenchReport report(argc, argv);
  const Bytes large = random_bytes(megabyte);
  const Bytes small = random_bytes(64);
  const Bytes message = random_bytes(256);
  const auto key = random_array<32>();
  volatile std::uint8_t sink = 0;

  report.add("SHA-256 of 64 bytes", nanoseconds([&] { sink = sha256(small)[0]; }), "ns", 2000, 500);
  report.add("BLAKE3 of 64 bytes, keyed", nanoseconds([&] { sink = blake3_keyed(key, small)[0]; }), "ns", 1000, 200);
  report.add("BLAKE3 of 1 MiB", gb_per_s([&] { sink = blake3(large)[0]; }), "GB/s", 0.5, 3,
             BenchReport::Better::higher);
  const AeadKey aead = AeadKey::generate();
  report.add("AES-256-GCM, seal 1 MiB", gb_per_s([&] { sink = aead.seal(large).bytes[0]; }), "GB/s", 0.3, 1,
             BenchReport::Better::higher);

  const auto signatures = [&](SignatureAlgorithm algorithm, double sign_us, double verify_us) {
    const SigningKey signing = SigningKey::generate(algorithm);
    const Signature signature = signing.sign(message).value();
    const std::string name(to_string(algorithm));
    report.add(name + ", sign", median_us(300, [&] { sink = signing.sign(message)->value[0]; }), "us", 10 * sign_us,
               sign_us);
    report.add(name + ", verify",
               median_us(300, [&] { sink = signing.verifying_key().verify(message, signature).has_value() ? 1 : 0; }),
               "us", 2000, verify_us);
  };
  signatures(SignatureAlgorithm::ed25519, 100, 200);
  signatures(SignatureAlgorithm::ml_dsa_65, 1500, 400);
  signatures(SignatureAlgorithm::hybrid_ed25519_ml_dsa_65, 1600, 600);

  const auto kems = [&](KemAlgorithm algorithm, double encapsulate_us, double decapsulate_us) {
    const KemPrivateKey own = KemPrivateKey::generate(algorithm);
    const Bytes ciphertext = own.public_key().encapsulate()->ciphertext;
    const std::string name(to_string(algorithm));
    report.add(name + ", encapsulate", median_us(300, [&] { sink = own.public_key().encapsulate()->ciphertext[0]; }),
               "us", 10 * encapsulate_us, encapsulate_us);
    report.add(name + ", decapsulate", median_us(300, [&] { sink = own.decapsulate(ciphertext)->reveal()[0]; }), "us",
               10 * decapsulate_us, decapsulate_us);
  };
  kems(KemAlgorithm::x25519, 200, 150);
  kems(KemAlgorithm::ml_kem_768, 60, 80);
  kems(KemAlgorithm::x_wing, 250, 250);
  return report.finish();
}

}  // namespace
}  // namespace creto::crypto

int main(int argc, char** argv) { return creto::crypto::run(argc, argv); }
