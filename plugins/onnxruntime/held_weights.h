// Weights in another form than the model's, made when the model is loaded.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "ort.h"

namespace clada {

struct FreeMemory {
  void operator()(void* memory) const;
};
using HeldWeights = std::unique_ptr<void, FreeMemory>;

// A node's input that has to be constant, and the memory it lies in.
struct ConstantInput {
  std::vector<int64_t> shape;
  const void* data;
  size_t count, bytes;
};

// Throws Ort::Exception, with `why` it is needed, when the input is not constant.
ConstantInput constant_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, size_t element_bytes,
                             const char* why);

// Whether an input is of bfloat16.
bool is_bfloat16(const Ort::ConstKernelInfo& info, size_t index);

// Memory at a multiple of 64 bytes, of huge pages where the system has them.
HeldWeights hold(size_t bytes);

// Lets the system take back the memory of an input that will not be read again, and stays readable: it is a part of the
// model's file.
void release(const ConstantInput& input);

// Rounds a constant float32 input to bfloat16 and releases the original.
HeldWeights compact_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, const Kernels& kernels);

}  // namespace clada
