#include "compact_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace clada {

void FreeMemory::operator()(void* memory) const { free(memory); }

// Memory of huge pages where the system has them: rows are read in no order that a table of small pages could follow.
static void* allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = aligned_alloc(kHugePage, whole);
  if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, whole, MADV_HUGEPAGE);
#endif
  return memory;
}

// Lets the system take back the whole pages of a range whose content will not be read again. MADV_PAGEOUT drops no
// content: pages of a mapped file are read anew if they are needed, others stay.
static void release(const void* data, size_t bytes) {
#ifdef MADV_PAGEOUT
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_PAGEOUT);
#endif
}

CompactWeights compact_input(const Ort::ConstKernelInfo& info, size_t index, const char* name, const Kernels& kernels) {
  int is_constant = 0;
  const Ort::ConstValue input = info.GetTensorConstantInput(index, &is_constant);
  if (!is_constant) {
    throw Ort::Exception(std::string("clada.weights=bfloat16 needs constant weights, and ") + name + " is not constant",
                         ORT_INVALID_ARGUMENT);
  }
  const size_t count = input.GetTensorTypeAndShapeInfo().GetElementCount();
  const float* data = input.GetTensorData<float>();
  CompactWeights weights(static_cast<uint16_t*>(allocate(count * sizeof(uint16_t))));
  kernels.to_bfloat16(data, weights.get(), static_cast<int64_t>(count));
  release(data, count * sizeof(float));
  return weights;
}

}  // namespace clada
