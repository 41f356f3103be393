#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "creto/common/clock.h"
#include "creto/common/result.h"
#include "creto/common/secret.h"

namespace creto::tls {

/// A certificate chain and its private key, both PEM.
struct KeyPair {
  std::string certificate;
  Secret key;
};

/// What one end of a connection shows and whom it believes. An empty `authority` on a client means the system's store.
struct Identity {
  std::string certificate;  ///< PEM chain, leaf first; empty: show none
  std::string key;          ///< PEM
  std::string authority;    ///< PEM certificates the peer's chain must end in
};

struct Subject {
  std::string common_name = {};
  std::string uri = {};  ///< the Creto identity as URI SAN: "creto:human:ada@example.com"
  std::vector<std::string> dns_names = {};
  std::vector<std::string> ip_addresses = {};
  bool server = false;
  bool client = true;
};

/// An authority over P-256 certificates: ones that every TLS client can check. What must outlive a quantum computer,
/// the recorded traffic, is protected by the key exchange (X25519MLKEM768), not by the certificates, which expire
/// first.
Result<KeyPair> create_authority(std::string_view organization, Nanos valid_for, const Clock& clock);

/// Errors: invalid_input for a malformed authority or subject.
Result<KeyPair> issue(const KeyPair& authority, const Subject& subject, Nanos valid_for, const Clock& clock);

/// A fresh key, and what asks an authority elsewhere for a certificate over it (PKCS #10), both PEM: the key stays
/// here.
struct CertificateRequest {
  std::string request;
  Secret key;
};
Result<CertificateRequest> request_certificate();

/// As `issue`, over the key in `request`, which has signed it; nothing else in it counts. Returns the certificate.
/// Errors: invalid_input for a request of more than 8 KiB, one that its key did not sign, another key than P-256's.
Result<std::string> issue_for(const KeyPair& authority, std::string_view request, const Subject& subject,
                              Nanos valid_for, const Clock& clock);

/// Whom a certificate of ours names.
struct CertifiedIdentity {
  std::string identity;     ///< "human:ada@example.com"
  std::string key_id = {};  ///< the key set of that identity with which the certificate stands and falls; empty: none
  friend bool operator==(const CertifiedIdentity&, const CertifiedIdentity&) = default;
};
/// The URI that says so in a certificate ("creto:human:ada@example.com?keys=0123456789abcdef"), and back.
/// `identity_from_uri` refuses every other scheme.
std::string identity_uri(const CertifiedIdentity& identity);
Result<CertifiedIdentity> identity_from_uri(std::string_view uri);

/// What the first certificate in `pem` says of itself.
struct CertificateFacts {
  Instant ends{};
  std::vector<std::string> names;  ///< DNS names and IP addresses, sorted
  std::vector<std::string> uris;
};
Result<CertificateFacts> facts_of(std::string_view pem);

/// True where TLS made by gRPC and by us offers X25519MLKEM768 first. A linked program calls it once before its first
/// connection: it also keeps the hook that gives gRPC its key-exchange groups from being dropped by the linker.
bool use_post_quantum_groups();

}  // namespace creto::tls
