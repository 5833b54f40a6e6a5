// Arguments of a kernel call, on any device: raw pointers and sizes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "op_table.h"

namespace clada {

enum class Element { kFloat32, kFloat16, kBFloat16 };

static inline size_t element_size(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// How weights are quantized, as in clada/ops/block_quantization.py; bits is 0 where they are not.
struct Quantization {
  int32_t bits, block_size;
};

// One call of SparseGatedFFN, of SparseFFN where w_up is null, or of their quantized variants; names and formulas as in
// clada/ops/sparse_ffn.py and clada/ops/quantized_ffn.py.
struct SparseFfnCall {
  int64_t batch, sequence, width, neurons;  // B, S, D, F
  Activation activation;
  Element element;         // of x, b_in, b_out and y
  Element weight_element;  // of w_in, w_up and w_out, where they are not quantized
  Quantization quantization;
  const void* x;           // [B, S, D]
  const void* w_in;        // [F, D]; w_gate of the gated op; [F, D * bits / 8] bytes where quantized
  const void* w_up;        // [F, D]
  const void* w_out;       // [F, D]; w_down of the gated op
  const void* s_in;        // [F, D / block_size] in float16, null where not quantized: the scales of w_in
  const void* s_up;        // the same of w_up
  const void* s_out;       // the same of w_out
  const void* b_in;        // [F], may be null
  const void* b_out;       // [D], may be null
  const float* threshold;  // [F]
  const float* scale;      // [B, S]
  const uint8_t* pool;     // [B, F], 0 or anything else: a file's booleans need not be 0 and 1
  void* y;                 // [B, S, D]
  int32_t* active;         // [B, S]
  float* score;            // [B, F]
};

// One call of SparseLinear or of its quantized variant; names and formulas as in clada/ops/sparse_linear.py and
// clada/ops/quantized_linear.py.
struct SparseLinearCall {
  int64_t batch, sequence, width, outputs;  // B, S, D, N
  Element element;                          // of x and y
  Element weight_element;                   // of w, where it is not quantized
  Quantization quantization;
  const void* x;           // [B, S, D]
  const void* w;           // [D, N]; [D, N * bits / 8] bytes where quantized
  const void* s;           // [D, N / block_size] in float16, null where not quantized: the scales of w
  const float* threshold;  // [D]
  const float* scale;      // [B, S]
  void* y;                 // [B, S, N]
  int32_t* kept;           // [B, S]
  // On a CPU: whether x times the scales of 4-bit codes may be rounded to 8 bits, where that is faster.
  bool byte_factors = false;
};

constexpr int64_t kMostHeadWidth = 4096;  // of CachedAttention

// One call of CachedAttention; names and formulas as in clada/ops/cached_attention.py.
struct CachedAttentionCall {
  int64_t sequence, heads, kv_heads, width, capacity;  // S, H, K, E, C
  int64_t rotary;                                      // pairs of a head that are turned
  bool interleaved;
  int64_t last;  // the place of the last token
  float scale, softcap;
  int64_t window;   // tokens that one attends to, itself among them; below 0 for all
  Element element;  // of all tensors
  const void* qkv;  // [S, (H + 2 * K) * E]
  const void* cos;  // [S or more, rotary], as is sin
  const void* sin;
  const void *past_key, *past_value;  // [K, C, E]
  void* y;                            // [S, H * E]
  void *present_key, *present_value;  // [K, C, E], which may be past_key and past_value
};

// One call of GatedActivation; names and formulas as in clada/ops/gated_activation.py.
struct GatedActivationCall {
  int64_t tokens, width;  // B * S, F
  Activation activation;
  Element element;
  const void* x;  // [B, S, 2 * F]
  void* y;        // [B, S, F]
};

// One call of LoadSignal; names and formulas as in clada/ops/load_signal.py.
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

}  // namespace clada
