// Built-ins of nvcc for a host compiler: included before every source (-include), after CUDA's own headers, which bring
// the vector and half types.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "grid.h"

// One block runs at a time.
#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
// Ours keeps the types of a kernel's parameters.
#define cudaLaunchKernelEx cuda_emulation::launch_kernel

namespace cuda_emulation {

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters(arguments...);
  return run_grid(config->gridDim, config->blockDim, reinterpret_cast<const void*>(kernel),
                  [&] { std::apply(kernel, parameters); });
}

// The value that lane `source` of the warp brings.
template <class T>
T exchange(const char* name, unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet({name, mask, bits, source, false, site}).value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace cuda_emulation

inline void __syncthreads(cuda_emulation::Site site = cuda_emulation::here()) { cuda_emulation::wait_for_block(site); }

inline void __syncwarp(unsigned mask = ~0u, cuda_emulation::Site site = cuda_emulation::here()) {
  cuda_emulation::meet({"__syncwarp", mask, 0, cuda_emulation::this_lane(), true, site});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_emulation::Site site = cuda_emulation::here()) {
  const uint64_t bit = predicate != 0;
  return cuda_emulation::meet({"__ballot_sync", mask, bit, cuda_emulation::this_lane(), false, site}).ballot;
}

// A warp falls into parts of `width` lanes; a lane whose source is in another part keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, cuda_emulation::Site site = cuda_emulation::here()) {
  const int lane = static_cast<int>(cuda_emulation::this_lane()), first = lane / width * width;
  return cuda_emulation::exchange("__shfl_sync", mask, value, first + (source & (width - 1)), site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 cuda_emulation::Site site = cuda_emulation::here()) {
  const int lane = static_cast<int>(cuda_emulation::this_lane()), source = lane - static_cast<int>(distance);
  return cuda_emulation::exchange("__shfl_up_sync", mask, value, source < lane / width * width ? lane : source, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   cuda_emulation::Site site = cuda_emulation::here()) {
  const int lane = static_cast<int>(cuda_emulation::this_lane()), source = lane + static_cast<int>(distance);
  const bool inside = source < lane / width * width + width;
  return cuda_emulation::exchange("__shfl_down_sync", mask, value, inside ? source : lane, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  cuda_emulation::Site site = cuda_emulation::here()) {
  const int lane = static_cast<int>(cuda_emulation::this_lane()), source = lane ^ bits;
  const bool inside = source < lane / width * width + width;
  return cuda_emulation::exchange("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}

// Blocks run one after another and threads until they wait: every access to global memory is atomic and seen at once.
inline void __threadfence() {}

template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
