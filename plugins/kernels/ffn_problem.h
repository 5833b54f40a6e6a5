// Common part of both algorithms of a feed-forward op: the call in float32, and the output of results.
#pragma once
#include <cstring>

#include "rows.h"
#include "token_output.h"

namespace clada {

static inline void clear_scores(const SparseFfnCall& ffn) {
  const size_t count = static_cast<size_t>(ffn.batch * ffn.neurons);
  if (count != 0) memset(ffn.score, 0, count * sizeof(float));  // an array of nothing may have no address
}

template <class I, class Rows>
struct FfnProblem {
  const SparseFfnCall& ffn;
  Rows w_in, w_up, w_out;
  bool gated;
  int64_t tokens, padded_width;  // the width in whole spans
  const float* b_in;             // [F] or null
  TokenOutput<I, Rows> output;

  // A token's x in float32, arranged as rows are loaded: padded_width values, zeros beyond the width.
  void read_input(int64_t token, float* x) const {
    for (int64_t k = ffn.width / Rows::kSpan * Rows::kSpan; k < padded_width; ++k) x[k] = 0;
    widen<I>(ffn.element, ffn.x, token * ffn.width, x, ffn.width);
    for (int64_t k = 0; k < padded_width; k += Rows::kSpan) {
      float span[Rows::kSpan];
      memcpy(span, x + k, sizeof span);
      for (int64_t i = 0; i < Rows::kSpan; ++i) x[k + Rows::place(i)] = span[i];
    }
  }

  // Adds a token's h^2 / ||h||^2 for neurons [first, last); h is of the first of them, energy is ||h||^2.
  void add_scores(int64_t token, const float* h, int64_t first, int64_t last, float energy) const {
    if (energy == 0) return;
    float* score = ffn.score + token / ffn.sequence * ffn.neurons;
    // A product is faster than a quotient; the inverse of the smallest energies overflows.
    if (energy > 0x1p-100f) {
      const float inverse = 1.0f / energy;
      for (int64_t i = first; i < last; ++i) score[i] += h[i - first] * h[i - first] * inverse;
    } else {
      for (int64_t i = first; i < last; ++i) score[i] += h[i - first] * h[i - first] / energy;
    }
  }
};

}  // namespace clada
