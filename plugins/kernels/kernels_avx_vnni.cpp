#include "simd_vnni.h"
#include "sparse_ffn.h"

namespace clada {

extern const QuantizedKernels kAvxVnniKernels;
const QuantizedKernels kAvxVnniKernels = quantized_kernels_for<AvxVnni>();

}  // namespace clada
