#pragma once

#include "creto/inference/inference.h"
#include "creto/inference/v1/inference.pb.h"

/// `to_proto` is total; `from_proto` refuses what a domain type cannot hold, with invalid_input naming the field.
namespace creto::inference {

void to_proto(const CompletionRequest& from, v1::CompleteRequest& to);
void to_proto(const CompletionResponse& from, v1::CompleteResponse& to);
void to_proto(const TokenUsage& from, v1::TokenUsage& to);
void to_proto(const Embeddings& from, v1::EmbedResponse& to);
void to_proto(const Capabilities& from, v1::Capabilities& to);

Result<CompletionRequest> from_proto(const v1::CompleteRequest& from);
Result<CompletionResponse> from_proto(const v1::CompleteResponse& from);
TokenUsage from_proto(const v1::TokenUsage& from);
Embeddings from_proto(const v1::EmbedResponse& from);
Capabilities from_proto(const v1::Capabilities& from);

}  // namespace creto::inference
