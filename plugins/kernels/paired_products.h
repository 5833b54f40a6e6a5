// Products of many tokens with a stripe of quantized rows: pairs of factors with pairs of codes, in 16 bits.
//
// A factor is a value times the scale of its row, so each group of a stripe has its own: they are made for a few tokens
// at a time, and serve the 32 weights of a group.
#pragma once
#include "packed_rows.h"

namespace clada {

constexpr int kPairedTokens = 4;  // of a tile

template <class I, int kBits>
struct PairedProducts {
  using Rows = PackedRows<I, kBits>;
  using V = typename I::V;
  using Ints = typename I::Ints;
  static constexpr int kDepth = 120, kPairs = kDepth / 2;  // inputs at a time: their codes stay near, and share a unit
  static constexpr int kTokens = kPairedTokens, kVectors = 4;  // of a tile of sums: GCC keeps no more in registers
  static constexpr int kStripeVectors = kGroupWeights;         // outputs of a stripe
  static constexpr float kLargest = 32767;

  Ints codes[kPairs][kStripeVectors];
  V scales[kDepth];
  V top;  // the largest scale of each group
  int pairs;

  // Takes the codes of a stripe of `count` rows.
  void take(const Rows& rows, int64_t first, int64_t count, int64_t stripe) {
    if (rows.lanes(stripe) == I::kWidth) {
      take_stripe<true>(rows, first, count, stripe);
    } else {
      take_stripe<false>(rows, first, count, stripe);
    }
  }

  // y [kStripeVectors] of each of kTokens tokens += x times the rows that were taken; y_at(token, vector) is where.
  template <class YAt>
  void multiply(const float* x, int64_t stride, const YAt& y_at) const {
    Ints factors[kTokens][kPairs];
    V units[kTokens];
    for (int t = 0; t < kTokens; ++t) units[t] = make_factors(x + t * stride, factors[t]);
    for (int first = 0; first < kStripeVectors; first += kVectors) {
      Ints sums[kTokens][kVectors];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[t][v] = I::zero_ints();
      }
      for (int p = 0; p < pairs; ++p) {
        Ints some[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) some[v] = codes[p][first + v];
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const Ints factor = factors[t][p];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sums[t][v] = I::dot_pairs(sums[t][v], factor, some[v]);
        }
      }
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          float* y = y_at(t, first + v);
          I::store(y, I::fma(I::to_float(sums[t][v]), units[t], I::load(y)));
        }
      }
    }
  }

 private:
  template <bool kWhole>
  void take_stripe(const Rows& rows, int64_t first, int64_t count, int64_t stripe) {
    const int lanes = rows.lanes(stripe);
    pairs = static_cast<int>((count + 1) / 2);
    top = I::zero();
    for (int p = 0; p < pairs; ++p) {
      // Where a row is missing, its factor is 0.
      const bool both = 2 * p + 1 < count;
      const typename Rows::Row even = rows.row(first + 2 * p), odd = both ? rows.row(first + 2 * p + 1) : even;
      scales[2 * p] = rows.template scales<kWhole>(even, even, stripe, lanes);
      scales[2 * p + 1] = both ? rows.template scales<kWhole>(odd, odd, stripe, lanes) : I::zero();
      top = I::max(top, I::max(I::abs(scales[2 * p]), I::abs(scales[2 * p + 1])));
      for (int k = 0; k < Rows::kVectors; ++k) {
        const Ints a = Rows::template vector<kWhole>(even, even, stripe, k, lanes);
        const Ints b = Rows::template vector<kWhole>(odd, odd, stripe, k, lanes);
        take_halves(I::low_halves(a, b), codes[p] + k * Rows::kSteps);
        take_halves(I::high_halves(a, b), codes[p] + k * Rows::kSteps + 2);
      }
    }
  }

  static void take_halves(Ints halves, Ints* out) {
    if constexpr (kBits == 4) {
      out[kNibbleOutputs[0]] = I::template signed_nibbles<0>(halves);
      out[kNibbleOutputs[1]] = I::template signed_nibbles<4>(halves);
      out[kNibbleOutputs[2]] = I::template signed_nibbles<8>(halves);
      out[kNibbleOutputs[3]] = I::template signed_nibbles<12>(halves);
    } else {
      out[0] = I::low_bytes(halves);
      out[1] = I::high_bytes(halves);
    }
  }

  // The factors of a token's values x, of which there are 2 * pairs, in units that it returns.
  V make_factors(const float* x, Ints* factors) const {
    V most = I::zero(), zeros = I::zero();
    for (int k = 0; k < 2 * pairs; k += I::kWidth) {
      V some = I::zero();
      if (k + I::kWidth <= 2 * pairs) {
        some = I::load(x + k);
      } else {
        alignas(64) float rest[I::kWidth] = {};
        for (int i = 0; k + i < 2 * pairs; ++i) rest[i] = x[k + i];
        some = I::load(rest);
      }
      most = I::max(most, I::abs(some));
      zeros = I::fma(I::zero(), some, zeros);
    }
    const V bound = I::mul(I::all(I::largest(most)), top);
    const V inverse = I::select(I::less(I::all(0x1p-100f), bound), I::div(I::all(kLargest), bound), I::zero());
    for (int p = 0; p < pairs; ++p) {
      const V even = I::mul(I::all(x[2 * p]), I::mul(scales[2 * p], inverse));
      const V odd = I::mul(I::all(x[2 * p + 1]), I::mul(scales[2 * p + 1], inverse));
      factors[p] = I::pair(even, odd);
    }
    // Values that are not finite propagate.
    return I::fma(bound, I::all(1 / kLargest), I::all(I::sum(zeros)));
  }
};

}  // namespace clada
