#include "instruction_set.h"
#include "simd_avx512.h"

namespace clada {

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = kernels_for<Avx512>("avx512");

}  // namespace clada
