#pragma once

#include <memory>

#include "creto/vault/vault.h"

namespace creto::rpc {
class Channel;
class Dispatcher;
}  // namespace creto::rpc

namespace creto::vault {

/// Registers creto.vault.v1.VaultService. Both must outlive the serving.
void register_vault(rpc::Dispatcher& dispatcher, Vault& vault);

/// The same interface over the wire.
std::unique_ptr<Vault> create_vault_client(std::shared_ptr<rpc::Channel> channel);

}  // namespace creto::vault
