// The feed-forward ops for many tokens: dense products of matrices, with the neurons selected between them.
#pragma once
#include <cuda_runtime_api.h>

#include "launchers.h"

namespace clada::cuda {

size_t dense_ffn_workspace(const SparseFfnCall&);
cudaError_t dense_ffn(const SparseFfnCall&, void* workspace, const Products&, cudaStream_t);

}  // namespace clada::cuda
