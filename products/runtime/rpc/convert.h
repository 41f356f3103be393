#pragma once

#include "creto/io/proto.h"
#include "creto/runtime/runtime.h"
#include "creto/runtime/v1/runtime.pb.h"

namespace creto::runtime {

void to_proto(const SandboxSpec& spec, v1::SpawnSandboxRequest& out);
Result<SandboxSpec> from_proto(const v1::SpawnSandboxRequest& request);
void to_proto(const SpawnResult& result, v1::SpawnSandboxResponse& out);
Result<SpawnResult> from_proto(const v1::SpawnSandboxResponse& response);
void to_proto(const Sandbox& sandbox, v1::Sandbox& out);
Result<Sandbox> from_proto(const v1::Sandbox& sandbox);
void to_proto(const Attestation& attestation, v1::Attestation& out);
Attestation from_proto(const v1::Attestation& attestation);
void to_proto(const ExecRequest& request, v1::ExecSandboxRequest& out);
Result<ExecRequest> from_proto(const v1::ExecSandboxRequest& request);

}  // namespace creto::runtime
