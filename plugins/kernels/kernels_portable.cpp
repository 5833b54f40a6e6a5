#include "instruction_set.h"
#include "simd_portable.h"

namespace clada {

extern const Kernels kPortableKernels;
const Kernels kPortableKernels = kernels_for<Portable>("portable");

}  // namespace clada
