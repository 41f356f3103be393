#include "services.h"

#include "creto/audit/audit_rpc.h"
#include "creto/authz/authz_rpc.h"
#include "creto/consensus/consensus_rpc.h"
#include "creto/inference/inference_rpc.h"
#include "creto/io/rpc.h"
#include "creto/memory/memory_rpc.h"
#include "creto/messaging/messaging_rpc.h"
#include "creto/metering/metering_rpc.h"
#include "creto/nhi/nhi_rpc.h"
#include "creto/oversight/oversight_rpc.h"
#include "creto/runtime/runtime_rpc.h"
#include "creto/storage/storage_rpc.h"
#include "creto/vault/vault_rpc.h"
#include "provision.h"
#include "system.h"

namespace creto::app {

void register_services(rpc::Dispatcher& dispatcher, System& system) {
  consensus::register_consensus(dispatcher, *system.timestamps);
  audit::register_audit(dispatcher, *system.audit);
  nhi::register_nhi(dispatcher, *system.nhi);
  nhi::register_enrolment(dispatcher, *system.enrolment);
  authz::register_authz(dispatcher, *system.authz);
  if (system.vault) vault::register_vault(dispatcher, *system.vault);
  if (system.inference) inference::register_inference(dispatcher, *system.inference);
  if (system.memory) memory::register_memory(dispatcher, *system.memory);
  if (system.storage) {
    storage::register_storage(dispatcher, *system.storage, system_clock());
    storage::mount_presigned(dispatcher, *system.storage);
  }
  if (system.local_metering) metering::register_metering(dispatcher, *system.local_metering);
  if (system.runs("oversight")) oversight::register_oversight(dispatcher, *system.oversight);
  if (system.runs("messaging")) messaging::register_messaging(dispatcher, *system.messaging);
  if (system.runtime) runtime::register_runtime(dispatcher, *system.runtime);
  if (system.provisioning) register_provisioning(dispatcher, system);
}

}  // namespace creto::app
