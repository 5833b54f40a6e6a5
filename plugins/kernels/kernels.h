// The CPU kernels of the `clada` ops, free of any framework: raw pointers, sizes and a parallel-for.
#pragma once
#include <cstddef>
#include <cstdint>

#include "calls.h"

namespace clada {

// Runs task(data, 0) ... task(data, count - 1), in any order, on the caller's threads, and returns when all are done.
struct ParallelFor {
  void* pool;
  void (*run)(void* pool, size_t count, void (*task)(void* data, size_t index), void* data);
};

// The kernels for quantized weights, which each instruction set wants in an order of its own.
struct QuantizedKernels {
  // Bytes of a call's packed weights, to lie at a multiple of 64.
  size_t (*packed_ffn_bytes)(const SparseFfnCall&);
  // Packs a call's weights and scales.
  void (*pack_ffn)(const SparseFfnCall&, void* packed, const ParallelFor&);
  // As Kernels::sparse_ffn_workspace and Kernels::sparse_ffn; of w_up is read only whether there is one.
  size_t (*ffn_workspace)(const SparseFfnCall&);
  void (*ffn)(const SparseFfnCall&, const void* packed, void* workspace, const ParallelFor&);
  // The same for SparseLinear; packed, w and s of a call are not read.
  size_t (*packed_linear_bytes)(const SparseLinearCall&);
  void (*pack_linear)(const SparseLinearCall&, void* packed, const ParallelFor&);
  size_t (*linear_workspace)(const SparseLinearCall&);
  void (*linear)(const SparseLinearCall&, const void* packed, void* workspace, const ParallelFor&);
};

// The kernels for one instruction set.
struct Kernels {
  const char* instructions;
  // Bytes that sparse_ffn needs beside its inputs and outputs, at any alignment.
  size_t (*sparse_ffn_workspace)(const SparseFfnCall&);
  // Bit-for-bit repeatable, whatever the number of threads.
  void (*sparse_ffn)(const SparseFfnCall&, void* workspace, const ParallelFor&);
  // The same for SparseLinear.
  size_t (*sparse_linear_workspace)(const SparseLinearCall&);
  void (*sparse_linear)(const SparseLinearCall&, void* workspace, const ParallelFor&);
  // The same for CachedAttention.
  size_t (*cached_attention_workspace)(const CachedAttentionCall&);
  void (*cached_attention)(const CachedAttentionCall&, void* workspace, const ParallelFor&);
  void (*gated_activation)(const GatedActivationCall&, const ParallelFor&);
  // Returns the first row whose token is outside the vocabulary (nothing is written for it), or -1.
  int64_t (*load_signal)(const LoadSignalCall&);
  // Rounds float32 to bfloat16, ties to even.
  void (*to_bfloat16)(const float* from, uint16_t* to, int64_t count);
  // Reads a buffer and returns a value that depends on all of it: what a memory bandwidth is measured with.
  float (*read)(const void* data, size_t bytes);
  QuantizedKernels quantized;
};

// The kernels for an instruction set by name, or for the best one this processor has where the name is empty.
// Null when the name is unknown or the processor lacks the instructions.
const Kernels* find_kernels(const char* instructions);

}  // namespace clada
