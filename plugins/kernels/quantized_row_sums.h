// Sums of quantized rows, each times a factor: the counterpart of row_sums.h for plain ones.
//
// Factors times scales are taken in 16 bits, and rows two at a time, so that codes need not be converted.
#pragma once
#include "byte_row_sums.h"
#include "scaled_factors.h"

namespace clada {

constexpr int kSumRows = 8;  // rows added at a time, at most

// Codes of 4 bits are multiplied where they stand in their halves, which spares shifts: what each sum is larger for
// that, in bits.
template <int kBits>
constexpr int places(int sum) {
  // The highest nibble is shifted: its place is a sign's.
  for (int n = 0; kBits == 4 && n < 3; ++n) {
    if (sum == kNibbleOutputs[n] || sum == kNibbleOutputs[n] + 2) return 4 * n;
  }
  return 0;
}

// Adds the products of coefficients with two bytes of two rows: codes of 8 bits, or each two of 4 bits.
template <class I, int kBits>
void add_pairs(typename I::Ints halves, typename I::Ints coefficients, typename I::Ints* sums) {
  if constexpr (kBits == 4) {
    const auto add = [&](int n, typename I::Ints nibbles) {
      sums[kNibbleOutputs[n]] = I::dot_pairs(sums[kNibbleOutputs[n]], coefficients, nibbles);
    };
    add(0, I::template nibbles<0>(halves));
    add(1, I::template nibbles<4>(halves));
    add(2, I::template nibbles<8>(halves));
    add(3, I::template nibbles<12>(halves));
  } else {
    sums[0] = I::dot_pairs(sums[0], coefficients, I::low_bytes(halves));
    sums[1] = I::dot_pairs(sums[1], coefficients, I::high_bytes(halves));
  }
}

// Adds a stripe, kWhole where all its lanes are there, of pairs of rows times their factors to y; the same place of
// `next` is prefetched.
template <class I, int kBits, bool kWhole>
void add_stripe(const PackedRows<I, kBits>& rows, const uint8_t* const* some, const uint8_t* const* next, int pairs,
                const float* factors, int64_t stripe, float* y) {
  using Rows = PackedRows<I, kBits>;
  using V = typename I::V;
  using Ints = typename I::Ints;
  constexpr int kOutputs = 8;  // vectors of outputs that are summed in registers
  constexpr int kVectors = kOutputs / static_cast<int>(Rows::kSteps), kPairs = kSumRows / 2;
  const int lanes = rows.lanes(stripe);
  ScaledFactors<I, kSumRows> scaled;
  scaled.template take<kWhole>(rows, some, next, 2 * pairs, factors, stripe, 32767.0f);
  Ints coefficients[kPairs];
  for (int p = 0; p < pairs; ++p) {
    coefficients[p] = I::pair(scaled.integer(2 * p), scaled.integer(2 * p + 1));
  }
  Ints starts[kOutputs];
  V units[kOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kOutputs; ++i) {
    starts[i] = I::zero_ints();
    if (kBits == 4) {
      // Stored values are the code + 8.
      const Ints offset = I::all_pairs(static_cast<int16_t>(-8 * (1 << places<kBits>(i))));
      for (int p = 0; p < pairs; ++p) starts[i] = I::dot_pairs(starts[i], coefficients[p], offset);
    }
    units[i] = places<kBits>(i) == 0 ? scaled.unit
                                     : I::mul(scaled.unit, I::all(1.0f / static_cast<float>(1 << places<kBits>(i))));
  }
  for (int64_t k = 0; k < kGroupWeights; k += kOutputs) {
    Ints sums[kOutputs];
    for (int i = 0; i < kOutputs; ++i) sums[i] = starts[i];
    for (int p = 0; p < pairs; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = k / Rows::kSteps + v;
        const Ints even = Rows::template vector<kWhole>(some[2 * p], next[2 * p], stripe, at, lanes);
        const Ints odd = Rows::template vector<kWhole>(some[2 * p + 1], next[2 * p + 1], stripe, at, lanes);
        add_pairs<I, kBits>(I::low_halves(even, odd), coefficients[p], sums + v * Rows::kSteps);
        add_pairs<I, kBits>(I::high_halves(even, odd), coefficients[p], sums + v * Rows::kSteps + 2);
      }
    }
    float* out = y + stripe * Rows::kSpan + k * I::kWidth;
#pragma GCC unroll 8
    for (int i = 0; i < kOutputs; ++i) {
      I::store(out + i * I::kWidth, I::fma(I::to_float(sums[i]), units[i], I::load(out + i * I::kWidth)));
    }
  }
}

// y += sum over r of factors[r] * rows[r] in stripes [first, last), of at most kSumRows rows, or kByteSumRows where
// factors are rounded to bytes (kBytes); where their number is odd there is one row more, whose factor is 0.
template <class I, int kBits, bool kBytes = false>
void add_stripes(const PackedRows<I, kBits>& rows, const uint8_t* const* some, const uint8_t* const* next, int count,
                 const float* factors, int64_t first, int64_t last, float* y) {
  const int64_t whole = rows.width / PackedRows<I, kBits>::kSpan;
  const int pairs = (count + 1) / 2;
  const auto add = [&](auto is_whole, int64_t stripe) {
    if constexpr (kBytes) {
      add_byte_stripe<I, is_whole>(rows, some, next, pairs, factors, stripe, y);
    } else {
      add_stripe<I, kBits, is_whole>(rows, some, next, pairs, factors, stripe, y);
    }
  };
  for (int64_t stripe = first; stripe < last; ++stripe) {
    if (stripe < whole) {
      add(std::true_type(), stripe);
    } else {
      add(std::false_type(), stripe);
    }
  }
}

}  // namespace clada
