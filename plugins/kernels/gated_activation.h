// The product of a layer's gate, activated, with what it gates; names and formulas as in clada/ops/gated_activation.py.
#pragma once
#include "activations.h"
#include "convert.h"
#include "outward_products.h"

namespace clada {

template <class I>
struct GatedActivation {
  static constexpr int64_t kPiece = 1024;             // columns of a task
  static constexpr int64_t kFewColumns = 8 * kPiece;  // so many are computed before other threads are awake

  const GatedActivationCall& call;

  int64_t pieces() const { return (call.width + kPiece - 1) / kPiece; }

  // One task: a piece of a token's columns.
  void work(int64_t task) {
    const int64_t token = task / pieces(), first = task % pieces() * kPiece, left = call.width - first;
    const int64_t count = left < kPiece ? left : kPiece;
    alignas(64) float gate[kPiece], up[kPiece];
    widen<I>(call.element, call.x, 2 * token * call.width + first, gate, count);
    widen<I>(call.element, call.x, (2 * token + 1) * call.width + first, up, count);
    for (int64_t k = 0; k < count; k += I::kWidth) {
      I::store(gate + k, I::mul(activate<I>(call.activation, I::load(gate + k)), I::load(up + k)));
    }
    narrow<I>(gate, call.element, call.y, token * call.width + first, count);
  }

  void run(const ParallelFor& parallel) {
    const int64_t tasks = call.tokens * pieces();
    if (call.tokens * call.width > kFewColumns) {
      return run_each<GatedActivation, &GatedActivation::work>(*this, parallel, tasks);
    }
    for (int64_t task = 0; task < tasks; ++task) work(task);
  }
};

template <class I>
void gated_activation(const GatedActivationCall& call, const ParallelFor& parallel) {
  GatedActivation<I>{call}.run(parallel);
}

}  // namespace clada
