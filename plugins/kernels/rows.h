// Rows of a weight matrix [neurons, width]. A kernel reads weights only through row() and load(), so that quantised
// rows are one more type with these members.
#pragma once
#include <cstring>

#include "elements.h"

namespace clada {

template <class I, class E>
struct PlainRows {
  using Row = const E*;
  const E* data;
  int64_t width;

  Row row(int64_t i) const { return data + i * width; }
  // Elements [k, k + I::kWidth) of a row, k a multiple of I::kWidth.
  static typename I::V load(Row row, int64_t k) { return I::load(row + k); }
  // The same where only `count` elements are left; zero beyond them.
  static typename I::V load_tail(Row row, int64_t k, int64_t count) {
    E some[I::kWidth] = {};
    memcpy(some, row + k, static_cast<size_t>(count) * sizeof(E));
    return I::load(some);
  }
  // Asks for `count` elements from k on to be brought close.
  template <int64_t count>
  static void prefetch(Row row, int64_t k) {
    constexpr int64_t kLine = 64 / sizeof(E);
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(row + k + i, 0, 2);
  }
};

}  // namespace clada
