// SparseLinear: choice of the algorithm for a call.
#include "dense_linear.h"
#include "rowwise.h"

namespace clada::cuda {
namespace {

// Sizes that the kernels count in int.
bool fits(const SparseLinearCall& linear) {
  return can_count(linear.batch, linear.sequence, linear.outputs, linear.width);
}

// Weights that there are kernels for.
bool are_known(const SparseLinearCall& linear) {
  if (linear.quantization.bits == 0) return linear.weight_element == linear.element;
  return are_blocks(linear.quantization, linear.outputs) && linear.s;
}

// The call as its kernels see it; returns the bytes of its workspace.
size_t lay_out(const SparseLinearCall& linear, void* workspace, Rowwise& call) {
  call = {};
  call.x = linear.x;
  call.w_out = {linear.w, linear.s};
  call.threshold = linear.threshold;
  call.scale = linear.scale;
  call.y = linear.y;
  call.active_out = linear.kept;
  call.tokens = static_cast<int>(linear.batch * linear.sequence);
  call.batch = static_cast<int>(linear.batch);
  call.sequence = static_cast<int>(linear.sequence);
  call.width = static_cast<int>(linear.outputs);
  call.neurons = static_cast<int>(linear.width);
  call.element = linear.element;
  call.bits = linear.quantization.bits;
  call.scale_shift = scale_shift(linear.quantization);
  // Rows of blocks are always whole vectors.
  const size_t row_bytes = static_cast<size_t>(linear.outputs) * element_size(linear.element);
  call.vectors = (call.bits != 0 || row_bytes % 16 == 0) && is_aligned(linear.w);
  return lay_out(false, workspace, call);
}

}  // namespace

size_t sparse_linear_workspace(const SparseLinearCall& linear) {
  if (!fits(linear)) return 0;
  if (linear.batch * linear.sequence > kRowwiseTokens) return dense_linear_workspace(linear);
  Rowwise call;
  return lay_out(linear, nullptr, call);
}

cudaError_t sparse_linear(const SparseLinearCall& linear, void* workspace, const Products* products,
                          cudaStream_t stream) {
  if (!are_known(linear) || !fits(linear)) return cudaErrorInvalidValue;
  if (linear.batch * linear.sequence > kRowwiseTokens) {
    return products ? dense_linear(linear, workspace, *products, stream) : cudaErrorInvalidValue;
  }
  Rowwise call;
  lay_out(linear, workspace, call);
  const cudaError_t error = launch_select_inputs(call, stream);
  return error == cudaSuccess && call.tiles > 0 ? launch_down(call, stream) : error;
}

}  // namespace clada::cuda
