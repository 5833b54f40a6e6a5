// The activation functions; names and formulas as in clada/ops/activations.py.
#pragma once
#include "launchers.h"

namespace clada::cuda {

__device__ __forceinline__ float activate(Activation activation, float z) {
  switch (activation) {
    case Activation::silu:
      return z / (1.0f + expf(-z));
    case Activation::gelu:
      // (1 + erf u) / 2 = erfc(-u) / 2, which does not cancel where z is small
      return 0.5f * z * erfcf(-0.707106781f * z);
    case Activation::gelu_tanh: {
      // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
      const float u = z * fmaf(0.044715f * z, z, 1.0f);
      return z / (1.0f + expf(-1.59576912f * u));
    }
    case Activation::relu:
      return z < 0.0f ? 0.0f : z;  // so that a NaN stays one
  }
  return z;
}

// Whether a value, a neuron's or an input's, is kept for a token. Not `>=`: a NaN is kept, and shows.
__device__ __forceinline__ bool is_kept(float a, float scale, float threshold) {
  return scale >= 0.0f && a != 0.0f && !(fabsf(a) < scale * threshold);
}

}  // namespace clada::cuda
