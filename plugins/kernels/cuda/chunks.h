// Calls of many tokens, which are taken a chunk at a time, so that the workspace does not grow with a prompt.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>

#include "launchers.h"

namespace clada::cuda {

// Tokens of a chunk.
inline int64_t chunk_tokens(int64_t tokens) { return std::min<int64_t>(1024, tokens); }

// Of a part of the workspace, so that the next is aligned.
inline size_t padded_bytes(int64_t count, size_t size) { return (static_cast<size_t>(count) * size + 255) / 256 * 256; }

inline bool is_empty(const Product& product) { return product.n == 0 || product.k == 0; }

// A product of no terms, which cuBLAS refuses; into c without gaps.
inline cudaError_t clear_product(const Product& product, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(product.m * product.n) * element_size(product.element);
  return bytes == 0 ? cudaSuccess : cudaMemsetAsync(product.c, 0, bytes, stream);
}

}  // namespace clada::cuda
