// What both ways to compute a feed-forward op share: the call in float32, and how results are written.
#pragma once
#include <cstring>

#include "convert.h"
#include "rows.h"

namespace clada {

// A width rounded up to whole spans of rows.
template <class Rows>
int64_t whole_spans(int64_t width) {
  return (width + Rows::kSpan - 1) / Rows::kSpan * Rows::kSpan;
}

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
  const float* b_out;            // [padded width] or null

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

  // Writes columns [first, first + count) of a token's y from sums of rows, in whole spans, which it changes.
  void write_output(int64_t token, int64_t first, int64_t count, float* y) const {
    for (int64_t k = 0; k < count; k += Rows::kSpan) {
      float span[Rows::kSpan];
      memcpy(span, y + k, sizeof span);
      for (int64_t i = 0; i < Rows::kSpan; ++i) y[k + i] = span[Rows::place(i)];
    }
    if (b_out) {
      for (int64_t k = 0; k < count; k += I::kWidth) {
        I::store(y + k, I::add(I::load(y + k), I::load(b_out + first + k)));
      }
    }
    narrow<I>(y, ffn.element, ffn.y, token * ffn.width + first, count);
  }

  // The same for columns in the order of Rows::place, of which `first` to `first + count` are less than a span.
  void scatter_output(int64_t token, int64_t first, int64_t count, float* y) const {
    const int64_t span = first / Rows::kSpan * Rows::kSpan, size = static_cast<int64_t>(element_size(ffn.element));
    for (int64_t i = 0; i < Rows::kSpan && span + i < ffn.width; ++i) {
      const int64_t at = span + Rows::place(i) - first;
      if (at >= 0 && at < count && b_out) y[at] += b_out[span + i];
    }
    alignas(64) char narrowed[Rows::kSpan * sizeof(float)];
    narrow<I>(y, ffn.element, narrowed, 0, count);
    char* out = static_cast<char*>(ffn.y) + token * ffn.width * size;
    for (int64_t i = 0; i < Rows::kSpan && span + i < ffn.width; ++i) {
      const int64_t at = span + Rows::place(i) - first;
      if (at >= 0 && at < count) memcpy(out + (span + i) * size, narrowed + at * size, static_cast<size_t>(size));
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
