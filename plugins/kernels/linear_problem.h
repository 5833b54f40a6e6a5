// Common part of both algorithms of SparseLinear: the call in float32, and the output of results.
#pragma once
#include "kernels.h"
#include "token_output.h"

namespace clada {

template <class I, class Rows>
struct LinearProblem {
  const SparseLinearCall& call;
  Rows w;
  int64_t tokens;

  TokenOutput<I, Rows> output() const { return {call.element, call.y, call.outputs, nullptr}; }

  // A token's inputs [first, first + count) in float32; writes whole vectors.
  void read_input(int64_t token, int64_t first, int64_t count, float* x) const {
    widen<I>(call.element, call.x, token * call.width + first, x, count);
  }
};

}  // namespace clada
