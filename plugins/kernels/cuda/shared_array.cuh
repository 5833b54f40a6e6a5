// Shared memory of a fixed size, declared as `__shared__ SharedArray<float, 256> sums;`. It is a type of its own, and
// included as <shared_array.cuh>, so that tests may put one in its place that notices races.
#pragma once

namespace clada::cuda {

template <class T, int kCount>
struct SharedArray {
  T values[kCount];

  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

}  // namespace clada::cuda
