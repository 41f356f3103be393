#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "creto/common/identity.h"
#include "creto/common/secret.h"
#include "creto/crypto/kem.h"
#include "creto/crypto/key_sealer.h"
#include "creto/crypto/signing.h"
#include "creto/io/tls.h"
#include "creto/nhi/enrolment.h"
#include "invitation.h"

/// Where an installation keeps its files, and how they are made. Nothing here talks to a server.
namespace creto::app {

/// $CRETO_HOME, or ~/.local/share/creto. Every path is below `root`, which has mode 0700.
struct Home {
  std::filesystem::path root;

  static Result<Home> locate();

  std::filesystem::path config() const { return root / "config.toml"; }
  std::filesystem::path database() const { return root / "creto.db"; }
  std::filesystem::path root_key() const { return root / "root.key"; }
  std::filesystem::path authority() const { return root / "ca.pem"; }
  std::filesystem::path authority_key() const { return root / "ca.key"; }
  std::filesystem::path server_certificate() const { return root / "server.pem"; }
  std::filesystem::path server_key() const { return root / "server.key"; }
  std::filesystem::path log_keys() const { return root / "audit-log.sealed"; }
  std::filesystem::path override_key() const { return root / "override.sealed"; }
  std::filesystem::path presign_key() const { return root / "presign.sealed"; }
  std::filesystem::path audit() const { return root / "audit"; }
  std::filesystem::path audit_key() const { return root / "audit.vkey"; }
  std::filesystem::path decisions() const { return root / "decisions"; }
  std::filesystem::path usage() const { return root / "usage"; }
  std::filesystem::path objects() const { return root / "objects"; }
  std::filesystem::path sandboxes() const { return root / "sandboxes"; }
  std::filesystem::path human() const { return root / "human"; }
  std::filesystem::path human_identity() const { return human() / "identity"; }
  std::filesystem::path human_keys() const { return human() / "keys.sealed"; }
  std::filesystem::path human_messages() const { return human() / "messages.db"; }
  std::filesystem::path human_messages_key() const { return human() / "messages.key"; }
  std::filesystem::path human_certificate() const { return human() / "client.pem"; }
  std::filesystem::path human_key() const { return human() / "client.key"; }
};

struct HumanKeySet {
  crypto::SigningKey signing;  ///< hybrid-ed25519-ml-dsa-65
  crypto::KemPrivateKey kem;   ///< x-wing

  static HumanKeySet generate();
  /// As nhi names it.
  std::string id() const;
};

/// A human's private keys: made on his side, kept in a file that only his passphrase opens (docs/formats.md, "Human
/// keys"). What was sealed to earlier sets opens with them; the newest may not have been registered yet.
struct HumanKeys {
  std::vector<HumanKeySet> sets;  ///< newest first; at least one

  static HumanKeys generate();
  /// Errors: not_found where the file does not hold the set of that id.
  Result<const HumanKeySet*> find(std::string_view id) const;
  Result<Bytes> seal(const Secret& passphrase) const;
  /// Errors: decryption_failed for a wrong passphrase, invalid_input for another kind of file.
  static Result<HumanKeys> open(BytesView file, const Secret& passphrase);
};

/// A human's passphrase: the content of $CRETO_PASSPHRASE_FILE without its line end, or what is typed at the terminal
/// without echo. `confirm` asks twice. Errors: unavailable where there is neither.
Result<Secret> read_passphrase(std::string_view prompt, bool confirm);

/// Opens the root key. Where it is sealed its passphrase comes from $CRETO_ROOT_PASSPHRASE_FILE, from the systemd
/// credential `creto-root-passphrase`, or from the terminal. Errors: unavailable where there is none of them;
/// decryption_failed for a wrong one.
Result<std::unique_ptr<crypto::KeySealer>> open_root_key(const Home& home);

Result<std::string> read_text(const std::filesystem::path& path, std::size_t bytes_max = 1 << 20);
/// What the user named: a file of up to 64 MiB, or `-` for standard input.
Result<std::string> read_input(const std::string& file);

/// What the CLI shows the server: the human's client certificate, and whom it believes. Errors: expired, with advice.
Result<tls::Identity> client_identity(const Home& home);
/// The human of this home. Errors: not_found with the advice to run `creto init`.
Result<Identity> human_of(const Home& home);

struct InitOptions {
  std::string org = "default";
  std::string email;
  bool seal_root_key = false;  ///< under a passphrase of its own, which every start of the server then needs
};

/// Makes what is missing of an installation: root key, authority, server certificate, log keys, the first human's keys
/// and certificate, config. Changes nothing that is there.
struct InitialisedFiles {
  std::vector<std::string> made;  ///< one line each
  std::unique_ptr<crypto::KeySealer> sealer;
};
Result<InitialisedFiles> initialise_files(const Home& home, const InitOptions& options);

/// Sees to the certificate that the server shows: for `names` (DNS names and IP addresses) besides this machine's own.
/// Makes a new one where there is none, where its names are others, or where it ends within 60 days. True where it did.
/// Without the authority's key a certificate of the right names is left as it is until its end.
/// Errors: invalid_input for a name that is none; not_found where the authority's key, which that takes, is not here.
Result<bool> renew_server_certificate(const Home& home, const std::vector<std::string>& names);

/// The installation's own authority, whose key lies in the home.
std::unique_ptr<nhi::Certifier> certify_with(const Home& home);

/// Makes the home of somebody who joins an installation elsewhere: his keys under a passphrase, and whom his commands
/// believe. Takes up what an earlier try left. Errors: already_exists where the home is another's, or a server's.
Result<HumanKeys> begin_to_join(const Home& home, const Invitation& invitation);
/// Writes the certificate that he got, and the settings; only then the home is one.
Result<> finish_joining(const Home& home, const Invitation& invitation, const tls::KeyPair& client);
Result<> write_client_certificate(const Home& home, const tls::KeyPair& client);

/// Reads a file that `initialise_files` sealed under the root key. `what` is the file's name.
Result<Secret> read_sealed(const std::filesystem::path& path, crypto::KeySealer& sealer);

}  // namespace creto::app
