// SparseLinear: for few tokens row by row, and only the rows of kept inputs; for many as products of matrices.
#pragma once
#include "outward_products.h"
#include "row_sums.h"
#include "workspace.h"

namespace clada {

// From this many tokens on, products of matrices are faster, even though they skip nothing.
constexpr int64_t kMatrixLinearTokens = 12;

// A call and what both ways to compute it share.
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

// Inputs are cut into parts and columns into strips: a task sums a part's kept rows over a strip. How they are cut
// depends on sizes alone, so that sums are the same for any number of threads.
template <class I, class Rows>
struct RowwiseLinear {
  static constexpr int64_t kTasks = 16;         // about
  static constexpr int64_t kStripBytes = 8192;  // of a row: what is read in one go is to be long, and y to stay near
  static constexpr int64_t kLeastInputs = 64;   // of a part
  // Inputs at a time where there are several tokens: their rows stay in the cache from one to the next.
  static constexpr int64_t kSharedInputs = 64;
  static constexpr int kGroup = 4;  // rows added at a time
  static constexpr int kAhead = 8;  // rows are asked for so many before they are read

  struct Cut {
    int64_t strips, parts, chunk, chunks;  // a part is of whole chunks of inputs

    explicit Cut(const SparseLinearCall& call) {
      const int64_t bytes = call.outputs * static_cast<int64_t>(sizeof(typename Rows::Weight));
      strips = at_least(1, bytes / kStripBytes);
      const int64_t wanted = at_least(1, kTasks / strips), most = at_least(1, call.width / kLeastInputs);
      parts = wanted < most ? wanted : most;
      chunk = call.batch * call.sequence > 1 ? kSharedInputs : at_least(1, (call.width + parts - 1) / parts);
      chunks = (call.width + chunk - 1) / chunk;
    }
    static int64_t at_least(int64_t least, int64_t value) { return value < least ? least : value; }
  };

  const LinearProblem<I, Rows>& problem;
  Cut cut;
  int64_t padded_outputs;
  float* y;         // [parts, tokens, padded outputs]
  float* values;    // [tokens, D in whole vectors], the kept inputs of each token
  int32_t* inputs;  // [tokens, D], their numbers
  int32_t* ends;    // [tokens, chunks], where each chunk of inputs ends in them

  static size_t workspace_floats(const SparseLinearCall& call) {
    const Cut cut(call);
    return static_cast<size_t>(
        call.batch * call.sequence *
        (cut.parts * whole_spans<Rows>(call.outputs) + padded<I>(call.width) + call.width + cut.chunks));
  }

  RowwiseLinear(const LinearProblem<I, Rows>& given, float* workspace) : problem(given), cut(given.call) {
    const int64_t tokens = given.tokens, width = given.call.width;
    padded_outputs = whole_spans<Rows>(given.call.outputs);
    y = workspace;
    values = y + cut.parts * tokens * padded_outputs;
    inputs = reinterpret_cast<int32_t*>(values + tokens * padded<I>(width));
    ends = inputs + tokens * width;
  }

  // Lists a token's kept inputs.
  void select(int64_t token) const {
    const int64_t width = problem.call.width;
    const float scale = problem.call.scale[token];
    float* kept_values = values + token * padded<I>(width);
    int32_t* kept_inputs = inputs + token * width;
    problem.read_input(token, 0, width, kept_values);
    int32_t kept = 0;
    for (int64_t c = 0; c < cut.chunks; ++c) {
      for (int64_t i = c * cut.chunk; i < width && i < (c + 1) * cut.chunk; ++i) {
        const float x = kept_values[i], limit = scale * problem.call.threshold[i];
        kept_inputs[kept] = static_cast<int32_t>(i);
        kept_values[kept] = x;
        // Not `>=`: a NaN is kept, and shows.
        kept += scale >= 0 && x != 0 && !(__builtin_fabsf(x) < limit);
      }
      ends[token * cut.chunks + c] = kept;
    }
    problem.call.kept[token] = kept;
  }

  // The column at which a strip begins, at a whole span.
  int64_t first_column(int64_t strip) const { return padded_outputs / Rows::kSpan * strip / cut.strips * Rows::kSpan; }

  float* output(int64_t part, int64_t token) const { return y + (part * problem.tokens + token) * padded_outputs; }

  // Adds the rows of kCount of the `left` inputs to columns [first, last).
  template <int kCount>
  void add(const int32_t* rows, int left, const float* factors, int64_t first, int64_t last, float* out) const {
    typename Rows::Row some[kCount], next[kCount];
    for (int r = 0; r < kCount; ++r) {
      some[r] = problem.w.row(rows[r]);
      next[r] = problem.w.row(rows[kAhead + r < left ? kAhead + r : r]);
    }
    add_rows<I, Rows, kCount>(some, next, factors, problem.call.outputs, first, last, out,
                              Rows::template prefetch<Rows::kSpan>);
  }

  void work_task(int64_t task) {
    const int64_t part = task / cut.strips, strip = task % cut.strips;
    const int64_t first = first_column(strip), last = first_column(strip + 1);
    const size_t bytes = static_cast<size_t>(last - first) * sizeof(float);
    for (int64_t token = 0; token < problem.tokens; ++token) memset(output(part, token) + first, 0, bytes);
    for (int64_t c = cut.chunks * part / cut.parts; c < cut.chunks * (part + 1) / cut.parts; ++c) {
      for (int64_t token = 0; token < problem.tokens; ++token) {
        const int32_t *rows = inputs + token * problem.call.width, *token_ends = ends + token * cut.chunks;
        const float* factors = values + token * padded<I>(problem.call.width);
        float* out = output(part, token) + first;
        int n = c == 0 ? 0 : token_ends[c - 1];
        const int end = token_ends[c];
        for (; n + kGroup <= end; n += kGroup) add<kGroup>(rows + n, end - n, factors + n, first, last, out);
        for (; n < end; ++n) add<1>(rows + n, end - n, factors + n, first, last, out);
      }
    }
  }

  // Adds up what the parts left.
  void finish(int64_t token) const {
    float* sums = output(0, token);
    for (int64_t part = 1; part < cut.parts; ++part) {
      const float* more = output(part, token);
      for (int64_t k = 0; k < padded_outputs; k += I::kWidth) {
        I::store(sums + k, I::add(I::load(sums + k), I::load(more + k)));
      }
    }
    problem.output().write(token, 0, problem.call.outputs, sums);
  }

  void run(const ParallelFor& parallel) {
    for (int64_t token = 0; token < problem.tokens; ++token) select(token);
    if (problem.call.outputs == 0) return;
    run_each<RowwiseLinear, &RowwiseLinear::work_task>(*this, parallel, cut.parts * cut.strips);
    for (int64_t token = 0; token < problem.tokens; ++token) finish(token);
  }
};

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
        // Not `>=`: a NaN is kept, and shows.
        const auto below = I::less(I::abs(a), I::mul(scale, I::load(thresholds + k)));
        const auto large =
            I::both(I::both(I::less_equal(I::zero(), scale), I::opposite(I::equal(a, I::zero()))), I::opposite(below));
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
        run_each<Base, &Base::multiply_strip>(*this, parallel, Base::strips);
      }
      add_counts();
    }
  }
};

// Whether a call is computed as products of matrices; of nothing there are none.
static inline bool as_matrices(const SparseLinearCall& call) {
  return call.width > 0 && call.outputs > 0 && call.batch * call.sequence >= kMatrixLinearTokens;
}

template <class I, class E>
void run_plain_linear(const SparseLinearCall& call, float* workspace, const ParallelFor& parallel) {
  using Rows = PlainRows<I, E>;
  const LinearProblem<I, Rows> problem{call, {static_cast<const E*>(call.w), call.outputs}, call.batch * call.sequence};
  if (as_matrices(call)) {
    MatrixLinear<I, Rows>(problem, workspace).run(parallel);
  } else {
    RowwiseLinear<I, Rows>(problem, workspace).run(parallel);
  }
}

template <class I>
size_t sparse_linear_workspace(const SparseLinearCall& call) {
  const size_t count = with_element(call.weight_element, [&](auto value) {
    using Rows = PlainRows<I, decltype(value)>;
    return as_matrices(call) ? MatrixLinear<I, Rows>::workspace_floats(call)
                             : RowwiseLinear<I, Rows>::workspace_floats(call);
  });
  return count * sizeof(float) + kLine;
}

template <class I>
void sparse_linear(const SparseLinearCall& call, void* workspace, const ParallelFor& parallel) {
  float* aligned = first_line(workspace);
  with_element(call.weight_element, [&](auto value) { run_plain_linear<I, decltype(value)>(call, aligned, parallel); });
}

}  // namespace clada
