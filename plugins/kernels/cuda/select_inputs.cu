// SparseLinear for few tokens: inputs of x above their thresholds, in the layout that gate_up.cu hands to down.cu.
// A thread takes an input of all tokens. A few more blocks count: each looks at all inputs of a token once more, which
// takes less time than to wait for what the others have counted.
#include <launch.cuh>

#include "activations.cuh"
#include "elements.cuh"
#include "reduce.cuh"
#include "rowwise.h"

namespace clada::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

template <class E>
__device__ __forceinline__ float input_of(const Rowwise& call, int token, int input) {
  return to_float(static_cast<const E*>(call.x)[static_cast<int64_t>(token) * call.neurons + input]);
}

template <class E>
__device__ __forceinline__ void count_block(const Rowwise& call, int token) {
  __shared__ SharedArray<int, kWarps> of_warps;
  const float scale = call.scale[token];
  int count = 0;
#pragma unroll 8
  for (int input = static_cast<int>(threadIdx.x); input < call.neurons; input += kThreads) {
    count += is_kept(input_of<E>(call, token, input), scale, call.threshold[input]);
  }
  count = block_sum(count, of_warps);
  if (threadIdx.x == 0) call.active_out[token] = count;
}

template <class E, int kTokens>
__device__ __forceinline__ void select_block(const Rowwise& call, int input, int step) {
  // A workspace comes as it is.
  for (int tile = input; tile < call.tiles; tile += step) call.tickets[tile] = 0;

  const bool is_input = input < call.neurons;
  const float threshold = is_input ? call.threshold[input] : 0.0f;
  float h[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) h[t] = is_input && t < call.tokens ? input_of<E>(call, t, input) : 0.0f;
  bool is_kept_by_some = false;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const bool kept = t < call.tokens && is_kept(h[t], call.scale[t], threshold);
    if (!kept) h[t] = 0.0f;
    is_kept_by_some |= kept;
  }

  static_assert(kWarp == 2 * kBlockNeurons, "a warp's bits are of two blocks");
  const unsigned kept = __ballot_sync(kWholeWarp, is_kept_by_some);
  const int block = input / kBlockNeurons;
  if (lane_index() % kBlockNeurons == 0 && block < call.blocks) {
    call.kept[block] = static_cast<uint16_t>(kept >> lane_index());
  }
  if (!is_input) return;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) call.h[static_cast<int64_t>(input) * kTokens + t] = h[t];
}

template <class E, int kTokens>
__global__ void __launch_bounds__(kThreads) select_inputs(const Rowwise call) {
  const int blocks = static_cast<int>(gridDim.x) - call.tokens, block = static_cast<int>(blockIdx.x);
  if (block < blocks) {
    select_block<E, kTokens>(call, block * kThreads + static_cast<int>(threadIdx.x), blocks * kThreads);
  } else {
    count_block<E>(call, block - blocks);
  }
}

}  // namespace

cudaError_t launch_select_inputs(const Rowwise& call, cudaStream_t stream) {
  const int64_t inputs = static_cast<int64_t>(call.blocks) * kBlockNeurons;
  return with_element(call.element, [&](auto* of) {
    return with_tokens(call.padded, [&](auto tokens) {
      using E = std::remove_pointer_t<decltype(of)>;
      return launch(select_inputs<E, decltype(tokens)::kTokens>, (inputs + kThreads - 1) / kThreads + call.tokens,
                    kThreads, stream, call);
    });
  });
}

}  // namespace clada::cuda
