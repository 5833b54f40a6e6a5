// The part of the CUDA runtime that the kernels' launchers call, products of matrices, and what tests ask for.
#include <cstring>

#include "emulation.h"
#include "launchers.h"

namespace {

template <class E>
float widen(E value) {
  if constexpr (std::is_same_v<E, __half>) return __half2float(value);
  if constexpr (std::is_same_v<E, __nv_bfloat16>) return __bfloat162float(value);
  if constexpr (std::is_same_v<E, float>) return value;
}

template <class E>
E narrow(float value) {
  if constexpr (std::is_same_v<E, __half>) return __float2half_rn(value);
  if constexpr (std::is_same_v<E, __nv_bfloat16>) return __float2bfloat16_rn(value);
  if constexpr (std::is_same_v<E, float>) return value;
}

template <class E>
void multiply(const clada::cuda::Product& product) {
  const E *a = static_cast<const E*>(product.a), *b = static_cast<const E*>(product.b);
  const int64_t b_row = product.transposed_b ? 1 : product.n, b_column = product.transposed_b ? product.k : 1;
  for (int64_t row = 0; row < product.m; ++row) {
    for (int64_t column = 0; column < product.n; ++column) {
      float sum = 0;
      for (int64_t i = 0; i < product.k; ++i) {
        sum += widen(a[row * product.k + i]) * widen(b[i * b_row + column * b_column]);
      }
      static_cast<E*>(product.c)[row * product.c_row + column] = narrow<E>(sum);
    }
  }
}

cudaError_t multiply_any(void*, const clada::cuda::Product& product, cudaStream_t) {
  switch (product.element) {
    case clada::Element::kFloat32:
      multiply<float>(product);
      return cudaSuccess;
    case clada::Element::kFloat16:
      multiply<__half>(product);
      return cudaSuccess;
    case clada::Element::kBFloat16:
      multiply<__nv_bfloat16>(product);
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

const clada::cuda::Products products{nullptr, multiply_any};

}  // namespace

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure  ? cuda_emulation::report.c_str()
         : error == cudaSuccess           ? "no error"
         : error == cudaErrorInvalidValue ? "invalid argument"
                                          : "invalid configuration";
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}

const clada::cuda::Products* cuda_emulation_products() { return &products; }

// 0: blocks and threads run as they are numbered; 1: the other way round; else shuffled by this seed.
void cuda_emulation_order(unsigned seed) { cuda_emulation::order_seed = seed; }

// All launches since the last call, a line each; valid until the next call.
const char* cuda_emulation_launches() {
  static std::string taken;
  taken = std::move(cuda_emulation::launches);
  cuda_emulation::launches.clear();
  return taken.c_str();
}

}  // extern "C"
