// Sums of rows of 4-bit codes, each times a factor that is rounded to 8 bits: half of the instructions that 16 bits
// take, for processors whose fastest integer products are of bytes.
//
// Of two rows the bytes of codes take turns, and each of a byte's halves is multiplied with its row's factor times
// scale; sums of all pairs stay within 16 bits. A factor is rounded to the 254th part of the largest of its rows'.
#pragma once
#include "scaled_factors.h"

namespace clada {

constexpr int kByteSumRows = 16;  // rows added at a time, at most: 16 * 8 * 127 is less than 2^15

// As add_stripe of quantized_row_sums.h.
template <class I, bool kWhole>
void add_byte_stripe(const PackedRows<I, 4>& rows, const uint8_t* const* some, const uint8_t* const* next, int pairs,
                     const float* factors, int64_t stripe, float* y) {
  using Rows = PackedRows<I, 4>;
  using V = typename I::V;
  using Ints = typename I::Ints;
  const int lanes = rows.lanes(stripe);
  ScaledFactors<I, kByteSumRows> scaled;
  scaled.template take<kWhole>(rows, some, next, 2 * pairs, factors, stripe, 127.0f);
  // For each pair of rows the factors of the lanes that interleaved bytes have, see I::interleave.
  Ints coefficients[kByteSumRows / 2][2];
  Ints starts[2] = {I::zero_ints(), I::zero_ints()};
  for (int p = 0; p < pairs; ++p) {
    I::byte_factors(scaled.integer(2 * p), scaled.integer(2 * p + 1), coefficients[p]);
    // Stored values are the code + 8.
    for (int half = 0; half < 2; ++half) starts[half] = I::subtract_eights(starts[half], coefficients[p][half]);
  }
  for (int64_t k = 0; k < Rows::kVectors; ++k) {
    Ints low[2] = {starts[0], starts[1]}, high[2] = {starts[0], starts[1]};
    for (int p = 0; p < pairs; ++p) {
      const Ints even = Rows::template vector<kWhole>(some[2 * p], next[2 * p], stripe, k, lanes);
      const Ints odd = Rows::template vector<kWhole>(some[2 * p + 1], next[2 * p + 1], stripe, k, lanes);
      Ints bytes[2];
      I::interleave(even, odd, bytes);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        low[half] = I::add_byte_pairs(low[half], I::low_nibbles(bytes[half]), coefficients[p][half]);
        high[half] = I::add_byte_pairs(high[half], I::high_nibbles(bytes[half]), coefficients[p][half]);
      }
    }
    // In the order of PackedRows::place.
    V sums[Rows::kSteps];
    I::by_byte(low, sums);
    I::by_byte(high, sums + Rows::kSteps / 2);
    float* out = y + stripe * Rows::kSpan + k * Rows::kSteps * I::kWidth;
#pragma GCC unroll 8
    for (int64_t i = 0; i < Rows::kSteps; ++i) {
      I::store(out + i * I::kWidth, I::fma(sums[i], scaled.unit, I::load(out + i * I::kWidth)));
    }
  }
}

}  // namespace clada
