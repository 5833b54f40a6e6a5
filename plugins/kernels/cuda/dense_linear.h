// SparseLinear for many tokens: inputs that are not kept become 0, followed by a dense product.
#pragma once
#include <cuda_runtime_api.h>

#include "launchers.h"

namespace clada::cuda {

size_t dense_linear_workspace(const SparseLinearCall&);
cudaError_t dense_linear(const SparseLinearCall&, void* workspace, const Products&, cudaStream_t);

}  // namespace clada::cuda
