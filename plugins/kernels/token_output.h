// Conversion of sums of rows to the tokens of an output.
#pragma once
#include <cstring>

#include "convert.h"

namespace clada {

// A width rounded up to whole spans of rows.
template <class Rows>
int64_t whole_spans(int64_t width) {
  return (width + Rows::kSpan - 1) / Rows::kSpan * Rows::kSpan;
}

template <class I, class Rows>
struct TokenOutput {
  Element element;
  void* y;  // [tokens, width]
  int64_t width;
  const float* bias;  // [width in whole vectors] or null

  // Writes columns [first, first + count) of a token from sums of rows, in whole spans, which it changes.
  void write(int64_t token, int64_t first, int64_t count, float* sums) const {
    for (int64_t k = 0; k < count; k += Rows::kSpan) {
      float span[Rows::kSpan];
      memcpy(span, sums + k, sizeof span);
      for (int64_t i = 0; i < Rows::kSpan; ++i) sums[k + i] = span[Rows::place(i)];
    }
    if (bias) {
      for (int64_t k = 0; k < count; k += I::kWidth) {
        I::store(sums + k, I::add(I::load(sums + k), I::load(bias + first + k)));
      }
    }
    narrow<I>(sums, element, y, token * width + first, count);
  }
};

}  // namespace clada
