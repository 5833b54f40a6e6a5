// Rows of a weight matrix [neurons, width]. A kernel reads weights only through row() and load(), so that quantized
// rows are one more type with these members.
//
// Rows are loaded a span of two vectors at a time, in whatever order within the span is cheapest for their type. Inputs
// that are multiplied with rows are arranged in that order first, and sums of rows are put back afterwards.
#pragma once
#include <cstring>
#include <type_traits>

#include "elements.h"

namespace clada {

template <class I, class E>
struct PlainRows {
  using Row = const E*;
  using V = typename I::V;
  static constexpr int64_t kSpan = 2 * I::kWidth;
  static constexpr bool kPaired = false;  // see OutwardProducts
  static constexpr bool kEvenOdd = std::is_same<E, BFloat16>::value;
  // Rows read at a time. What fetches ahead of the processor follows one stream across pages, but not several; where
  // loading takes few instructions, the processor itself looks far enough ahead, and several streams are faster.
  static constexpr int kTogether = sizeof(E) < sizeof(float) ? 1 : 4;
  const E* data;
  int64_t width;

  Row row(int64_t i) const { return data + i * width; }

  // Where in a loaded span its element i is.
  static int64_t place(int64_t i) { return kEvenOdd ? i % 2 * I::kWidth + i / 2 : i; }

  // Elements [k, k + kSpan) of a row, k a multiple of kSpan.
  static void load(Row row, int64_t k, V& first, V& second) {
    if constexpr (kEvenOdd) {
      I::load_even_odd(row + k, first, second);
    } else {
      first = I::load(row + k);
      second = I::load(row + k + I::kWidth);
    }
  }
  // The same where only `count` elements are left; zero beyond them.
  static void load_tail(Row row, int64_t k, int64_t count, V& first, V& second) {
    E some[kSpan] = {};
    memcpy(some, row + k, static_cast<size_t>(count) * sizeof(E));
    load(some, 0, first, second);
  }
  // Elements [k, k + count) of a row in the order of place(), k and count multiples of kSpan; zero past the row's end.
  void widen(Row row, int64_t k, int64_t count, float* out) const {
    for (int64_t at = k; at < k + count; at += kSpan, out += kSpan) {
      V first = I::zero(), second = I::zero();
      if (at + kSpan <= width) {
        load(row, at, first, second);
      } else if (at < width) {
        load_tail(row, at, width - at, first, second);
      }
      I::store(out, first);
      I::store(out + I::kWidth, second);
    }
  }
  // Asks for the span at k of a row that will be loaded next, where loading does too much for each byte to let the
  // processor look far enough ahead by itself.
  static void prefetch_next(Row row, int64_t k) {
    if constexpr (sizeof(E) < sizeof(float)) __builtin_prefetch(row + k, 0, 3);
  }
  // Asks for `count` elements from k on to be brought near.
  template <int64_t count>
  static void prefetch(Row row, int64_t k) {
    constexpr int64_t kLine = 64 / sizeof(E);
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(row + k + i, 0, 2);
  }
};

}  // namespace clada
