// The feed-forward ops for few tokens: row by row, and only the rows that are kept.
//
// A part computes the dot products with the rows of the gate (or only input) projection, activation and threshold, and
// only for kept neurons the dot product with the up row and the sum of the row of the down projection.
#pragma once
#include "row_sums.h"
#include "rowwise_parts.h"

namespace clada {

constexpr int64_t kChunk = 256;       // neurons of a token activated at a time
constexpr int64_t kSharedChunk = 64;  // the same for several tokens: their rows stay in the cache from one to the next
constexpr int kGroup = 4;             // rows added at a time

static inline int64_t rowwise_parts(const SparseFfnCall& ffn) {
  const int64_t parts = ffn.neurons / kChunk, most = 32;
  return parts < 1 ? 1 : parts < most ? parts : most;
}

template <class I, class Rows>
struct RowwiseFfn : RowwiseParts<I, Rows> {
  using Base = RowwiseParts<I, Rows>;
  using Base::problem;
  using V = typename I::V;
  using Row = typename Rows::Row;
  static constexpr int kTogether = Rows::kTogether;
  // From this many tokens on, products of matrices are faster, even though they skip nothing.
  static constexpr int64_t kMatrixTokens = 12;

  float* x;  // [tokens, padded width]

  static size_t workspace_floats(const SparseFfnCall& ffn) {
    return Base::workspace_floats(ffn, Base::with_halves(rowwise_parts(ffn))) +
           ffn.batch * ffn.sequence * whole_spans<Rows>(ffn.width);
  }

  RowwiseFfn(const FfnProblem<I, Rows>& given, float* workspace)
      : Base(given, Base::with_halves(rowwise_parts(given.ffn)), workspace + given.tokens * given.padded_width),
        x(workspace) {}

  // Dots of x with kTogether rows; `next` are read after them.
  void dots(const Row* rows, const Row* next, const float* token_x, float* out) const {
    V sums[kTogether][4], first, second;
    for (auto& row_sums : sums) {
      for (V& sum : row_sums) sum = I::zero();
    }
    const auto add = [&](int64_t k, V* two) {
      two[0] = I::fma(first, I::load(token_x + k), two[0]);
      two[1] = I::fma(second, I::load(token_x + k + I::kWidth), two[1]);
    };
    const int64_t width = problem.ffn.width, whole = width - width % Rows::kSpan;
    int64_t k = 0;
    for (; k + 2 * Rows::kSpan <= whole; k += 2 * Rows::kSpan) {
#pragma GCC unroll 4
      for (int r = 0; r < kTogether; ++r) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const int64_t at = k + half * Rows::kSpan;
          Rows::prefetch_next(next[r], at);
          Rows::load(rows[r], at, first, second);
          add(at, sums[r] + 2 * half);
        }
      }
    }
    for (int r = 0; r < kTogether; ++r) {
      if (k < whole) {
        Rows::load(rows[r], k, first, second);
        add(k, sums[r]);
      }
      if (whole < width) {
        Rows::load_tail(rows[r], whole, width - whole, first, second);
        add(whole, sums[r]);
      }
      out[r] = I::sum(I::add(I::add(sums[r][0], sums[r][1]), I::add(sums[r][2], sums[r][3])));
    }
  }

  // Rows of neurons[at], ..., the last one repeated where the list ends.
  template <int kCount>
  static void group(const Rows& rows, const int32_t* neurons, int count, int at, Row (&out)[kCount]) {
    for (int r = 0; r < kCount; ++r) out[r] = rows.row(neurons[at + r < count ? at + r : count - 1]);
  }

  // Dots of x with the rows of a list of neurons.
  void list_dots(const Rows& rows, const int32_t* neurons, int count, const float* token_x, float* out) const {
    for (int n = 0; n < count; n += kTogether) {
      Row some[kTogether], next[kTogether];
      float products[kTogether];
      group(rows, neurons, count, n, some);
      group(rows, neurons, count, n + kTogether, next);
      dots(some, next, token_x, products);
      for (int r = 0; r < kTogether && n + r < count; ++r) out[n + r] = products[r];
    }
  }

  void token_chunk(int64_t part, int64_t token, int64_t first, int64_t last) const {
    int32_t neurons[kChunk] = {};
    float values[kChunk + kGroup] = {}, ups[kChunk];  // whole vectors of values are activated, whole groups are added
    const float* token_x = x + token * problem.padded_width;
    const int count = Base::pool_members(token, first, last, neurons);
    list_dots(problem.w_in, neurons, count, token_x, values);
    const int kept = Base::keep(token, neurons, values, count);
    if (problem.gated) {
      list_dots(problem.w_up, neurons, kept, token_x, ups);
      for (int n = 0; n < kept; ++n) values[n] *= ups[n];
    }
    for (int n = kept; n < kept + kGroup; ++n) values[n] = 0;
    for (int n = 0; n < kept; n += kGroup) {
      Row rows[kGroup], next[kGroup];
      group(problem.w_out, neurons, kept, n, rows);
      group(problem.w_out, neurons, kept, n + kGroup, next);
      add_rows<I, Rows, kGroup>(rows, next, values + n, problem.ffn.width, 0, problem.ffn.width,
                                Base::output(part, token), Rows::prefetch_next);
    }
    Base::note(part, token, neurons, values, kept);
  }

  void work_part(int64_t part) const {
    const int64_t chunk = problem.tokens == 1 ? kChunk : kSharedChunk;
    const int64_t first = Base::first_neuron(part), last = Base::first_neuron(part + 1);
    Base::clear(part);
    for (int64_t start = first; start < last; start += chunk) {
      const int64_t end = start + chunk < last ? start + chunk : last;
      for (int64_t token = 0; token < problem.tokens; ++token) {
        if (problem.ffn.scale[token] >= 0) token_chunk(part, token, start, end);
      }
    }
  }

  void run(const ParallelFor& parallel) {
    clear_scores(problem.ffn);
    for (int64_t token = 0; token < problem.tokens; ++token)
      problem.read_input(token, x + token * problem.padded_width);
    Base::work(*this, parallel);
    Base::finish();
  }
};

}  // namespace clada
