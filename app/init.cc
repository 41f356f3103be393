#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "creto/common/json.h"
#include "settings.h"
#include "system.h"

namespace creto::app {
namespace {

/// The owner may do everything, and so may our own services: what agents may do is for the owner to write.
Result<> ensure_policy(System& system, const Context& ctx, const std::string& id, const std::string& text) {
  const auto created = system.authz->create_policy(ctx, id, text);
  if (created || created.error().kind() == ErrorKind::already_exists) return {};
  return Error(created.error());
}

}  // namespace

Result<Output> init(const Home& home, const InitOptions& options) {
  CRETO_TRY(Identity::human(options.email));  // before anything is made
  InitialisedFiles files = CRETO_TRY(initialise_files(home, options));
  std::vector<std::string>& made = files.made;
  Settings settings = CRETO_TRY(Settings::load(home));
  settings.decision_log = false;  // it is the server's, which may be running
  const Identity human = CRETO_TRY(human_of(home));
  const std::unique_ptr<System> system = CRETO_TRY(assemble_core(home, settings, std::move(files.sealer)));

  const Identity self = CRETO_TRY(Identity::service("creto"));
  Context ctx = Context::of_service(self);
  ctx.org = settings.org;
  for (const char* name : {"creto", "metering", "oversight", "runtime", "messaging"}) {
    const Identity service = CRETO_TRY(Identity::service(name));
    CRETO_TRY(system->nhi->ensure_service(ctx, service));
  }
  const bool known = CRETO_TRY(system->nhi->is_registered(ctx, human));
  if (!known) {
    const Secret passphrase = CRETO_TRY(read_passphrase("passphrase of " + human.text(), false));
    const std::string sealed = CRETO_TRY(read_text(home.human_keys()));
    const HumanKeys keys = CRETO_TRY(HumanKeys::open(as_bytes(sealed), passphrase));
    const HumanKeySet& first = keys.sets.front();
    CRETO_TRY(system->nhi->register_human(ctx, human, std::string(human.name()), first.signing.verifying_key(),
                                          first.kem.public_key()));
    made.push_back("registered " + human.text());
  }
  CRETO_TRY(ensure_policy(*system, ctx, "owner",
                          fmt::format("permit (principal == Human::\"{}\", action, resource);", human.text())));
  CRETO_TRY(ensure_policy(*system, ctx, "services", "permit (principal is Service, action, resource);"));
  CRETO_TRY(system->audit->flush(ctx));

  std::string text;
  for (const std::string& line : made) text += line + "\n";
  text += made.empty() ? fmt::format("nothing to do: `{}` is complete\n", home.root.string())
                       : fmt::format("ready: start the server with `creto serve`\n");
  return Output{std::move(text), Json{{"home", home.root.string()}, {"human", human.text()}, {"made", made}}.dump(2),
                0};
}

}  // namespace creto::app
