// The feed-forward ops for many tokens: products of matrices, which skip nothing, and what is kept decided between
// them.
#pragma once
#include <cuda_runtime_api.h>

#include "launchers.h"

namespace clada::cuda {

size_t dense_ffn_workspace(const SparseFfnCall&);
cudaError_t dense_ffn(const SparseFfnCall&, void* workspace, const Products&, cudaStream_t);

}  // namespace clada::cuda
