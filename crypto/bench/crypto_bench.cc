#include <benchmark/benchmark.h>

#include "creto/crypto/aead.h"
#include "creto/crypto/hash.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/random.h"
#include "creto/crypto/signing.h"

namespace creto::crypto {
namespace {

void hashing(benchmark::State& state, HashAlgorithm algorithm) {
  const Bytes data = random_bytes(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(hash(algorithm, data));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK_CAPTURE(hashing, sha256, HashAlgorithm::sha256)->Arg(64)->Arg(1 << 20);
BENCHMARK_CAPTURE(hashing, sha3_256, HashAlgorithm::sha3_256)->Arg(64)->Arg(1 << 20);
BENCHMARK_CAPTURE(hashing, blake3, HashAlgorithm::blake3)->Arg(64)->Arg(1 << 20);

void keyed_blake3(benchmark::State& state) {
  const auto key = random_array<32>();
  const Bytes data = random_bytes(64);
  for (auto _ : state) benchmark::DoNotOptimize(blake3_keyed(key, data));
}
BENCHMARK(keyed_blake3);

void hmac(benchmark::State& state) {
  const Bytes key = random_bytes(32);
  const Bytes data = random_bytes(64);
  for (auto _ : state) benchmark::DoNotOptimize(hmac_sha256(key, data));
}
BENCHMARK(hmac);

void seal_and_open(benchmark::State& state, AeadAlgorithm algorithm) {
  const AeadKey key = AeadKey::generate(algorithm);
  const Bytes data = random_bytes(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(key.open(key.seal(data)));
  state.SetBytesProcessed(state.iterations() * state.range(0) * 2);
}
BENCHMARK_CAPTURE(seal_and_open, aes_256_gcm, AeadAlgorithm::aes_256_gcm)->Arg(1024)->Arg(1 << 20);
BENCHMARK_CAPTURE(seal_and_open, chacha20_poly1305, AeadAlgorithm::chacha20_poly1305)->Arg(1024)->Arg(1 << 20);

void sign(benchmark::State& state, SignatureAlgorithm algorithm) {
  const SigningKey key = SigningKey::generate(algorithm);
  const Bytes message = random_bytes(256);
  for (auto _ : state) benchmark::DoNotOptimize(key.sign(message));
}
void verify(benchmark::State& state, SignatureAlgorithm algorithm) {
  const SigningKey key = SigningKey::generate(algorithm);
  const Bytes message = random_bytes(256);
  const Signature signature = *key.sign(message);
  for (auto _ : state) benchmark::DoNotOptimize(key.verifying_key().verify(message, signature));
}
BENCHMARK_CAPTURE(sign, ed25519, SignatureAlgorithm::ed25519);
BENCHMARK_CAPTURE(sign, ml_dsa_65, SignatureAlgorithm::ml_dsa_65);
BENCHMARK_CAPTURE(sign, hybrid, SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);
BENCHMARK_CAPTURE(verify, ed25519, SignatureAlgorithm::ed25519);
BENCHMARK_CAPTURE(verify, ml_dsa_65, SignatureAlgorithm::ml_dsa_65);
BENCHMARK_CAPTURE(verify, hybrid, SignatureAlgorithm::hybrid_ed25519_ml_dsa_65);

void generate(benchmark::State& state, KemAlgorithm algorithm) {
  for (auto _ : state) benchmark::DoNotOptimize(KemPrivateKey::generate(algorithm));
}
void encapsulate(benchmark::State& state, KemAlgorithm algorithm) {
  const KemPrivateKey key = KemPrivateKey::generate(algorithm);
  for (auto _ : state) benchmark::DoNotOptimize(key.public_key().encapsulate());
}
void decapsulate(benchmark::State& state, KemAlgorithm algorithm) {
  const KemPrivateKey key = KemPrivateKey::generate(algorithm);
  const Bytes ciphertext = key.public_key().encapsulate()->ciphertext;
  for (auto _ : state) benchmark::DoNotOptimize(key.decapsulate(ciphertext));
}
BENCHMARK_CAPTURE(generate, ml_kem_768, KemAlgorithm::ml_kem_768);
BENCHMARK_CAPTURE(generate, x_wing, KemAlgorithm::x_wing);
BENCHMARK_CAPTURE(encapsulate, x25519, KemAlgorithm::x25519);
BENCHMARK_CAPTURE(encapsulate, ml_kem_768, KemAlgorithm::ml_kem_768);
BENCHMARK_CAPTURE(encapsulate, x_wing, KemAlgorithm::x_wing);
BENCHMARK_CAPTURE(decapsulate, x25519, KemAlgorithm::x25519);
BENCHMARK_CAPTURE(decapsulate, ml_kem_768, KemAlgorithm::ml_kem_768);
BENCHMARK_CAPTURE(decapsulate, x_wing, KemAlgorithm::x_wing);

}  // namespace
}  // namespace creto::crypto

BENCHMARK_MAIN();
