#include "home.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <pwd.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iostream>

#include "creto/crypto/random.h"
#include "creto/crypto/sealed_file.h"
#include "creto/io/files.h"
#include "creto/vault/root_key.h"

namespace creto::app {
namespace {

using std::filesystem::path;
using namespace std::chrono_literals;

constexpr std::string_view human_keys_purpose = "creto human keys v1";
constexpr Nanos authority_lifetime = 24h * 3650;
constexpr Nanos certificate_lifetime = 24h * 825;
constexpr Nanos renewed_before_end = 24h * 60;

Error platform_error(ErrorKind kind, std::string message) { return Error(Product::platform, kind, std::move(message)); }

bool is_there(const path& file) {
  std::error_code ignored;
  return std::filesystem::exists(file, ignored);
}

Result<> write_text(const path& file, std::string_view text, unsigned mode) {
  return io::write_durably(io::real_files(), file, as_bytes(text), mode);
}

/// Turns the terminal's echo off while it lives.
class NoEcho {
 public:
  explicit NoEcho(int fd) : fd_(fd), changed_(tcgetattr(fd, &before_) == 0) {
    if (!changed_) return;
    termios quiet = before_;
    quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    tcsetattr(fd_, TCSAFLUSH, &quiet);
  }
  ~NoEcho() {
    if (changed_) tcsetattr(fd_, TCSAFLUSH, &before_);
  }
  NoEcho(const NoEcho&) = delete;
  NoEcho& operator=(const NoEcho&) = delete;

 private:
  int fd_;
  termios before_{};
  bool changed_;
};

/// `variable` is for the advice where there is no terminal.
Result<Secret> ask_terminal(std::string_view prompt, std::string_view variable) {
  if (!isatty(STDIN_FILENO))
    return platform_error(
        ErrorKind::unavailable,
        fmt::format("{}: put it into a file and name that in {}, or use a terminal", prompt, variable));
  fmt::print(stderr, "{}: ", prompt);
  std::fflush(stderr);
  Secret line(std::size_t{1024});
  std::size_t size = 0;
  {
    const NoEcho quiet(STDIN_FILENO);
    while (size < line.size()) {
      std::uint8_t c = 0;
      if (read(STDIN_FILENO, &c, 1) != 1 || c == '\n') break;
      line.writable()[size++] = c;
    }
  }
  fmt::print(stderr, "\n");
  return Secret::copy_of(line.reveal().first(size));
}

/// For the owner alone: other files rely on it.
Result<> make_directories(const Home& home) {
  CRETO_TRY(io::real_files().create_directories(home.root));
  CRETO_TRY(io::real_files().create_directories(home.human()));
  std::error_code failed;
  std::filesystem::permissions(home.root, std::filesystem::perms::owner_all, failed);
  if (failed)
    return platform_error(ErrorKind::unavailable,
                          fmt::format("cannot keep others out of `{}`: {}", home.root.string(), failed.message()));
  return {};
}

Result<tls::KeyPair> authority_of(const Home& home) {
  if (!is_there(home.authority_key()))
    return platform_error(ErrorKind::not_found, fmt::format("`{}` is not here, and certificates are made with it",
                                                            home.authority_key().string()));
  tls::KeyPair authority;
  authority.certificate = CRETO_TRY(read_text(home.authority()));
  std::string key = CRETO_TRY(read_text(home.authority_key()));
  authority.key = Secret::copy_of(key);
  wipe(key.data(), key.size());
  return authority;
}

/// An IP address as certificates are read back; none for another text.
std::optional<std::string> ip_address(const std::string& text) {
  for (const int family : {AF_INET, AF_INET6}) {
    in6_addr address{};
    char written[INET6_ADDRSTRLEN] = "";
    if (::inet_pton(family, text.c_str(), &address) == 1 &&
        ::inet_ntop(family, &address, written, sizeof written) != nullptr)
      return written;
  }
  return std::nullopt;
}

bool is_dns_name(std::string_view text) {
  return !text.empty() && text.size() <= 253 && !text.starts_with('.') && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
  });
}

/// What the server's certificate is for: this machine, and `names`.
Result<tls::Subject> server_subject(const std::vector<std::string>& names) {
  tls::Subject subject;
  subject.common_name = "creto";
  subject.uri = tls::identity_uri({"service:creto"});
  subject.dns_names = {"localhost"};
  subject.ip_addresses = {"127.0.0.1", "::1"};
  subject.server = true;
  for (const std::string& name : names) {
    const std::optional<std::string> address = ip_address(name);
    if (!address && !is_dns_name(name))
      return platform_error(ErrorKind::invalid_input,
                            fmt::format("names `{}`: must be a DNS name or an IP address", name));
    std::vector<std::string>& of_its_kind = address ? subject.ip_addresses : subject.dns_names;
    const std::string& text = address ? *address : name;
    if (std::ranges::find(of_its_kind, text) == of_its_kind.end()) of_its_kind.push_back(text);
  }
  return subject;
}

Result<std::string> certify_client(const Home& home, const Identity& identity, std::string_view key_id,
                                   std::string_view request) {
  const tls::KeyPair authority = CRETO_TRY(authority_of(home));
  tls::Subject subject;
  subject.common_name = std::string(identity.name());
  subject.uri = tls::identity_uri({identity.text(), std::string(key_id)});
  return tls::issue_for(authority, request, subject, certificate_lifetime, system_clock());
}

class HomeCertifier final : public nhi::Certifier {
 public:
  explicit HomeCertifier(Home home) : home_(std::move(home)) {}

  Result<std::string> certify(const Identity& identity, std::string_view key_id, std::string_view request) override {
    return certify_client(home_, identity, key_id, request);
  }
  Result<std::string> authority() override { return read_text(home_.authority()); }

 private:
  const Home home_;
};

constexpr std::string_view config_template =
    R"(# Creto's settings; `creto config show` prints all of them with their defaults.
# Later wins: defaults, this file, environment (CRETO_GRPC__PORT for grpc.port).

org = "{}"
)";

}  // namespace

Result<Home> Home::locate() {
  if (const char* home = std::getenv("CRETO_HOME"); home != nullptr && *home != '\0')
    return Home{std::filesystem::absolute(home)};
  const char* user_home = std::getenv("HOME");
  if (user_home == nullptr || *user_home == '\0') {
    const passwd* entry = getpwuid(getuid());
    if (entry == nullptr) return platform_error(ErrorKind::invalid_input, "no home directory: set CRETO_HOME");
    user_home = entry->pw_dir;
  }
  return Home{path(user_home) / ".local/share/creto"};
}

namespace {

const std::size_t signing_seed_size = crypto::sizes_of(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65).seed;
const std::size_t key_set_size = signing_seed_size + crypto::sizes_of(crypto::KemAlgorithm::x_wing).seed;

}  // namespace

HumanKeySet HumanKeySet::generate() {
  return {crypto::SigningKey::generate(crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65),
          crypto::KemPrivateKey::generate(crypto::KemAlgorithm::x_wing)};
}

std::string HumanKeySet::id() const { return nhi::key_id_of(signing.verifying_key(), kem.public_key()); }

HumanKeys HumanKeys::generate() {
  HumanKeys keys;
  keys.sets.push_back(HumanKeySet::generate());
  return keys;
}

Result<const HumanKeySet*> HumanKeys::find(std::string_view id) const {
  const auto found = std::ranges::find(sets, id, &HumanKeySet::id);
  if (found == sets.end())
    return platform_error(ErrorKind::not_found,
                          fmt::format("key file: does not hold the key set `{}` that is registered; "
                                      "copy it from where the keys were rotated",
                                      legible(id, 64)));
  return &*found;
}

Result<Bytes> HumanKeys::seal(const Secret& passphrase) const {
  Secret seeds(sets.size() * key_set_size);
  auto out = seeds.writable().begin();
  for (const HumanKeySet& set : sets) {
    out = std::ranges::copy(set.signing.seed().reveal(), out).out;
    out = std::ranges::copy(set.kem.seed().reveal(), out).out;
  }
  return crypto::seal_file(human_keys_purpose, seeds, passphrase);
}

Result<HumanKeys> HumanKeys::open(BytesView file, const Secret& passphrase) {
  const Secret seeds = CRETO_TRY(crypto::open_sealed_file(human_keys_purpose, file, passphrase));
  if (seeds.size() == 0 || seeds.size() % key_set_size != 0)
    return platform_error(ErrorKind::invalid_input, "key file: has the wrong length");
  HumanKeys keys;
  for (BytesView rest = seeds.reveal(); !rest.empty(); rest = rest.subspan(key_set_size)) {
    const BytesView set = rest.first(key_set_size);
    crypto::SigningKey signing = CRETO_TRY(crypto::SigningKey::from_seed(
        crypto::SignatureAlgorithm::hybrid_ed25519_ml_dsa_65, set.first(signing_seed_size)));
    crypto::KemPrivateKey kem =
        CRETO_TRY(crypto::KemPrivateKey::from_seed(crypto::KemAlgorithm::x_wing, set.subspan(signing_seed_size)));
    keys.sets.push_back({std::move(signing), std::move(kem)});
  }
  return keys;
}

namespace {

Result<Secret> passphrase_in(const path& file) {
  Secret content(CRETO_TRY(io::real_files().read(file, 1024)));
  std::size_t size = content.size();
  while (size > 0 && (content.reveal()[size - 1] == '\n' || content.reveal()[size - 1] == '\r')) --size;
  if (size == 0)
    return platform_error(ErrorKind::invalid_input, fmt::format("passphrase file `{}`: is empty", file.string()));
  return Secret::copy_of(content.reveal().first(size));
}

/// The file that the environment's `variable` names; empty where it names none.
path named_by(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? path() : path(value);
}

Result<Secret> type_passphrase(std::string_view prompt, bool confirm, std::string_view variable) {
  Secret first = CRETO_TRY(ask_terminal(prompt, variable));
  if (first.empty()) return platform_error(ErrorKind::invalid_input, "passphrase: must not be empty");
  if (confirm) {
    const Secret second = CRETO_TRY(ask_terminal("the same again", variable));
    if (!equal_constant_time(first.reveal(), second.reveal()))
      return platform_error(ErrorKind::invalid_input, "passphrase: the two differ");
  }
  return first;
}

Result<Secret> root_passphrase(bool confirm) {
  constexpr const char* variable = "CRETO_ROOT_PASSPHRASE_FILE";
  if (const path file = named_by(variable); !file.empty()) return passphrase_in(file);
  if (const path credentials = named_by("CREDENTIALS_DIRECTORY"); !credentials.empty()) {
    const path credential = credentials / "creto-root-passphrase";
    if (is_there(credential)) return passphrase_in(credential);
  }
  return type_passphrase("passphrase of the root key", confirm, variable);
}

}  // namespace

Result<Secret> read_passphrase(std::string_view prompt, bool confirm) {
  constexpr const char* variable = "CRETO_PASSPHRASE_FILE";
  if (const path file = named_by(variable); !file.empty()) return passphrase_in(file);
  return type_passphrase(prompt, confirm, variable);
}

Result<std::unique_ptr<crypto::KeySealer>> open_root_key(const Home& home) {
  const bool sealed = CRETO_TRY(vault::root_key_needs_passphrase(home.root_key()));
  const Secret passphrase = sealed ? CRETO_TRY(root_passphrase(false)) : Secret();
  return vault::open_root_key(home.root_key(), passphrase);
}

Result<std::string> read_text(const path& file, std::size_t bytes_max) {
  const Bytes bytes = CRETO_TRY(io::real_files().read(file, bytes_max));
  return std::string(as_text(bytes));
}

Result<std::string> read_input(const std::string& file) {
  constexpr std::size_t bytes_max = 64 << 20;
  if (file != "-") return read_text(file, bytes_max);
  std::string text;
  std::array<char, 1 << 16> block;
  while (std::cin.read(block.data(), block.size()) || std::cin.gcount() > 0) {
    text.append(block.data(), static_cast<std::size_t>(std::cin.gcount()));
    if (text.size() > bytes_max)
      return platform_error(ErrorKind::too_large, fmt::format("standard input: more than {} bytes", bytes_max));
  }
  return text;
}

Result<Identity> human_of(const Home& home) {
  if (!is_there(home.human_identity()))
    return platform_error(ErrorKind::not_found,
                          fmt::format("no installation in `{}`: run `creto init`", home.root.string()));
  std::string text = CRETO_TRY(read_text(home.human_identity()));
  while (text.ends_with('\n')) text.pop_back();
  return Identity::parse(text);
}

Result<tls::Identity> client_identity(const Home& home) {
  CRETO_TRY(human_of(home));
  std::string certificate = CRETO_TRY(read_text(home.human_certificate()));
  std::string key = CRETO_TRY(read_text(home.human_key()));
  const Instant ends = CRETO_TRY(tls::facts_of(certificate)).ends;
  if (ends <= system_clock().now())
    return platform_error(ErrorKind::expired, fmt::format("your client certificate ended {}: run `creto humans "
                                                          "renew-certificate`",
                                                          to_rfc3339(ends)));
  std::string authority = CRETO_TRY(read_text(home.authority()));
  return tls::Identity{std::move(certificate), std::move(key), std::move(authority)};
}

Result<Secret> read_sealed(const path& file, crypto::KeySealer& sealer) {
  const Bytes sealed = CRETO_TRY(io::real_files().read(file, 1 << 16));
  return sealer.unseal("app/file:" + file.filename().string(), sealed);
}

Result<InitialisedFiles> initialise_files(const Home& home, const InitOptions& options) {
  std::vector<std::string> made;
  std::unique_ptr<crypto::KeySealer> sealer;
  if (!is_org_name(options.org))
    return platform_error(ErrorKind::invalid_input, fmt::format("--org `{}`: {}", options.org, org_name_rule));
  CRETO_TRY(make_directories(home));

  if (!is_there(home.root_key())) {
    const Secret passphrase = options.seal_root_key ? CRETO_TRY(root_passphrase(true)) : Secret();
    CRETO_TRY(vault::create_root_key(home.root_key(), passphrase));
    sealer = CRETO_TRY(vault::open_root_key(home.root_key(), passphrase));
    made.push_back(
        fmt::format("root key{}: {}", options.seal_root_key ? " under a passphrase" : "", home.root_key().string()));
  } else if (options.seal_root_key && !CRETO_TRY(vault::root_key_needs_passphrase(home.root_key()))) {
    return platform_error(ErrorKind::already_exists,
                          fmt::format("--seal-root-key: `{}` is there already, and open", home.root_key().string()));
  }
  if (!sealer) sealer = CRETO_TRY(open_root_key(home));
  const auto seal_fresh = [&](const path& file, const Secret& content, std::string_view what) -> Result<> {
    if (is_there(file)) return {};
    const Bytes sealed = CRETO_TRY(sealer->seal("app/file:" + file.filename().string(), content.reveal()));
    CRETO_TRY(io::write_durably(io::real_files(), file, sealed, 0600));
    made.push_back(fmt::format("{}: {}", what, file.string()));
    return {};
  };
  CRETO_TRY(seal_fresh(home.log_keys(), crypto::random_secret(64), "keys of the audit log"));
  CRETO_TRY(seal_fresh(home.override_key(), crypto::random_secret(32), "key of override tokens"));
  CRETO_TRY(seal_fresh(home.presign_key(), crypto::random_secret(32), "key of presigned links"));

  if (!is_there(home.authority())) {
    const tls::KeyPair authority =
        CRETO_TRY(tls::create_authority("Creto " + options.org, authority_lifetime, system_clock()));
    CRETO_TRY(write_text(home.authority_key(), authority.key.reveal_text(), 0600));
    CRETO_TRY(write_text(home.authority(), authority.certificate, 0644));
    made.push_back("certificate authority: " + home.authority().string());
  }
  if (!is_there(home.server_certificate())) {
    CRETO_TRY(renew_server_certificate(home, {}));
    made.push_back("server certificate: " + home.server_certificate().string());
  }

  if (!is_there(home.human_keys())) {
    const Identity human = CRETO_TRY(Identity::human(options.email));
    const Secret passphrase = CRETO_TRY(read_passphrase("passphrase for the keys of " + human.text(), true));
    const HumanKeys keys = HumanKeys::generate();
    const Bytes sealed = CRETO_TRY(keys.seal(passphrase));
    tls::CertificateRequest request = CRETO_TRY(tls::request_certificate());
    std::string certificate = CRETO_TRY(certify_client(home, human, keys.sets.front().id(), request.request));
    CRETO_TRY(write_client_certificate(home, {std::move(certificate), std::move(request.key)}));
    CRETO_TRY(write_text(home.human_identity(), human.text() + "\n", 0600));
    CRETO_TRY(io::write_durably(io::real_files(), home.human_keys(), sealed, 0600));
    made.push_back(fmt::format("keys of {}: {}", human.text(), home.human_keys().string()));
  }

  if (!is_there(home.config())) {
    CRETO_TRY(write_text(home.config(), fmt::format(config_template, options.org), 0600));
    made.push_back("settings: " + home.config().string());
  }
  return InitialisedFiles{std::move(made), std::move(sealer)};
}

Result<bool> renew_server_certificate(const Home& home, const std::vector<std::string>& names) {
  const tls::Subject subject = CRETO_TRY(server_subject(names));
  if (is_there(home.server_certificate())) {
    std::vector<std::string> wanted = subject.dns_names;
    wanted.insert(wanted.end(), subject.ip_addresses.begin(), subject.ip_addresses.end());
    std::ranges::sort(wanted);
    const std::string current = CRETO_TRY(read_text(home.server_certificate()));
    const tls::CertificateFacts facts = CRETO_TRY(tls::facts_of(current));
    const Nanos left = facts.ends - system_clock().now();
    // Where the authority's key is kept elsewhere, a certificate serves until its end.
    const Nanos enough = is_there(home.authority_key()) ? renewed_before_end : Nanos(0);
    if (facts.names == wanted && left > enough) return false;
  }
  const tls::KeyPair authority = CRETO_TRY(authority_of(home));
  const tls::KeyPair server = CRETO_TRY(tls::issue(authority, subject, certificate_lifetime, system_clock()));
  // Where a crash comes between the two, the next start finds a certificate of another key, or none, and fails to
  // serve: so the old certificate goes first, and is missed.
  std::error_code ignored;
  std::filesystem::remove(home.server_certificate(), ignored);
  CRETO_TRY(write_text(home.server_key(), server.key.reveal_text(), 0600));
  CRETO_TRY(write_text(home.server_certificate(), server.certificate, 0644));
  return true;
}

std::unique_ptr<nhi::Certifier> certify_with(const Home& home) { return std::make_unique<HomeCertifier>(home); }

Result<> write_client_certificate(const Home& home, const tls::KeyPair& client) {
  CRETO_TRY(write_text(home.human_key(), client.key.reveal_text(), 0600));
  return write_text(home.human_certificate(), client.certificate, 0644);
}

Result<HumanKeys> begin_to_join(const Home& home, const Invitation& invitation) {
  if (is_there(home.root_key()) || is_there(home.human_identity()))
    return platform_error(
        ErrorKind::already_exists,
        fmt::format("`{}` is an installation's home already: name another one in CRETO_HOME", home.root.string()));
  CRETO_TRY(make_directories(home));
  CRETO_TRY(write_text(home.authority(), invitation.authority, 0644));
  const std::string prompt = "passphrase for the keys of " + invitation.human.text();
  if (is_there(home.human_keys())) {
    const Bytes file = CRETO_TRY(io::real_files().read(home.human_keys(), 1 << 20));
    const Secret passphrase = CRETO_TRY(read_passphrase(prompt, false));
    return HumanKeys::open(file, passphrase);
  }
  const Secret passphrase = CRETO_TRY(read_passphrase(prompt, true));
  HumanKeys keys = HumanKeys::generate();
  const Bytes sealed = CRETO_TRY(keys.seal(passphrase));
  CRETO_TRY(io::write_durably(io::real_files(), home.human_keys(), sealed, 0600));
  return keys;
}

Result<> finish_joining(const Home& home, const Invitation& invitation, const tls::KeyPair& client) {
  CRETO_TRY(write_client_certificate(home, client));
  const std::string settings = fmt::format(config_template, invitation.org) +
                               fmt::format("# Where commands find the server.\nserver = \"{}\"\n", invitation.server);
  CRETO_TRY(write_text(home.config(), settings, 0600));
  return write_text(home.human_identity(), invitation.human.text() + "\n", 0600);
}

}  // namespace creto::app
