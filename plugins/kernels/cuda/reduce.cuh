// Sums and maxima over the threads of a warp or a block, always in the same order.
#pragma once
#include <shared_array.cuh>

namespace clada::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// The sum over the warp, in all its lanes.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// The largest over the warp, in all its lanes; NaNs are passed over.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

// The sum over the block, in all its threads.
template <class T, int kWarps>
__device__ __forceinline__ T block_sum(T value, SharedArray<T, kWarps>& of_warps) {
  value = warp_sum(value);
  __syncthreads();  // what an earlier call left has been read
  if (lane_index() == 0) of_warps[warp_index()] = value;
  __syncthreads();
  T sum = of_warps[0];
  for (int warp = 1; warp < kWarps; ++warp) sum += of_warps[warp];
  return sum;
}

// The largest over the block, in all its threads.
template <int kWarps>
__device__ __forceinline__ float block_max(float value, SharedArray<float, kWarps>& of_warps) {
  value = warp_max(value);
  __syncthreads();
  if (lane_index() == 0) of_warps[warp_index()] = value;
  __syncthreads();
  float largest = of_warps[0];
  for (int warp = 1; warp < kWarps; ++warp) largest = fmaxf(largest, of_warps[warp]);
  return largest;
}

// The sum over the threads before this one, and over all.
template <int kWarps>
__device__ __forceinline__ unsigned sum_before(unsigned value, SharedArray<unsigned, kWarps>& of_warps,
                                               unsigned& total) {
  unsigned sum = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const unsigned below = __shfl_up_sync(kWholeWarp, sum, distance);
    if (lane_index() >= distance) sum += below;
  }
  __syncthreads();
  if (lane_index() == kWarp - 1) of_warps[warp_index()] = sum;
  __syncthreads();
  total = 0;
  unsigned before = sum - value;
  for (int warp = 0; warp < kWarps; ++warp) {
    const unsigned of_warp = of_warps[warp];
    if (warp < warp_index()) before += of_warp;
    total += of_warp;
  }
  return before;
}

}  // namespace clada::cuda
