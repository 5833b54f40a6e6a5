// The load signal: one block per piece of a row of logits, then one per row that merges the pieces' results.
#include <algorithm>
#include <launch.cuh>
#include <limits>

#include "elements.cuh"
#include "knots.h"
#include "reduce.cuh"

namespace clada::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kOfThread = 16;  // logits that a thread reads at once
constexpr int kPiece = kThreads * kOfThread;
constexpr float kMinusInfinity = -__builtin_inff();

// Partial results of a piece: its largest logit, the sum of e = exp(z - largest), and that of e * (z - largest).
struct Parts {
  float *top, *sum, *weighted;  // [B, pieces]
  int pieces;
};

// A term of probability 0 adds nothing, although its logarithm is infinite.
__device__ __forceinline__ float times_or_zero(float e, float z) { return z == kMinusInfinity ? 0.0f : e * z; }

template <class E>
__global__ void __launch_bounds__(kThreads) sum_pieces(const LoadSignalCall call, const Parts parts) {
  __shared__ SharedArray<float, kWarps> of_warps;
  const int64_t row = static_cast<int>(blockIdx.x) / parts.pieces;
  const int64_t first = static_cast<int64_t>(static_cast<int>(blockIdx.x) % parts.pieces) * kPiece;
  const E* logits = static_cast<const E*>(call.logits) + row * call.vocabulary;
  float z[kOfThread], top = kMinusInfinity;
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t at = first + i * kThreads + threadIdx.x;
    z[i] = at < call.vocabulary ? to_float(logits[at]) : kMinusInfinity;
    top = fmaxf(top, z[i]);
  }
  top = block_max(top, of_warps);
  float sum = 0.0f, weighted = 0.0f;
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    // Minus infinity itself, not its distance from the top, which is no number where that is minus infinity too.
    const float below = z[i] == kMinusInfinity ? z[i] : z[i] - top, e = expf(below);
    sum += e;
    weighted += times_or_zero(e, below);
  }
  sum = block_sum(sum, of_warps);
  weighted = block_sum(weighted, of_warps);
  if (threadIdx.x == 0) {
    parts.top[blockIdx.x] = top;
    parts.sum[blockIdx.x] = sum;
    parts.weighted[blockIdx.x] = weighted;
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads) merge_pieces(const LoadSignalCall call, const Parts parts) {
  __shared__ SharedArray<float, kWarps> of_warps;
  const int64_t row = blockIdx.x, token = call.token[row];
  const float *tops = parts.top + row * parts.pieces, *sums = parts.sum + row * parts.pieces;
  const float* all_weighted = parts.weighted + row * parts.pieces;
  float top = kMinusInfinity;
  for (int piece = static_cast<int>(threadIdx.x); piece < parts.pieces; piece += kThreads) {
    top = fmaxf(top, tops[piece]);
  }
  top = block_max(top, of_warps);
  float sum = 0.0f, weighted = 0.0f;
  for (int piece = static_cast<int>(threadIdx.x); piece < parts.pieces; piece += kThreads) {
    if (sums[piece] == 0.0f) continue;  // no logit above minus infinity
    const float below = tops[piece] - top, factor = expf(below);
    sum += sums[piece] * factor;
    weighted += factor * all_weighted[piece] + times_or_zero(factor * sums[piece], below);
  }
  sum = block_sum(sum, of_warps);
  weighted = block_sum(weighted, of_warps);
  if (threadIdx.x != 0) return;

  const bool is_token = token >= 0 && token < call.vocabulary;
  const float z = is_token ? to_float(static_cast<const E*>(call.logits)[row * call.vocabulary + token]) : 0.0f;
  const float nothing = is_token && sum != 0.0f ? 0.0f : __builtin_nanf("");
  const float log_sum = logf(sum) + nothing, w = call.surprisal_weight;
  const float surprisal = log_sum - (z - top), entropy = log_sum - weighted / sum;
  const float load = w * knot_rank(surprisal, call.surprisal_knots, call.knots) +
                     (1.0f - w) * knot_rank(entropy, call.entropy_knots, call.knots);
  call.surprisal[row] = surprisal;
  call.entropy[row] = entropy;
  call.load[row] = load;
  call.scale[row] = scale_of_load(load, call.scale_knots, call.scale_knots_count);
}

int64_t pieces_of(const LoadSignalCall& call) { return std::max<int64_t>(1, (call.vocabulary + kPiece - 1) / kPiece); }

// Whether there are knots to read, and no more blocks than can be counted.
bool fits(const LoadSignalCall& call) {
  using In = ops::LoadSignal::In;
  const int64_t most = std::numeric_limits<int>::max();
  return call.batch >= 0 && call.batch <= most && call.vocabulary >= 0 && pieces_of(call) <= most &&
         call.batch * pieces_of(call) <= most && call.knots >= In::specs[In::surprisal_knots].least &&
         call.scale_knots_count >= In::specs[In::scale_knots].least;
}

// The parts' places in a workspace, and its bytes.
size_t lay_out(const LoadSignalCall& call, void* workspace, Parts& parts) {
  parts.pieces = static_cast<int>(pieces_of(call));
  const size_t count = static_cast<size_t>(call.batch) * parts.pieces;
  parts.top = static_cast<float*>(workspace);
  if (workspace) {
    parts.sum = parts.top + count;
    parts.weighted = parts.sum + count;
  }
  return 3 * count * sizeof(float);
}

}  // namespace

size_t load_signal_workspace(const LoadSignalCall& call) {
  if (!fits(call)) return 0;
  Parts parts;
  return lay_out(call, nullptr, parts);
}

cudaError_t load_signal(const LoadSignalCall& call, void* workspace, cudaStream_t stream) {
  if (!fits(call)) return cudaErrorInvalidValue;
  if (call.batch == 0) return cudaSuccess;
  Parts parts;
  lay_out(call, workspace, parts);
  return with_element(call.element, [&](auto* of) {
    using E = std::remove_pointer_t<decltype(of)>;
    const cudaError_t error = launch(sum_pieces<E>, call.batch * parts.pieces, kThreads, stream, call, parts);
    return error == cudaSuccess ? launch(merge_pieces<E>, call.batch, kThreads, stream, call, parts) : error;
  });
}

}  // namespace clada::cuda
