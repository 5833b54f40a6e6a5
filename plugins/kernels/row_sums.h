// Sums of rows, each times a factor: the down projection of a token's kept neurons, or the product of its kept inputs.
#pragma once
#include "rows.h"

namespace clada {

// y[k - first] += sum over r of factors[r] * rows[r][k] for k in [first, last), whole spans but where a row ends. `ask`
// is called with each of `next`, which are read later, and each k.
template <class I, class Rows, int kCount, class Ask>
void add_rows(const typename Rows::Row* rows, const typename Rows::Row* next, const float* factors, int64_t width,
              int64_t first, int64_t last, float* y, Ask ask) {
  using V = typename I::V;
  V f[kCount];
  for (int r = 0; r < kCount; ++r) f[r] = I::all(factors[r]);
  const int64_t whole = width - width % Rows::kSpan;
  V one, two;
  for (int64_t k = first; k < last; k += Rows::kSpan, y += Rows::kSpan) {
    V low = I::load(y), high = I::load(y + I::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      if (k < whole) {
        ask(next[r], k);
        Rows::load(rows[r], k, one, two);
      } else {
        Rows::load_tail(rows[r], k, width - k, one, two);
      }
      low = I::fma(f[r], one, low);
      high = I::fma(f[r], two, high);
    }
    I::store(y, low);
    I::store(y + I::kWidth, high);
  }
}

}  // namespace clada
