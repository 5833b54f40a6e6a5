// Factors of some rows times their scales in a stripe, and what rounds them to integers.
#pragma once
#include "packed_rows.h"

namespace clada {

template <class I, int kRows>
struct ScaledFactors {
  using V = typename I::V;
  V values[kRows];
  V inverse;  // values times this lie within the limit
  V unit;     // what an integer stands for; NaN where a value is not finite, so that it shows

  // Of rows [0, count), whose integers are to be of -limit to limit; scales of `next` are prefetched.
  template <bool kWhole, int kBits>
  void take(const PackedRows<I, kBits>& rows, const uint8_t* const* some, const uint8_t* const* next, int count,
            const float* factors, int64_t stripe, float limit) {
    const int lanes = rows.lanes(stripe);
    V top = I::zero(), zeros = I::zero();
    for (int r = 0; r < count; ++r) {
      values[r] = I::mul(I::all(factors[r]), rows.template scales<kWhole>(some[r], next[r], stripe, lanes));
      top = I::max(top, I::abs(values[r]));
      zeros = I::fma(I::zero(), values[r], zeros);
    }
    inverse = I::select(I::less(I::all(0x1p-100f), top), I::div(I::all(limit), top), I::zero());
    unit = I::fma(top, I::all(1 / limit), zeros);
  }

  // A row's, not rounded yet.
  V integer(int row) const { return I::mul(values[row], inverse); }
};

}  // namespace clada
