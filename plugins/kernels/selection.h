// Selection of the values whose rows are read, and the list of those.
#pragma once
#include <cstdint>

namespace clada {

// Per lane: kept = scale >= 0 and a != 0 and not |a| < scale * threshold. A NaN is kept, and shows.
template <class I>
typename I::Mask is_kept(typename I::V a, typename I::V scale, typename I::V threshold) {
  const auto below = I::less(I::abs(a), I::mul(scale, threshold));
  const auto dense = I::both(I::less_equal(I::zero(), scale), I::opposite(I::equal(a, I::zero())));
  return I::both(dense, I::opposite(below));
}

// Writes the lanes of `a` that a mask has, and their numbers from `first` on, one after the other; what follows them,
// up to a whole vector, is written too. Returns how many there are.
template <class I>
int list_kept(typename I::Mask mask, typename I::V a, int32_t first, float* values, int32_t* places) {
  if constexpr (I::kCompresses) {
    return I::compress(mask, a, first, values, places);
  } else {
    alignas(64) float all[I::kWidth], ones[I::kWidth];
    I::store(all, a);
    I::store(ones, I::select(mask, I::all(1.0f), I::zero()));
    int count = 0;
    for (int lane = 0; lane < I::kWidth; ++lane) {
      // Without a branch, which could not be foretold.
      values[count] = all[lane];
      places[count] = first + lane;
      count += ones[lane] != 0;
    }
    return count;
  }
}

}  // namespace clada
