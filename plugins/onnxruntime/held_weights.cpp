#include "held_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace clada {

void FreeMemory::operator()(void* memory) const { free(memory); }

// Rows are read in no order that a table of small pages could follow. What does not fill a huge page is left to small
// ones, so that no memory is taken that is not used.
HeldWeights hold(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  const size_t whole = std::max((bytes + kHugePage - 1) / kHugePage, size_t{1}) * kHugePage;
  void* memory = aligned_alloc(kHugePage, whole);
  if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return HeldWeights(memory);
}

// MADV_PAGEOUT drops no content: pages of a mapped file are read anew if they are needed, others stay.
void release(const ConstantInput& input) {
#ifdef MADV_PAGEOUT
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t data = reinterpret_cast<uintptr_t>(input.data);
  const uintptr_t first = (data + page - 1) / page * page, last = (data + input.bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);
#endif
}

ConstantInput constant_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, size_t element_bytes,
                             const char* why) {
  int is_constant = 0;
  const Ort::ConstValue value = info.GetTensorConstantInput(index, &is_constant);
  if (!is_constant) {
    throw Ort::Exception(std::string(why) + " needs constant weights, and " + name + " is not constant",
                         ORT_INVALID_ARGUMENT);
  }
  const auto shape = value.GetTensorTypeAndShapeInfo();
  const size_t count = shape.GetElementCount();
  return {shape.GetShape(), value.GetTensorRawData(), count, count * element_bytes};
}

bool is_bfloat16(const Ort::ConstKernelInfo& info, size_t index) {
  const auto type = info.GetInputTypeInfo(index).GetTensorTypeAndShapeInfo().GetElementType();
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
}

HeldWeights compact_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, const Kernels& kernels) {
  const ConstantInput input = constant_input(info, index, name, sizeof(float), "clada.weights=bfloat16");
  HeldWeights weights = hold(input.count * sizeof(uint16_t));
  kernels.to_bfloat16(static_cast<const float*>(input.data), static_cast<uint16_t*>(weights.get()),
                      static_cast<int64_t>(input.count));
  release(input);
  return weights;
}

}  // namespace clada
