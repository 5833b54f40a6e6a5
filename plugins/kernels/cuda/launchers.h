// The CUDA kernels of the `clada` ops, free of any framework: device pointers, sizes, a workspace and a stream.
//
// Every launcher can be captured in a CUDA graph: it allocates nothing, waits for nothing, and what it launches depends
// on sizes and types alone, never on data. The same input gives the same bits.
#pragma once
#include <cuda_runtime_api.h>

#include "calls.h"

namespace clada::cuda {

// c[m, n] = a[m, k] . b, all row-major and of one element type, sums in float32; b is [n, k] where transposed_b, else
// [k, n]. c's rows start c_row elements apart; all else is without gaps.
struct Product {
  int64_t m, n, k;
  Element element;
  const void* a;
  const void* b;
  void* c;
  int64_t c_row;
  bool transposed_b;
};

// Products of matrices, for calls of many tokens: by a vendor's library (cublas_products.h), or a test's own.
struct Products {
  void* library;
  cudaError_t (*multiply)(void* library, const Product&, cudaStream_t);
};

// Up to this many tokens (batch * sequence) a call is computed row by row, skipping what is not kept; above, as
// products of matrices that skip nothing.
constexpr int64_t kRowwiseTokens = 8;

// Bytes that sparse_ffn needs beside its inputs and outputs, aligned to 256; from sizes and types alone.
size_t sparse_ffn_workspace(const SparseFfnCall&);

// One call of SparseGatedFFN, of SparseFFN, or of their quantized variants. Weights that are not quantized have the
// element type of x; those that are, any type of x. `products` may be null where there are at most kRowwiseTokens
// tokens; cudaErrorInvalidValue where it is needed and null, where weight_element differs, where bits, block or scales
// are not of this project's formats or do not fit the width, and where a size is negative or larger than the kernels
// count. Any size may be 0: a token of no neurons gets b_out or zeros.
cudaError_t sparse_ffn(const SparseFfnCall&, void* workspace, const Products* products, cudaStream_t);

// Bytes that sparse_linear needs beside its inputs and outputs, aligned to 256; from sizes and types alone.
size_t sparse_linear_workspace(const SparseLinearCall&);

// One call of SparseLinear or of its quantized variant. w that is not quantized has the element type of x; codes, any
// type of x. `products` may be null where there are at most kRowwiseTokens tokens, of which only the rows of w are read
// whose inputs are kept; cudaErrorInvalidValue where it is needed and null, where weight_element differs, where bits,
// block or scales are not of this project's formats or do not fit the outputs, and where a size is negative or larger
// than the kernels count. Any size may be 0.
cudaError_t sparse_linear(const SparseLinearCall&, void* workspace, const Products* products, cudaStream_t);

// Bytes that load_signal needs, aligned to 256; from sizes and types alone.
size_t load_signal_workspace(const LoadSignalCall&);

// One call of LoadSignal. A row whose token is outside the vocabulary gets NaN in all its outputs: a device cannot
// raise. cudaErrorInvalidValue where a size is negative, or there are fewer knots than the op asks for.
cudaError_t load_signal(const LoadSignalCall&, void* workspace, cudaStream_t);

}  // namespace clada::cuda
