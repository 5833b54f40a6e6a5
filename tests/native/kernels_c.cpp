// The kernels as C functions, for tests that call them with memory of their own; work is spread over std::threads.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "kernels.h"

namespace {

void spread(void* pool, size_t count, void (*task)(void*, size_t), void* data) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) task(data, i);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < *static_cast<int*>(pool); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

// All return 0, or -1 where the processor lacks the instructions; load_signal also a bad row's number + 1.
extern "C" int test_sparse_ffn(const char* instructions, int threads, const clada::SparseFfnCall* call) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  if (!kernels) return -1;
  // At an odd address and of exactly the size that was asked for.
  if (call->quantization.bits == 0) {
    std::vector<char> workspace(kernels->sparse_ffn_workspace(*call) + 1);
    kernels->sparse_ffn(*call, workspace.data() + 1, {&threads, spread});
    return 0;
  }
  const clada::QuantizedKernels& quantized = kernels->quantized;
  const std::unique_ptr<void, void (*)(void*)> packed(aligned_alloc(64, quantized.packed_ffn_bytes(*call)), free);
  quantized.pack_ffn(*call, packed.get(), {&threads, spread});
  clada::SparseFfnCall packed_call = *call;
  packed_call.w_in = packed_call.w_out = packed_call.s_in = packed_call.s_up = packed_call.s_out = nullptr;
  std::vector<char> workspace(quantized.ffn_workspace(packed_call) + 1);
  quantized.ffn(packed_call, packed.get(), workspace.data() + 1, {&threads, spread});
  return 0;
}

extern "C" int test_sparse_linear(const char* instructions, int threads, const clada::SparseLinearCall* call) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  if (!kernels) return -1;
  if (call->quantization.bits == 0) {
    std::vector<char> workspace(kernels->sparse_linear_workspace(*call) + 1);
    kernels->sparse_linear(*call, workspace.data() + 1, {&threads, spread});
    return 0;
  }
  const clada::QuantizedKernels& quantized = kernels->quantized;
  const std::unique_ptr<void, void (*)(void*)> packed(aligned_alloc(64, quantized.packed_linear_bytes(*call)), free);
  quantized.pack_linear(*call, packed.get(), {&threads, spread});
  clada::SparseLinearCall packed_call = *call;
  packed_call.w = packed_call.s = nullptr;
  std::vector<char> workspace(quantized.linear_workspace(packed_call) + 1);
  quantized.linear(packed_call, packed.get(), workspace.data() + 1, {&threads, spread});
  return 0;
}

extern "C" int test_cached_attention(const char* instructions, int threads, const clada::CachedAttentionCall* call) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  if (!kernels) return -1;
  std::vector<char> workspace(kernels->cached_attention_workspace(*call) + 1);
  kernels->cached_attention(*call, workspace.data() + 1, {&threads, spread});
  return 0;
}

extern "C" int test_gated_activation(const char* instructions, int threads, const clada::GatedActivationCall* call) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  if (!kernels) return -1;
  kernels->gated_activation(*call, {&threads, spread});
  return 0;
}

extern "C" int test_load_signal(const char* instructions, const clada::LoadSignalCall* call) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  return kernels ? static_cast<int>(kernels->load_signal(*call) + 1) : -1;
}

extern "C" int test_to_bfloat16(const char* instructions, const float* from, uint16_t* to, int64_t count) {
  const clada::Kernels* kernels = clada::find_kernels(instructions);
  if (!kernels) return -1;
  kernels->to_bfloat16(from, to, count);
  return 0;
}
