// SparseLinear for many tokens: what is not kept of x becomes 0, and products of matrices skip nothing.
#pragma once
#include <cuda_runtime_api.h>

#include "launchers.h"

namespace clada::cuda {

size_t dense_linear_workspace(const SparseLinearCall&);
cudaError_t dense_linear(const SparseLinearCall&, void* workspace, const Products&, cudaStream_t);

}  // namespace clada::cuda
