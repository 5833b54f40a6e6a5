// Weights in a more compact type than the model's, made when the model is loaded.
#pragma once
#include <cstdint>
#include <memory>

#include "kernels.h"
#include "ort.h"

namespace clada {

struct FreeMemory {
  void operator()(void* memory) const;
};
using CompactWeights = std::unique_ptr<uint16_t, FreeMemory>;

// Rounds a constant float32 input to bfloat16 and lets go of the memory of the original, which stays readable: it is
// a part of the model's file. Throws Ort::Exception when the input is not constant or not float32.
CompactWeights compact_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, const Kernels& kernels);

}  // namespace clada
