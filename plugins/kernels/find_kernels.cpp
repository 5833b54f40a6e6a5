#include <cstring>

#include "kernels.h"

namespace clada {

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx512Kernels, kAvx2Kernels;
#endif

const Kernels* find_kernels(const char* instructions) {
  struct Choice {
    const Kernels* kernels;
    bool supported;
  };
  const Choice best_first[] = {
#if defined(__x86_64__)
      {&kAvx512Kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {&kAvx2Kernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
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
