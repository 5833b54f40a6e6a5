// Rows of a weight matrix [neurons, width]. The kernels read weights only through row(), load() and widen(), so that
// quantised rows are one more type with these members.
//
// A load is always 16 bytes, however many weights they hold: what is on its way to a thread stays packed, in four
// registers, and is widened four at a time when it is used.
#pragma once
#include <cstring>

#include "elements.cuh"

namespace clada::cuda {

template <class E>
struct PlainRows {
  using Row = const E*;
  static constexpr int kWeights = 16 / sizeof(E);  // of a load; a multiple of 4
  const E* data;
  int width;

  __device__ __forceinline__ Row row(int neuron) const { return data + static_cast<int64_t>(neuron) * width; }

  // Weights [column, column + kWeights) of a row, column a multiple of kWeights; zero beyond the end of the row.
  // With kVectors rows start at multiples of 16 bytes and end at one.
  template <bool kVectors>
  __device__ __forceinline__ uint4 load(Row row, int column) const {
    uint4 packed = make_uint4(0, 0, 0, 0);
    if constexpr (kVectors) {
      // Nothing comes back to a weight before the next token: it need not stay in a cache.
      if (column < width) packed = __ldcs(reinterpret_cast<const uint4*>(row + column));
    } else {
      E some[kWeights];
#pragma unroll
      for (int i = 0; i < kWeights; ++i) some[i] = column + i < width ? row[column + i] : from_float<E>(0.0f);
      memcpy(&packed, some, sizeof packed);
    }
    return packed;
  }

  // Weights 4 * four, ..., 4 * four + 3 of a load.
  __device__ __forceinline__ void widen(uint4 packed, int four, float (&weights)[4]) const {
    E some[kWeights];
    memcpy(some, &packed, sizeof packed);
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[i] = to_float(some[4 * four + i]);
  }
};

}  // namespace clada::cuda
