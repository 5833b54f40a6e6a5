#include "quantized_kernels.h"
#include "simd_vnni.h"

namespace clada {

extern const QuantizedKernels kAvxVnniKernels;
const QuantizedKernels kAvxVnniKernels = quantized_kernels_for<AvxVnni>();

}  // namespace clada
