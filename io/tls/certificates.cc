#include <arpa/inet.h>
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
using RequestPtr = std::unique_ptr<X509_REQ, Free<X509_REQ_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Free<GENERAL_NAMES_free>>;

constexpr std::size_t request_bytes_max = 8 << 10;
constexpr std::string_view keys_query = "?keys=";

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

std::string text_in(BIO* out) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(out, &data);
  return std::string(data, static_cast<std::size_t>(size));
}

std::string certificate_pem(X509* certificate) {
  BioPtr out(BIO_new(BIO_s_mem()));
  CRETO_ASSERT(PEM_write_bio_X509(out.get(), certificate) == 1);
  return text_in(out.get());
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

namespace {

Result<std::string> certify(const KeyPair& authority, EVP_PKEY* key, const Subject& subject, Nanos valid_for,
                            const Clock& clock) {
  X509Ptr issuer = CRETO_TRY(parse_certificate(authority.certificate));
  Pkey issuer_key = CRETO_TRY(parse_key(authority.key.reveal_text()));
  if (X509_check_private_key(issuer.get(), issuer_key.get()) != 1) {
    ERR_clear_error();
    return invalid("the authority's key does not belong to its certificate");
  }
  X509Ptr certificate = CRETO_TRY(begin_certificate(key, valid_for, clock));
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
  return certificate_pem(certificate.get());
}

}  // namespace

Result<KeyPair> issue(const KeyPair& authority, const Subject& subject, Nanos valid_for, const Clock& clock) {
  Pkey key = CRETO_TRY(fresh_key());
  std::string certificate = CRETO_TRY(certify(authority, key.get(), subject, valid_for, clock));
  return KeyPair{std::move(certificate), key_pem(key.get())};
}

Result<CertificateRequest> request_certificate() {
  Pkey key = CRETO_TRY(fresh_key());
  RequestPtr request(X509_REQ_new());
  CRETO_ASSERT(X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) == 1);
  if (X509_REQ_set_pubkey(request.get(), key.get()) != 1 || X509_REQ_sign(request.get(), key.get(), EVP_sha256()) == 0)
    return openssl_failed("cannot sign the request");
  BioPtr out(BIO_new(BIO_s_mem()));
  CRETO_ASSERT(PEM_write_bio_X509_REQ(out.get(), request.get()) == 1);
  return CertificateRequest{text_in(out.get()), key_pem(key.get())};
}

Result<std::string> issue_for(const KeyPair& authority, std::string_view request, const Subject& subject,
                              Nanos valid_for, const Clock& clock) {
  if (request.size() > request_bytes_max)
    return invalid(
        fmt::format("certificate request: has {} bytes, at most {} are read", request.size(), request_bytes_max));
  RequestPtr parsed(PEM_read_bio_X509_REQ(reader(request).get(), nullptr, no_passphrase, nullptr));
  ERR_clear_error();
  if (!parsed) return invalid("certificate request: is not PEM of PKCS #10");
  EVP_PKEY* const key = X509_REQ_get0_pubkey(parsed.get());
  char group[16] = "";
  std::size_t length = 0;
  const bool p256 = key != nullptr && EVP_PKEY_is_a(key, "EC") == 1 &&
                    EVP_PKEY_get_group_name(key, group, sizeof group, &length) == 1 &&
                    std::string_view(group, length) == "prime256v1";
  ERR_clear_error();
  if (!p256) return invalid("certificate request: its key must be one on P-256");
  const bool signed_by_it = X509_REQ_verify(parsed.get(), key) == 1;
  ERR_clear_error();
  if (!signed_by_it) return invalid("certificate request: is not signed by the key in it");
  return certify(authority, key, subject, valid_for, clock);
}

std::string identity_uri(const CertifiedIdentity& certified) {
  std::string uri = "creto:";
  std::string_view identity = certified.identity;
  while (!identity.empty()) {
    std::size_t end = std::min(identity.find(':'), identity.size());
    uri += http::percent_encode(identity.substr(0, end));
    if (end == identity.size()) break;
    uri += ':';
    identity.remove_prefix(end + 1);
  }
  if (!certified.key_id.empty()) uri.append(keys_query).append(http::percent_encode(certified.key_id));
  return uri;
}

Result<CertifiedIdentity> identity_from_uri(std::string_view uri) {
  if (!uri.starts_with("creto:")) return invalid("the certificate's URI is not a Creto identity");
  uri.remove_prefix(6);
  CertifiedIdentity out;
  if (const std::size_t query = uri.find('?'); query != std::string_view::npos) {
    if (!uri.substr(query).starts_with(keys_query))
      return invalid("the certificate's URI says more of its identity than `keys`");
    out.key_id = CRETO_TRY(http::percent_decode(uri.substr(query + keys_query.size()), false));
    if (out.key_id.empty()) return invalid("the certificate's URI names no keys");
    uri = uri.substr(0, query);
  }
  out.identity = CRETO_TRY(http::percent_decode(uri, false));
  return out;
}

namespace {

Result<Instant> end_of(const X509* certificate) {
  std::tm time{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time) != 1) return invalid("the certificate has no end");
  // A certificate without an end has one in the year 9999, which nanoseconds do not hold.
  const std::chrono::seconds seconds(::timegm(&time));
  constexpr auto last = std::chrono::duration_cast<std::chrono::seconds>(Nanos::max());
  return seconds > last ? Instant::max() : seconds < -last ? Instant::min() : Instant(seconds);
}

/// The address as `Subject` has it; empty for one of neither four nor sixteen bytes.
std::string address_text(const ASN1_OCTET_STRING* address) {
  char text[INET6_ADDRSTRLEN] = "";
  const int size = ASN1_STRING_length(address);
  if (size != 4 && size != 16) return {};
  const int family = size == 4 ? AF_INET : AF_INET6;
  return ::inet_ntop(family, ASN1_STRING_get0_data(address), text, sizeof text) == nullptr ? "" : text;
}

}  // namespace

Result<CertificateFacts> facts_of(std::string_view pem) {
  X509Ptr certificate = CRETO_TRY(parse_certificate(pem));
  CertificateFacts facts;
  facts.ends = CRETO_TRY(end_of(certificate.get()));
  const NamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_IPADD) {
      facts.names.push_back(address_text(name->d.iPAddress));
    } else if (name->type == GEN_DNS || name->type == GEN_URI) {
      const auto* const data = reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.ia5));
      auto& texts = name->type == GEN_DNS ? facts.names : facts.uris;
      texts.emplace_back(data, static_cast<std::size_t>(ASN1_STRING_length(name->d.ia5)));
    }
  }
  std::ranges::sort(facts.names);
  return facts;
}

}  // namespace creto::tls
