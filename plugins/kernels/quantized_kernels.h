// The kernels for quantized weights for one instruction set.
#pragma once
#include "sparse_ffn.h"
#include "sparse_linear.h"

namespace clada {

template <class I>
constexpr QuantizedKernels quantized_kernels_for() {
  return {packed_ffn_bytes<I>,    pack_ffn<I>,    quantized_ffn_workspace<I>,    quantized_ffn<I>,
          packed_linear_bytes<I>, pack_linear<I>, quantized_linear_workspace<I>, quantized_linear<I>};
}

}  // namespace clada
