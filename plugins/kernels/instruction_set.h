// All kernels for one instruction set; included once, by the file that is compiled for it.
#pragma once
#include "cached_attention.h"
#include "gated_activation.h"
#include "load_signal.h"
#include "quantized_kernels.h"

namespace clada {

template <class I>
float read(const void* data, size_t bytes) {
  using V = typename I::V;
  // Several streams at a time, as the kernels read rows: one alone does not fill the memory's bandwidth.
  constexpr size_t kStreams = 4, kStep = 2 * I::kWidth;
  const float* from = static_cast<const float*>(data);
  const size_t each = bytes / sizeof(float) / kStreams;
  V sums[2 * kStreams];
  for (V& sum : sums) sum = I::zero();
  for (size_t k = 0; k + kStep <= each; k += kStep) {
#pragma GCC unroll 8
    for (size_t s = 0; s < 2 * kStreams; ++s) {
      sums[s] = I::add(sums[s], I::load(from + s / 2 * each + k + s % 2 * I::kWidth));
    }
  }
  V total = I::zero();
  for (V& sum : sums) total = I::add(total, sum);
  return I::sum(total);
}

template <class I>
constexpr Kernels kernels_for(const char* instructions) {
  return {instructions,
          sparse_ffn_workspace<I>,
          sparse_ffn<I>,
          sparse_linear_workspace<I>,
          sparse_linear<I>,
          cached_attention_workspace<I>,
          cached_attention<I>,
          gated_activation<I>,
          load_signal<I>,
          to_bfloat16<I>,
          read<I>,
          quantized_kernels_for<I>()};
}

}  // namespace clada
