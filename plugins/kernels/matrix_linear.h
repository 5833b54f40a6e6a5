// SparseLinear for many tokens: as products of matrices, which skip nothing.
#pragma once
#include "linear_problem.h"
#include "outward_products.h"
#include "selection.h"

namespace clada {

template <class I, class Rows>
struct MatrixLinear : OutwardProducts<I, Rows> {
  using Base = OutwardProducts<I, Rows>;
  using V = typename I::V;
  using Base::count, Base::end_panel, Base::first_panel, Base::kPanel, Base::panels, Base::rows_up, Base::start;
  static_assert(kPanel % I::kWidth == 0, "vectors fill a panel");

  const LinearProblem<I, Rows>& problem;
  int32_t* kept;  // [panels][tokens], the panel's share of the inputs kept

  static size_t workspace_floats(const SparseLinearCall& call) {
    const int64_t tokens = call.batch * call.sequence;
    return Base::workspace_floats(tokens, call.width, call.outputs) +
           static_cast<size_t>(round_up(call.width, kPanel) / kPanel * Base::block_of(tokens));
  }

  MatrixLinear(const LinearProblem<I, Rows>& given, float* workspace)
      : Base(given.w, given.call.width, given.output(), given.tokens, workspace), problem(given) {
    const SparseLinearCall& call = given.call;
    kept = reinterpret_cast<int32_t*>(workspace + Base::workspace_floats(given.tokens, call.width, call.outputs));
  }

  // One task: the kept inputs of a panel, for the tokens of the block.
  void select_panel(int64_t index) {
    const int64_t panel = first_panel + index, first = panel * kPanel;
    const int64_t left = problem.call.width - first, inputs = left < kPanel ? left : kPanel;
    alignas(64) float thresholds[kPanel] = {};
    memcpy(thresholds, problem.call.threshold + first, static_cast<size_t>(inputs) * sizeof(float));
    for (int64_t t = 0; t < count; ++t) {
      float* x = Base::panel_of_token(panel, t);
      problem.read_input(start + t, first, inputs, x);
      for (int64_t k = round_up(inputs, I::kWidth); k < kPanel; ++k) x[k] = 0;
      const V scale = I::all(problem.call.scale[start + t]);
      V sum = I::zero();
      for (int64_t k = 0; k < kPanel; k += I::kWidth) {
        const V a = I::load(x + k);
        const auto large = is_kept<I>(a, scale, I::load(thresholds + k));
        I::store(x + k, I::select(large, a, I::zero()));
        sum = I::add(sum, I::select(large, I::all(1.0f), I::zero()));
      }
      kept[panel * count + t] = static_cast<int32_t>(I::sum(sum));
    }
    memset(Base::panel_of_token(panel, count), 0, static_cast<size_t>((rows_up - count) * kPanel) * sizeof(float));
  }

  void add_counts() const {
    for (int64_t t = 0; t < count; ++t) {
      int32_t sum = 0;
      for (int64_t panel = 0; panel < panels; ++panel) sum += kept[panel * count + t];
      problem.call.kept[start + t] = sum;
    }
  }

  void run(const ParallelFor& parallel) {
    for (int64_t first = 0; first < problem.tokens; first += Base::kBlock) {
      Base::begin_block(first, problem.tokens);
      for (int64_t panel = 0; panel < panels; panel = end_panel) {
        Base::begin_group(panel);
        run_each<MatrixLinear, &MatrixLinear::select_panel>(*this, parallel, end_panel - first_panel);
        Base::multiply_group(parallel);
      }
      add_counts();
    }
  }
};

}  // namespace clada
