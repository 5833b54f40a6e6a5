// The feed-forward ops: choice of the algorithm for a call.
#include "dense_ffn.h"
#include "rowwise.h"

namespace clada::cuda {
namespace {

// Sizes that the kernels count in int.
bool fits(const SparseFfnCall& ffn) { return can_count(ffn.batch, ffn.sequence, ffn.width, ffn.neurons); }

// Weights that there are kernels for.
bool are_known(const SparseFfnCall& ffn) {
  if (ffn.quantization.bits == 0) return ffn.weight_element == ffn.element;
  return are_blocks(ffn.quantization, ffn.width) && ffn.s_in && ffn.s_out && (!ffn.w_up || ffn.s_up);
}

// The call as its kernels see it; returns the bytes of its workspace.
size_t lay_out(const SparseFfnCall& ffn, void* workspace, Rowwise& call) {
  const int64_t size = static_cast<int64_t>(element_size(ffn.element));
  call.x = ffn.x;
  call.w_in = {ffn.w_in, ffn.s_in};
  call.w_up = {ffn.w_up, ffn.s_up};
  call.w_out = {ffn.w_out, ffn.s_out};
  call.b_in = ffn.b_in;
  call.b_out = ffn.b_out;
  call.threshold = ffn.threshold;
  call.scale = ffn.scale;
  call.pool = ffn.pool;
  call.y = ffn.y;
  call.active_out = ffn.active;
  call.score = ffn.score;
  call.tokens = static_cast<int>(ffn.batch * ffn.sequence);
  call.batch = static_cast<int>(ffn.batch);
  call.sequence = static_cast<int>(ffn.sequence);
  call.width = static_cast<int>(ffn.width);
  call.neurons = static_cast<int>(ffn.neurons);
  call.activation = ffn.activation;
  call.element = ffn.element;
  call.bits = ffn.quantization.bits;
  call.scale_shift = scale_shift(ffn.quantization);
  // Rows of blocks are always whole vectors.
  call.vectors = ffn.width * size % 16 == 0 && is_aligned(ffn.x) && is_aligned(ffn.w_in) && is_aligned(ffn.w_up) &&
                 is_aligned(ffn.w_out);
  return lay_out(true, workspace, call);
}

}  // namespace

size_t sparse_ffn_workspace(const SparseFfnCall& ffn) {
  if (!fits(ffn)) return 0;
  if (ffn.batch * ffn.sequence > kRowwiseTokens) return dense_ffn_workspace(ffn);
  Rowwise call;
  return lay_out(ffn, nullptr, call);
}

cudaError_t sparse_ffn(const SparseFfnCall& ffn, void* workspace, const Products* products, cudaStream_t stream) {
  if (!are_known(ffn) || !fits(ffn)) return cudaErrorInvalidValue;
  if (ffn.batch * ffn.sequence > kRowwiseTokens) {
    return products ? dense_ffn(ffn, workspace, *products, stream) : cudaErrorInvalidValue;
  }
  Rowwise call;
  lay_out(ffn, workspace, call);
  const cudaError_t error = launch_gate_up(call, stream);
  return error == cudaSuccess ? launch_down(call, stream) : error;
}

}  // namespace clada::cuda
