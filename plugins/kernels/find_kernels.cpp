#include <cstring>

#include "kernels.h"

namespace clada {

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx512Kernels, kAvx2Kernels;
extern const QuantizedKernels kAvx512VnniKernels, kAvxVnniKernels;

// The same kernels with others for quantized weights.
static Kernels with_products_of_bytes(const char* instructions, Kernels kernels, const QuantizedKernels& quantized) {
  kernels.instructions = instructions;
  kernels.quantized = quantized;
  return kernels;
}
#endif

const Kernels* find_kernels(const char* instructions) {
  struct Choice {
    const Kernels* kernels;
    bool supported;
  };
#if defined(__x86_64__)
  static const Kernels avx512_vnni = with_products_of_bytes("avx512_vnni", kAvx512Kernels, kAvx512VnniKernels);
  static const Kernels avx_vnni = with_products_of_bytes("avx_vnni", kAvx2Kernels, kAvxVnniKernels);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const Choice best_first[] = {
#if defined(__x86_64__)
      {&avx512_vnni, avx512 && __builtin_cpu_supports("avx512vnni")},
      {&kAvx512Kernels, avx512},
      {&avx_vnni, avx2 && __builtin_cpu_supports("avxvnni")},
      {&kAvx2Kernels, avx2},
#endif
      {&kPortableKernels, true},
  };
  for (const Choice& choice : best_first) {
    if (*instructions && strcmp(instructions, choice.kernels->instructions) != 0) continue;
    if (choice.supported) return choice.kernels;
    if (*instructions) return nullptr;
  }
  return nullptr;
}

}  // namespace clada
