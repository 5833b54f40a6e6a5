// A token's input as products with quantized weights take it: 16 bits in two bytes, with a scale for each 32 values.
//
// 15 bits lose less than float16 weights do, and so move no neuron across its threshold; 7 bits would.
#pragma once
#include "convert.h"
#include "packed_rows.h"

namespace clada {

// value = scale * (256 * high + low); for each stripe vectors in the order of a row's.
template <class I>
struct QuantizedInput {
  uint32_t *high, *low;  // [stripes][32 / 4][kWidth], four bytes each
  float* scales;         // [stripes][kWidth]
  int32_t* sums;         // [stripes][kWidth], of 256 * high + low over the group

  static size_t bytes(int64_t padded_width) { return static_cast<size_t>(padded_width) * 2 + padded_width / 32 * 8; }
  static QuantizedInput at(void* memory, int64_t padded_width) {
    uint32_t* words = static_cast<uint32_t*>(memory);
    float* scales = reinterpret_cast<float*>(words + padded_width / 2);
    return {words, words + padded_width / 4, scales, reinterpret_cast<int32_t*>(scales + padded_width / 32)};
  }
};

// The values of a group that are multiplied with a word of a row's codes, in the order in which those lie there.
template <int kBits>
static inline uint32_t four_bytes(const int32_t* group, int64_t word) {
  constexpr int64_t kStep = kBits == 4 ? 2 : 1;
  group += kBits == 4 ? word / 2 * 8 + word % 2 : word * 4;
  const auto byte = [&](int64_t i) { return static_cast<uint32_t>(group[i * kStep] & 0xff) << (8 * i); };
  return byte(0) | byte(1) | byte(2) | byte(3);
}

// Quantizes x [width]; an x that is not finite makes its group's scale NaN, and with it every product.
template <class I, int kBits>
void quantize_input(const float* x, int64_t width, int64_t padded_width, const QuantizedInput<I>& out) {
  using V = typename I::V;
  const V limit = I::all(127.0f), minus_limit = I::all(-127.0f);
  for (int64_t group = 0; group < padded_width / kGroupWeights; ++group) {
    const int64_t stripe = group / I::kWidth, lane = group % I::kWidth;
    const float* from = x + group * kGroupWeights;
    V top = I::zero(), zeros = I::zero();
    if (group < width / kGroupWeights) {
      for (int64_t k = 0; k < kGroupWeights; k += I::kWidth) {
        top = I::max(top, I::abs(I::load(from + k)));
        zeros = I::fma(I::zero(), I::load(from + k), zeros);
      }
    }
    const float peak = I::largest(top);
    const bool finite = I::sum(zeros) == 0, usable = finite && peak > 0x1p-100f;
    out.scales[group] = finite ? peak / (127 * 256) : __builtin_nanf("");
    alignas(64) int32_t high[kGroupWeights] = {}, low[kGroupWeights] = {};
    const V inverse = I::all(usable ? 127 * 256 / peak : 0.0f);
    V sums = I::zero();
    for (int64_t k = 0; usable && k < kGroupWeights; k += I::kWidth) {
      const V value = I::round(I::mul(I::load(from + k), inverse));
      const V upper = I::round(I::mul(value, I::all(1.0f / 256)));
      // A half may be rounded to a low byte of 128 in magnitude; a unit less does not show.
      const V lower = I::max(minus_limit, I::min(limit, I::fma(upper, I::all(-256.0f), value)));
      I::store_whole(high + k, upper);
      I::store_whole(low + k, lower);
      sums = I::add(sums, I::fma(upper, I::all(256.0f), lower));
    }
    for (int64_t word = 0; word < kGroupWeights / 4; ++word) {
      const int64_t at = (stripe * kGroupWeights / 4 + word) * I::kWidth + lane;
      out.high[at] = four_bytes<kBits>(high, word);
      out.low[at] = four_bytes<kBits>(low, word);
    }
    out.sums[group] = static_cast<int32_t>(I::sum(sums));
  }
}

}  // namespace clada
