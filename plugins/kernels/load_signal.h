// The load signal of a row of logits, in two passes over it; names and formulas as in clada/ops/load_signal.py.
#pragma once
#include "activations.h"
#include "convert.h"
#include "knots.h"

namespace clada {

constexpr int64_t kPiece = 1024;  // logits whose sum is taken in float32

template <class I>
void load_signal_row(const LoadSignalCall& signal, int64_t row) {
  using V = typename I::V;
  const int64_t vocabulary = signal.vocabulary, offset = row * vocabulary;
  const V minus_infinity = I::all(-__builtin_inff());
  alignas(64) float piece[kPiece];
  // Elements beyond the end of a piece are tokens of probability 0.
  const auto widen_piece = [&](int64_t from) {
    const int64_t count = vocabulary - from < kPiece ? vocabulary - from : kPiece, end = padded<I>(count);
    widen<I>(signal.element, signal.logits, offset + from, piece, count);
    for (int64_t k = count; k < end; ++k) piece[k] = -__builtin_inff();
    return end;
  };

  V tops = minus_infinity;
  for (int64_t from = 0; from < vocabulary; from += kPiece) {
    const int64_t end = widen_piece(from);
    for (int64_t k = 0; k < end; k += I::kWidth) tops = I::max(I::load(piece + k), tops);
  }
  const float top = I::largest(tops);

  double total = 0, weighted = 0;
  for (int64_t from = 0; from < vocabulary; from += kPiece) {
    const int64_t end = widen_piece(from);
    V sum = I::zero(), products = I::zero();
    for (int64_t k = 0; k < end; k += I::kWidth) {
      const V z = I::sub(I::load(piece + k), I::all(top));
      const auto impossible = I::equal(z, minus_infinity);
      const V e = I::select(impossible, I::zero(), exponential<I>(z));
      sum = I::add(sum, e);
      products = I::add(products, I::select(impossible, I::zero(), I::mul(e, z)));
    }
    total += static_cast<double>(I::sum(sum));
    weighted += static_cast<double>(I::sum(products));
  }
  float read[I::kWidth];
  widen<I>(signal.element, signal.logits, offset + signal.token[row], read, 1);
  const double log_total = __builtin_log(total);
  const float surprisal = static_cast<float>(log_total - (static_cast<double>(read[0]) - static_cast<double>(top)));
  const float entropy = static_cast<float>(log_total - weighted / total);
  const float w = signal.surprisal_weight;
  const float load = w * knot_rank(surprisal, signal.surprisal_knots, signal.knots) +
                     (1 - w) * knot_rank(entropy, signal.entropy_knots, signal.knots);
  signal.surprisal[row] = surprisal;
  signal.entropy[row] = entropy;
  signal.load[row] = load;
  signal.scale[row] = scale_of_load(load, signal.scale_knots, signal.scale_knots_count);
}

template <class I>
int64_t load_signal(const LoadSignalCall& signal) {
  for (int64_t row = 0; row < signal.batch; ++row) {
    if (signal.token[row] < 0 || signal.token[row] >= signal.vocabulary) return row;
  }
  for (int64_t row = 0; row < signal.batch; ++row) load_signal_row<I>(signal, row);
  return -1;
}

}  // namespace clada
