// The memory that a call is given beside its inputs and outputs.
#pragma once
#include <cstddef>
#include <cstdint>

namespace clada {

constexpr int64_t kLine = 64;  // bytes of a cache line

// A workspace's first cache line.
static inline float* first_line(void* workspace) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(workspace) + kLine - 1) / kLine * kLine);
}

}  // namespace clada
