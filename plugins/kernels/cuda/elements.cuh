// Conversion between float32, the type of all computations, and the element types of tensors.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launchers.h"

namespace clada::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class E>
__device__ __forceinline__ E from_float(float value);
template <>
__device__ __forceinline__ float from_float(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}

// Calls `with` with a null pointer to the C++ type of an element.
template <class With>
cudaError_t with_element(Element element, With with) {
  switch (element) {
    case Element::kFloat32:
      return with(static_cast<float*>(nullptr));
    case Element::kFloat16:
      return with(static_cast<__half*>(nullptr));
    case Element::kBFloat16:
      return with(static_cast<__nv_bfloat16*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

}  // namespace clada::cuda
