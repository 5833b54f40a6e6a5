#include "instruction_set.h"
#include "simd_avx2.h"

namespace clada {

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = kernels_for<Avx2>("avx2");

}  // namespace clada
