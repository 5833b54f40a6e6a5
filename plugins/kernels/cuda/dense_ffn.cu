// The products are rounded to the element type, as in the ops' function bodies.
#include <algorithm>
#include <launch.cuh>

#include "activations.cuh"
#include "chunks.h"
#include "dense_ffn.h"
#include "elements.cuh"
#include "reduce.cuh"
#include "weight_products.h"

namespace clada::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A chunk of tokens [first, first + count) of a call.
struct Chunk {
  SparseFfnCall ffn;
  int64_t first, count;
  void* gates;    // [count, F], replaced by h
  void* ups;      // [count, F]
  float* energy;  // [count], ||h||^2
  void* piece;    // of a quantized matrix
};

// Turns a token's products into h and counts what is kept: a block a token.
template <class E>
__global__ void __launch_bounds__(kThreads) select_neurons(const Chunk chunk) {
  __shared__ SharedArray<float, kWarps> floats_of_warps;
  __shared__ SharedArray<int, kWarps> ints_of_warps;
  const SparseFfnCall& ffn = chunk.ffn;
  const int64_t token = chunk.first + blockIdx.x, neurons = ffn.neurons;
  const float scale = ffn.scale[token];
  const uint8_t* pool = ffn.pool + token / ffn.sequence * neurons;
  E* gates = static_cast<E*>(chunk.gates) + blockIdx.x * neurons;
  const E* ups = static_cast<const E*>(chunk.ups) + blockIdx.x * neurons;
  float energy = 0.0f;
  int active = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < neurons; i += kThreads) {  // int: 64 bits spill on sm_90
    float z = to_float(gates[i]);
    if (ffn.b_in) z += to_float(static_cast<const E*>(ffn.b_in)[i]);
    const float a = activate(ffn.activation, z);
    const bool kept = pool[i] != 0 && is_kept(a, scale, ffn.threshold[i]);
    const float h = !kept ? 0.0f : ffn.w_up ? a * to_float(ups[i]) : a;
    gates[i] = from_float<E>(h);
    energy += h * h;
    active += kept;
  }
  energy = block_sum(energy, floats_of_warps);
  active = block_sum(active, ints_of_warps);
  if (threadIdx.x == 0) {
    chunk.energy[blockIdx.x] = energy;
    ffn.active[token] = active;
  }
}

// Adds the chunk's tokens of one batch row to the scores of kWarp neurons: lanes are neurons, warps take turns at
// tokens.
template <class E>
__global__ void __launch_bounds__(kThreads) add_scores(const Chunk chunk, int first_row, int neuron_blocks) {
  __shared__ SharedArray<float, kThreads> of_warps;
  const SparseFfnCall& ffn = chunk.ffn;
  const int64_t row = first_row + static_cast<int>(blockIdx.x) / neuron_blocks;
  const int64_t neuron = static_cast<int64_t>(static_cast<int>(blockIdx.x) % neuron_blocks) * kWarp + lane_index();
  const int64_t row_first = row * ffn.sequence, row_end = row_first + ffn.sequence, end = chunk.first + chunk.count;
  const int64_t first_token = (row_first > chunk.first ? row_first : chunk.first) - chunk.first;
  const int64_t end_token = (row_end < end ? row_end : end) - chunk.first;
  const E* h = static_cast<const E*>(chunk.gates) + neuron;
  float score = 0.0f;
  if (neuron < ffn.neurons) {
#pragma unroll 4
    for (int64_t t = first_token + warp_index(); t < end_token; t += kWarps) {
      const float value = to_float(h[t * ffn.neurons]), energy = chunk.energy[t];
      if (energy != 0.0f) score += value * value / energy;
    }
  }
  of_warps[static_cast<int>(threadIdx.x)] = score;
  __syncthreads();
  if (warp_index() == 0 && neuron < ffn.neurons) {
    float* out = ffn.score + row * ffn.neurons + neuron;
    float sum = row_first < chunk.first ? *out : 0.0f;  // what chunks before have left
    for (int warp = 0; warp < kWarps; ++warp) sum += of_warps[warp * kWarp + lane_index()];
    *out = sum;
  }
}

// Adds b_out to the tokens' y: a block a token.
template <class E>
__global__ void __launch_bounds__(kThreads) add_bias(const Chunk chunk) {
  E* y = static_cast<E*>(chunk.ffn.y) + (chunk.first + blockIdx.x) * chunk.ffn.width;
  const E* bias = static_cast<const E*>(chunk.ffn.b_out);
  for (int64_t i = threadIdx.x; i < chunk.ffn.width; i += kThreads) {
    y[i] = from_float<E>(to_float(y[i]) + to_float(bias[i]));
  }
}

Matrix matrix_of(const SparseFfnCall& ffn, const void* weights, const void* scales) {
  return {{weights, scales}, ffn.neurons, ffn.width, ffn.element, ffn.quantization};
}

template <class E>
cudaError_t compute_chunk(const Chunk& chunk, const Products& products, cudaStream_t stream) {
  const SparseFfnCall& ffn = chunk.ffn;
  const E* x = static_cast<const E*>(ffn.x) + chunk.first * ffn.width;
  E* y = static_cast<E*>(ffn.y) + chunk.first * ffn.width;
  const int64_t first_row = chunk.first / ffn.sequence, last_row = (chunk.first + chunk.count - 1) / ffn.sequence;
  const int64_t neuron_blocks = (ffn.neurons + kWarp - 1) / kWarp;
  const WeightProducts multiply{products, chunk.piece, stream};
  cudaError_t error = multiply.inward(matrix_of(ffn, ffn.w_in, ffn.s_in), chunk.count, x, chunk.gates);
  if (error == cudaSuccess && ffn.w_up) {
    error = multiply.inward(matrix_of(ffn, ffn.w_up, ffn.s_up), chunk.count, x, chunk.ups);
  }
  if (error == cudaSuccess) error = launch(select_neurons<E>, chunk.count, kThreads, stream, chunk);
  if (error == cudaSuccess) error = multiply.outward(matrix_of(ffn, ffn.w_out, ffn.s_out), chunk.count, chunk.gates, y);
  if (error == cudaSuccess && ffn.b_out) error = launch(add_bias<E>, chunk.count, kThreads, stream, chunk);
  if (error == cudaSuccess && neuron_blocks > 0) {
    error = launch(add_scores<E>, (last_row - first_row + 1) * neuron_blocks, kThreads, stream, chunk, first_row,
                   neuron_blocks);
  }
  return error;
}

}  // namespace

size_t dense_ffn_workspace(const SparseFfnCall& ffn) {
  const int64_t tokens = chunk_tokens(ffn.batch * ffn.sequence);
  const size_t products = padded_bytes(tokens * ffn.neurons, element_size(ffn.element));
  const Matrix matrix = matrix_of(ffn, nullptr, nullptr);
  return (ffn.w_up ? 2 : 1) * products + padded_bytes(tokens, sizeof(float)) +
         std::max(inward_piece_bytes(matrix), outward_piece_bytes(matrix));
}

cudaError_t dense_ffn(const SparseFfnCall& ffn, void* workspace, const Products& products, cudaStream_t stream) {
  const int64_t tokens = ffn.batch * ffn.sequence, each = chunk_tokens(tokens);
  const size_t matrix = padded_bytes(each * ffn.neurons, element_size(ffn.element));
  char* free = static_cast<char*>(workspace);
  Chunk chunk{ffn, 0, 0, free, ffn.w_up ? free + matrix : nullptr, nullptr, nullptr};
  free += (ffn.w_up ? 2 : 1) * matrix;
  chunk.energy = reinterpret_cast<float*>(free);
  chunk.piece = free + padded_bytes(each, sizeof(float));
  return with_element(ffn.element, [&](auto* of) {
    cudaError_t error = cudaSuccess;
    for (; chunk.first < tokens && error == cudaSuccess; chunk.first += each) {
      chunk.count = std::min(each, tokens - chunk.first);
      error = compute_chunk<std::remove_pointer_t<decltype(of)>>(chunk, products, stream);
    }
    return error;
  });
}

}  // namespace clada::cuda
