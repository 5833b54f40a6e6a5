// Small kernels, right ones and wrong ones, that show what the emulation computes and what it finds. Each is called as
// extern "C" int run_NAME(float* data): one block or a few over an array of floats.
#include "emulation.h"
#include "shared_array.cuh"

using clada::cuda::SharedArray;

namespace {

constexpr int kThreads = 64;
constexpr unsigned kWhole = 0xffffffffu;

// data[0] = the sum of data[1 ... 64].
__global__ void block_sum(float* data) {
  __shared__ SharedArray<float, 2> of_warps;
  float sum = data[1 + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(kWhole, sum, distance);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) data[0] = of_warps[0] + of_warps[1];
}

// Moves the positive ones of data[0 ... 31] to the front.
__global__ void compact(float* data) {
  const float value = data[threadIdx.x];
  const unsigned positive = __ballot_sync(kWhole, value > 0);
  if (value > 0) data[__popc(positive & ((1u << threadIdx.x) - 1))] = value;
}

// Every kind of shuffle, over the eight lanes 8 ... 15 alone: data[16 * kind + lane] = what the lane gets.
__global__ void shuffles(float* data) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 8 || lane > 15) return;
  const unsigned mask = 0xff00;
  const float value = data[lane];
  data[16 + lane] = __shfl_sync(mask, value, 2, 8);
  data[32 + lane] = __shfl_xor_sync(mask, value, 3, 8);
  data[48 + lane] = __shfl_up_sync(mask, value, 3, 8);
  data[64 + lane] = __shfl_down_sync(mask, value, 3, 8);
}

// data[0] = the number of blocks, written by the last of them; data[1] counts.
__global__ void last_block(float* data) {
  __shared__ SharedArray<int, 1> is_last;
  unsigned* ticket = reinterpret_cast<unsigned*>(data + 1);
  data[2 + blockIdx.x] = 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += data[2 + i];
  data[0] = sum;
}

// data[i] = data[i ^ 1], rounded to float16 and bfloat16, by way of shared memory that only the warp uses.
__global__ void swap_neighbors(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  shared[threadIdx.x] = __half2float(__float2half_rn(data[threadIdx.x]));
  __syncwarp();
  data[threadIdx.x] = __bfloat162float(__float2bfloat16_rn(shared[threadIdx.x ^ 1]));
}

__global__ void missing_barrier(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  shared[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// A shuffle brings lanes together, but orders none of their accesses.
__global__ void missing_syncwarp(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  shared[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = __shfl_sync(kWhole, data[threadIdx.x], 0);
  data[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// The second round writes what another thread may still be reading in the first.
__global__ void missing_second_barrier(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  }
}

__global__ void two_writers(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  shared[threadIdx.x / 2] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = shared[threadIdx.x / 2];
}

__global__ void unwritten_shared(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  if (threadIdx.x != 5) shared[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = shared[threadIdx.x];
}

__global__ void past_shared(float* data) {
  __shared__ SharedArray<float, kThreads> shared;
  shared[threadIdx.x + 1] = data[threadIdx.x];
}

__global__ void divergent_barrier(float* data) {
  if (data[threadIdx.x] > 0) __syncthreads();
  data[threadIdx.x] = 1;
}

__global__ void two_barriers(float* data) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    data[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void exited_lane(float* data) {
  if (threadIdx.x == 3) return;
  data[threadIdx.x] = __shfl_xor_sync(kWhole, data[threadIdx.x], 1);
}

__global__ void lane_at_barrier(float* data) {
  if (threadIdx.x != 3) data[threadIdx.x] = __shfl_xor_sync(kWhole, data[threadIdx.x], 1);
  __syncthreads();
}

__global__ void not_in_mask(float* data) { data[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, data[threadIdx.x], 1); }

__global__ void asks_outside_mask(float* data) {
  if (threadIdx.x < 16) data[threadIdx.x] = __shfl_sync(0x0000ffffu, data[threadIdx.x], 20);
}

// Which block writes last is left to chance.
__global__ void race_of_blocks(float* data) {
  if (threadIdx.x == 0) data[0] = static_cast<float>(blockIdx.x);
}

__global__ void past_the_end(float* data) { data[threadIdx.x + 1] = 1; }

__global__ void read_past_the_end(float* data) { data[threadIdx.x] = 0 * data[threadIdx.x + 1]; }

__global__ void misaligned_vector(float* data) {
  const float4 four = *reinterpret_cast<const float4*>(data + 1);
  data[0] = four.x;
}

__global__ void too_many_threads(float*) {}

int run(void (*kernel)(float*), unsigned blocks, unsigned threads, float* data) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  return cudaLaunchKernelEx(&config, kernel, data);
}

}  // namespace

#define SAMPLE(kernel, blocks, threads) \
  extern "C" int run_##kernel(float* data) { return run(kernel, blocks, threads, data); }

SAMPLE(block_sum, 1, kThreads)
SAMPLE(compact, 1, 32)
SAMPLE(shuffles, 1, 32)
SAMPLE(last_block, 5, kThreads)
SAMPLE(swap_neighbors, 1, kThreads)
SAMPLE(missing_barrier, 1, kThreads)
SAMPLE(missing_syncwarp, 1, kThreads)
SAMPLE(missing_second_barrier, 1, kThreads)
SAMPLE(two_writers, 1, kThreads)
SAMPLE(unwritten_shared, 1, kThreads)
SAMPLE(past_shared, 1, kThreads)
SAMPLE(divergent_barrier, 1, kThreads)
SAMPLE(two_barriers, 1, kThreads)
SAMPLE(exited_lane, 2, kThreads)
SAMPLE(lane_at_barrier, 1, kThreads)
SAMPLE(not_in_mask, 1, kThreads)
SAMPLE(asks_outside_mask, 1, kThreads)
SAMPLE(race_of_blocks, 3, kThreads)
SAMPLE(past_the_end, 1, kThreads)
SAMPLE(read_past_the_end, 1, kThreads)
SAMPLE(misaligned_vector, 1, 1)
SAMPLE(too_many_threads, 1, 1025)
