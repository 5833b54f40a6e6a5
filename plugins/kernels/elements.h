// The 16-bit floating-point types as they lie in memory.
#pragma once
#include <cstdint>

namespace clada {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

}  // namespace clada
