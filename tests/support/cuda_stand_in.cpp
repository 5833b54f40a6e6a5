// The C interface of the CUDA kernels over the CPU's, with host pointers, and the faults that checks must find.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "convert.h"
#include "load_signal.h"
#include "quantized_kernels.h"
#include "simd_portable.h"

namespace {

void run(void*, size_t count, void (*task)(void*, size_t), void* data) {
  for (size_t i = 0; i < count; ++i) task(data, i);
}

int calls = 0;

constexpr clada::QuantizedKernels kQuantized = clada::quantized_kernels_for<clada::Portable>();

// The CPU's kernels want quantized weights packed, into whole cache lines.
std::unique_ptr<void, void (*)(void*)> cache_lines(size_t bytes) {
  return {aligned_alloc(64, (bytes + 63) / 64 * 64), free};
}

void compute(const clada::SparseFfnCall& call, void* workspace) {
  if (call.quantization.bits == 0) return clada::sparse_ffn<clada::Portable>(call, workspace, {nullptr, run});
  const auto packed = cache_lines(kQuantized.packed_ffn_bytes(call));
  kQuantized.pack_ffn(call, packed.get(), {nullptr, run});
  kQuantized.ffn(call, packed.get(), workspace, {nullptr, run});
}

// A row of a tensor in float32.
std::vector<float> row_of(clada::Element element, const void* tensor, int64_t row, int64_t width) {
  std::vector<float> values(static_cast<size_t>(clada::padded<clada::Portable>(width)));
  clada::widen<clada::Portable>(element, tensor, row * width, values.data(), width);
  return values;
}

void compute(const clada::SparseLinearCall& call, void* workspace) {
  if (call.quantization.bits != 0) {
    const auto packed = cache_lines(kQuantized.packed_linear_bytes(call));
    kQuantized.pack_linear(call, packed.get(), {nullptr, run});
    return kQuantized.linear(call, packed.get(), workspace, {nullptr, run});
  }
  for (int64_t token = 0; token < call.batch * call.sequence; ++token) {
    const std::vector<float> x = row_of(call.element, call.x, token, call.width);
    std::vector<float> y(static_cast<size_t>(clada::padded<clada::Portable>(call.outputs)));
    call.kept[token] = 0;
    for (int64_t i = 0; i < call.width; ++i) {
      const float scale = call.scale[token];
      if (!(scale >= 0) || x[i] == 0 || std::fabs(x[i]) < scale * call.threshold[i]) continue;
      ++call.kept[token];
      const std::vector<float> w = row_of(call.weight_element, call.w, i, call.outputs);
      for (int64_t k = 0; k < call.outputs; ++k) y[k] += x[i] * w[k];
    }
    clada::narrow<clada::Portable>(y.data(), call.element, call.y, token * call.outputs, call.outputs);
  }
}

}  // namespace

extern "C" {

// Fault to inject: none, or one of the cases below.
int clada_fault = 0;

}  // extern "C"

namespace {

// Result of a call with values y of an element type, and counts, after injecting the present fault.
int with_fault(clada::Element type, void* values, int64_t count, int32_t* counts) {
  const size_t element = element_size(type);
  char* y = static_cast<char*>(values);
  char* end = y + static_cast<size_t>(count) * element;
  switch (clada_fault) {
    case 1:  // a wrong value
      memcpy(y, y + element, element);
      break;
    case 2:  // one too many
      ++counts[0];
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

// Few tokens are computed row by row, and many with products.
bool fits(int64_t tokens, const void* products) { return (tokens > 8) == (products != nullptr); }

}  // namespace

extern "C" {

size_t clada_cuda_sparse_ffn_workspace(const clada::SparseFfnCall* call) {
  if (call->quantization.bits != 0) return kQuantized.ffn_workspace(*call);
  return clada::sparse_ffn_workspace<clada::Portable>(*call);
}

int clada_cuda_sparse_ffn(const clada::SparseFfnCall* call, void* workspace, const void* products, void*) {
  if (!fits(call->batch * call->sequence, products)) return 1;
  compute(*call, workspace);
  return with_fault(call->element, call->y, call->batch * call->sequence * call->width, call->active);
}

size_t clada_cuda_sparse_linear_workspace(const clada::SparseLinearCall* call) {
  return call->quantization.bits != 0 ? kQuantized.linear_workspace(*call) : 0;
}

int clada_cuda_sparse_linear(const clada::SparseLinearCall* call, void* workspace, const void* products, void*) {
  if (!fits(call->batch * call->sequence, products)) return 1;
  compute(*call, workspace);
  return with_fault(call->element, call->y, call->batch * call->sequence * call->outputs, call->kept);
}

size_t clada_cuda_load_signal_workspace(const clada::LoadSignalCall*) { return 0; }

int clada_cuda_load_signal(const clada::LoadSignalCall* call, void*, void*) {
  clada::load_signal<clada::Portable>(*call);
  return 0;
}

const char* clada_cuda_error_text(int) { return "out of memory"; }

int64_t clada_cuda_rowwise_tokens() { return 8; }

}  // extern "C"
