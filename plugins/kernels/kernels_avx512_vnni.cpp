#include "quantized_kernels.h"
#include "simd_vnni.h"

namespace clada {

extern const QuantizedKernels kAvx512VnniKernels;
const QuantizedKernels kAvx512VnniKernels = quantized_kernels_for<Avx512Vnni>();

}  // namespace clada
