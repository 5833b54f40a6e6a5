// The C interface of the CUDA kernels over the CPU's, with host pointers, and the faults that checks must find.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "load_signal.h"
#include "simd_portable.h"
#include "sparse_ffn.h"

namespace {

void run(void*, size_t count, void (*task)(void*, size_t), void* data) {
  for (size_t i = 0; i < count; ++i) task(data, i);
}

int calls = 0;

constexpr clada::QuantizedKernels kQuantized = clada::quantized_kernels_for<clada::Portable>();

// The CPU's kernels want quantised weights packed.
void compute(const clada::SparseFfnCall& call, void* workspace) {
  if (call.quantization.bits == 0) return clada::sparse_ffn<clada::Portable>(call, workspace, {nullptr, run});
  const std::unique_ptr<void, void (*)(void*)> packed(aligned_alloc(64, kQuantized.packed_bytes(call)), free);
  kQuantized.pack(call, packed.get(), {nullptr, run});
  kQuantized.ffn(call, packed.get(), workspace, {nullptr, run});
}

}  // namespace

extern "C" {

// What goes wrong: nothing, or one of the cases below.
int clada_fault = 0;

size_t clada_cuda_sparse_ffn_workspace(const clada::SparseFfnCall* call) {
  if (call->quantization.bits != 0) return kQuantized.ffn_workspace(*call);
  return clada::sparse_ffn_workspace<clada::Portable>(*call);
}

int clada_cuda_sparse_ffn(const clada::SparseFfnCall* call, void* workspace, const void* products, void*) {
  if ((call->batch * call->sequence > 8) != (products != nullptr)) return 1;
  compute(*call, workspace);
  const size_t element = element_size(call->element);
  char* y = static_cast<char*>(call->y);
  char* end = y + static_cast<size_t>(call->batch * call->sequence * call->width) * element;
  switch (clada_fault) {
    case 1:  // a wrong value
      memcpy(y, y + element, element);
      break;
    case 2:  // one neuron too many
      ++call->active[0];
      break;
    case 3:  // written past the end
      *end = 0;
      break;
    case 4:  // another result each time, by one bit
      y[0] ^= static_cast<char>(++calls % 2);
      break;
    case 5:  // an element not written
      memset(end - element, 0xff, element);
      break;
    case 6:  // a launch that fails
      return 2;
    case 7:  // kernels that were compiled for other cards
      return 209;
  }
  return 0;
}

size_t clada_cuda_load_signal_workspace(const clada::LoadSignalCall*) { return 0; }

int clada_cuda_load_signal(const clada::LoadSignalCall* call, void*, void*) {
  clada::load_signal<clada::Portable>(*call);
  return 0;
}

const char* clada_cuda_error_text(int) { return "out of memory"; }

int64_t clada_cuda_rowwise_tokens() { return 8; }

}  // extern "C"
