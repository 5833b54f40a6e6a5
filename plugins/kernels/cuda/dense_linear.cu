#include <algorithm>
#include <launch.cuh>

#include "activations.cuh"
#include "chunks.h"
#include "dense_linear.h"
#include "elements.cuh"
#include "reduce.cuh"
#include "weight_products.h"

namespace clada::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Writes what is kept of the x of the tokens from `first` on, and how much it is: a block a token.
template <class E>
__global__ void __launch_bounds__(kThreads) mask_inputs(const SparseLinearCall call, int64_t first, E* kept_x) {
  __shared__ SharedArray<int, kWarps> of_warps;
  const int64_t token = first + blockIdx.x;
  const int width = static_cast<int>(call.width);
  const float scale = call.scale[token];
  const E* x = static_cast<const E*>(call.x) + token * width;
  kept_x += blockIdx.x * call.width;
  int count = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
    const bool kept = is_kept(to_float(x[i]), scale, call.threshold[i]);
    kept_x[i] = kept ? x[i] : from_float<E>(0.0f);
    count += kept;
  }
  count = block_sum(count, of_warps);
  if (threadIdx.x == 0) call.kept[token] = count;
}

Matrix matrix_of(const SparseLinearCall& call) {
  return {{call.w, call.s}, call.width, call.outputs, call.element, call.quantization};
}

size_t kept_bytes(const SparseLinearCall& call) {
  return padded_bytes(chunk_tokens(call.batch * call.sequence) * call.width, element_size(call.element));
}

}  // namespace

size_t dense_linear_workspace(const SparseLinearCall& call) {
  return kept_bytes(call) + outward_piece_bytes(matrix_of(call));
}

cudaError_t dense_linear(const SparseLinearCall& call, void* workspace, const Products& products, cudaStream_t stream) {
  const int64_t tokens = call.batch * call.sequence, each = chunk_tokens(tokens);
  const WeightProducts multiply{products, static_cast<char*>(workspace) + kept_bytes(call), stream};
  return with_element(call.element, [&](auto* of) {
    using E = std::remove_pointer_t<decltype(of)>;
    E* kept_x = static_cast<E*>(workspace);
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; first < tokens && error == cudaSuccess; first += each) {
      const int64_t count = std::min(each, tokens - first);
      error = launch(mask_inputs<E>, count, kThreads, stream, call, first, kept_x);
      if (error != cudaSuccess) break;
      error = multiply.outward(matrix_of(call), count, kept_x, static_cast<E*>(call.y) + first * call.outputs);
    }
    return error;
  });
}

}  // namespace clada::cuda
