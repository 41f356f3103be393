#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "creto/common/assert.h"
#include "creto/io/http_server.h"
#include "creto/io/tls.h"

namespace creto::tls {
namespace {

template <auto free>
struct Free {
  template <class T>
  void operator()(T* pointer) const {
    free(pointer);
  }
};
using Pkey = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using X509Ptr = std::unique_ptr<X509, Free<X509_free>>;
using BioPtr = std::unique_ptr<BIO, Free<BIO_free_all>>;
using NamePtr = std::unique_ptr<X509_NAME, Free<X509_NAME_free>>;

Error invalid(std::string message) { return Error(Product::platform, ErrorKind::invalid_input, std::move(message)); }

Error openssl_failed(std::string_view what) {
  char reason[256] = "";
  ERR_error_string_n(ERR_get_error(), reason, sizeof reason);
  ERR_clear_error();
  return Error(Product::platform, ErrorKind::internal, fmt::format("{}: {}", what, reason));
}

BioPtr reader(std::string_view text) { return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

/// Without a callback OpenSSL would ask the terminal; also for a certificate, which may be encrypted like any PEM.
int no_passphrase(char*, int, int, void*) { return 0; }

Result<X509Ptr> parse_certificate(std::string_view pem) {
  X509Ptr certificate(PEM_read_bio_X509(reader(pem).get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (!certificate) return invalid("not a PEM certificate");
  return certificate;
}

Result<Pkey> parse_key(std::string_view pem) {
  Pkey key(PEM_read_bio_PrivateKey(reader(pem).get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (!key) return invalid("not a PEM private key");
  return key;
}

std::string certificate_pem(X509* certificate) {
  BioPtr out(BIO_new(BIO_s_mem()));
  CRETO_ASSERT(PEM_write_bio_X509(out.get(), certificate) == 1);
  char* data = nullptr;
  long size = BIO_get_mem_data(out.get(), &data);
  return std::string(data, static_cast<std::size_t>(size));
}

Secret key_pem(EVP_PKEY* key) {
  BioPtr out(BIO_new(BIO_s_secmem()));
  CRETO_ASSERT(PEM_write_bio_PKCS8PrivateKey(out.get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  char* data = nullptr;
  long size = BIO_get_mem_data(out.get(), &data);
  return Secret::copy_of(std::string_view(data, static_cast<std::size_t>(size)));
}

Result<> add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1)
    return openssl_failed("cannot add an extension");
  return {};
}

Result<> add_alternative_names(X509* certificate, const Subject& subject) {
  std::unique_ptr<GENERAL_NAMES, Free<GENERAL_NAMES_free>> names(sk_GENERAL_NAME_new_null());
  auto add_text = [&](int type, const std::string& text) {
    GENERAL_NAME* name = GENERAL_NAME_new();
    ASN1_IA5STRING* value = ASN1_IA5STRING_new();
    ASN1_STRING_set(value, text.data(), static_cast<int>(text.size()));
    GENERAL_NAME_set0_value(name, type, value);
    sk_GENERAL_NAME_push(names.get(), name);
  };
  if (!subject.uri.empty()) add_text(GEN_URI, subject.uri);
  for (const std::string& dns : subject.dns_names) add_text(GEN_DNS, dns);
  for (const std::string& ip : subject.ip_addresses) {
    ASN1_OCTET_STRING* value = a2i_IPADDRESS(ip.c_str());
    if (value == nullptr) return invalid(fmt::format("`{}` is not an IP address", ip));
    GENERAL_NAME* name = GENERAL_NAME_new();
    GENERAL_NAME_set0_value(name, GEN_IPADD, value);
    sk_GENERAL_NAME_push(names.get(), name);
  }
  if (sk_GENERAL_NAME_num(names.get()) == 0) return {};
  if (X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) != 1)
    return openssl_failed("cannot add alternative names");
  return {};
}

Result<> set_name(X509_NAME* name, std::string_view organization, std::string_view common_name) {
  auto add = [&](const char* field, std::string_view text) {
    return text.empty() ||
           X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(text.data()),
                                      static_cast<int>(text.size()), -1, 0) == 1;
  };
  // X.509 stops at 64 characters; the whole identity is in the URI.
  if (!add("O", organization.substr(0, 64)) || !add("CN", common_name.substr(0, 64))) {
    ERR_clear_error();
    return invalid("the subject's name is not one a certificate can hold");
  }
  return {};
}

Result<X509Ptr> begin_certificate(EVP_PKEY* key, Nanos valid_for, const Clock& clock) {
  X509Ptr certificate(X509_new());
  CRETO_ASSERT(X509_set_version(certificate.get(), X509_VERSION_3) == 1);
  unsigned char serial[16];
  if (RAND_bytes(serial, sizeof serial) != 1) return openssl_failed("no randomness");
  serial[0] &= 0x7f;
  std::unique_ptr<BIGNUM, Free<BN_free>> number(BN_bin2bn(serial, sizeof serial, nullptr));
  BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate.get()));
  auto seconds = [](Instant instant) { return static_cast<time_t>(unix_ns(instant) / 1'000'000'000); };
  // Clocks of peers may be a little behind ours.
  ASN1_TIME_set(X509_getm_notBefore(certificate.get()), seconds(clock.now() - std::chrono::minutes(5)));
  ASN1_TIME_set(X509_getm_notAfter(certificate.get()), seconds(clock.now() + valid_for));
  if (X509_set_pubkey(certificate.get(), key) != 1) return openssl_failed("cannot set the public key");
  return certificate;
}

Result<Pkey> fresh_key() {
  Pkey key(EVP_EC_gen("P-256"));
  if (!key) return openssl_failed("cannot make a P-256 key");
  return key;
}

}  // namespace

Result<KeyPair> create_authority(std::string_view organization, Nanos valid_for, const Clock& clock) {
  Pkey key = CRETO_TRY(fresh_key());
  X509Ptr certificate = CRETO_TRY(begin_certificate(key.get(), valid_for, clock));
  NamePtr name(X509_NAME_new());
  CRETO_TRY(set_name(name.get(), organization, "Creto authority"));
  X509_set_subject_name(certificate.get(), name.get());
  X509_set_issuer_name(certificate.get(), name.get());
  CRETO_TRY(add_extension(certificate.get(), certificate.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  CRETO_TRY(add_extension(certificate.get(), certificate.get(), NID_key_usage, "critical,keyCertSign,cRLSign"));
  CRETO_TRY(add_extension(certificate.get(), certificate.get(), NID_subject_key_identifier, "hash"));
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) return openssl_failed("cannot sign the certificate");
  std::string pem = certificate_pem(certificate.get());
  Secret secret = key_pem(key.get());
  return KeyPair{std::move(pem), std::move(secret)};
}

Result<KeyPair> issue(const KeyPair& authority, const Subject& subject, Nanos valid_for, const Clock& clock) {
  X509Ptr issuer = CRETO_TRY(parse_certificate(authority.certificate));
  Pkey issuer_key = CRETO_TRY(parse_key(authority.key.reveal_text()));
  if (X509_check_private_key(issuer.get(), issuer_key.get()) != 1) {
    ERR_clear_error();
    return invalid("the authority's key does not belong to its certificate");
  }
  Pkey key = CRETO_TRY(fresh_key());
  X509Ptr certificate = CRETO_TRY(begin_certificate(key.get(), valid_for, clock));
  NamePtr name(X509_NAME_new());
  CRETO_TRY(set_name(name.get(), "", subject.common_name));
  X509_set_subject_name(certificate.get(), name.get());
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer.get()));
  CRETO_TRY(add_extension(certificate.get(), issuer.get(), NID_basic_constraints, "critical,CA:FALSE"));
  CRETO_TRY(add_extension(certificate.get(), issuer.get(), NID_key_usage, "critical,digitalSignature"));
  std::string usage = subject.server && subject.client ? "serverAuth,clientAuth"
                      : subject.server                 ? "serverAuth"
                                                       : "clientAuth";
  CRETO_TRY(add_extension(certificate.get(), issuer.get(), NID_ext_key_usage, usage));
  CRETO_TRY(add_extension(certificate.get(), issuer.get(), NID_authority_key_identifier, "keyid:always"));
  CRETO_TRY(add_alternative_names(certificate.get(), subject));
  if (X509_sign(certificate.get(), issuer_key.get(), EVP_sha256()) == 0)
    return openssl_failed("cannot sign the certificate");
  std::string pem = certificate_pem(certificate.get());
  Secret secret = key_pem(key.get());
  return KeyPair{std::move(pem), std::move(secret)};
}

std::string identity_uri(std::string_view identity) {
  std::string uri = "creto:";
  while (!identity.empty()) {
    std::size_t end = std::min(identity.find(':'), identity.size());
    uri += http::percent_encode(identity.substr(0, end));
    if (end == identity.size()) break;
    uri += ':';
    identity.remove_prefix(end + 1);
  }
  return uri;
}

Result<std::string> identity_from_uri(std::string_view uri) {
  if (!uri.starts_with("creto:")) return invalid("the certificate's URI is not a Creto identity");
  return http::percent_decode(uri.substr(6), false);
}

Result<Instant> expiry_of(std::string_view pem) {
  X509Ptr certificate = CRETO_TRY(parse_certificate(pem));
  std::tm time{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &time) != 1) return invalid("the certificate has no end");
  // A certificate without an end has one in the year 9999, which nanoseconds do not hold.
  const std::chrono::seconds seconds(::timegm(&time));
  constexpr auto last = std::chrono::duration_cast<std::chrono::seconds>(Nanos::max());
  return seconds > last ? Instant::max() : seconds < -last ? Instant::min() : Instant(seconds);
}

}  // namespace creto::tls
