// The CPU kernels of the `clada` ops, free of any framework: raw pointers, sizes and a parallel-for.
#pragma once
#include <cstddef>
#include <cstdint>

#include "op_table.h"

namespace clada {

enum class Element { kFloat32, kFloat16, kBFloat16 };

static inline size_t element_size(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// Runs task(data, 0) ... task(data, count - 1), in any order, on the caller's threads, and returns when all are done.
struct ParallelFor {
  void* pool;
  void (*run)(void* pool, size_t count, void (*task)(void* data, size_t index), void* data);
};

// One call of SparseGatedFFN, or of SparseFFN where w_up is null; names and formulas as in plugins/ops/sparse_ffn.py.
struct SparseFfnCall {
  int64_t batch, sequence, width, neurons;  // B, S, D, F
  Activation activation;
  Element element;         // of x, b_in, b_out and y
  Element weight_element;  // of w_in, w_up and w_out
  const void* x;           // [B, S, D]
  const void* w_in;        // [F, D]; w_gate of the gated op
  const void* w_up;        // [F, D]
  const void* w_out;       // [F, D]; w_down of the gated op
  const void* b_in;        // [F], may be null
  const void* b_out;       // [D], may be null
  const float* threshold;  // [F]
  const float* scale;      // [B, S]
  const bool* pool;        // [B, F]
  void* y;                 // [B, S, D]
  int32_t* active;         // [B, S]
  float* score;            // [B, F]
};

// One call of LoadSignal; names and formulas as in plugins/ops/load_signal.py.
struct LoadSignalCall {
  int64_t batch, vocabulary, knots, scale_knots_count;  // B, V, K, M
  float surprisal_weight;
  Element element;                            // of logits
  const void* logits;                         // [B, V]
  const int64_t* token;                       // [B]
  const float* surprisal_knots;               // [K]
  const float* entropy_knots;                 // [K]
  const float* scale_knots;                   // [M]
  float *scale, *load, *surprisal, *entropy;  // [B] each
};

// The kernels for one instruction set.
struct Kernels {
  const char* instructions;
  // Bytes that sparse_ffn needs beside its inputs and outputs, at any alignment.
  size_t (*sparse_ffn_workspace)(const SparseFfnCall&);
  // Bit-for-bit repeatable, whatever the number of threads.
  void (*sparse_ffn)(const SparseFfnCall&, void* workspace, const ParallelFor&);
  // Returns the first row whose token is outside the vocabulary (nothing is written for it), or -1.
  int64_t (*load_signal)(const LoadSignalCall&);
  // Rounds float32 to bfloat16, ties to even.
  void (*to_bfloat16)(const float* from, uint16_t* to, int64_t count);
  // Reads a buffer and returns a value that depends on all of it: what a memory bandwidth is measured with.
  float (*read)(const void* data, size_t bytes);
};

// The kernels for an instruction set by name, or for the best one this processor has where the name is empty.
// Null when the name is unknown or the processor lacks the instructions.
const Kernels* find_kernels(const char* instructions);

}  // namespace clada
