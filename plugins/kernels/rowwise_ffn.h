// The feed-forward ops for few tokens: row by row, and only the rows that are kept.
//
// The neurons are cut into parts, each worked through by one thread in one pass: the dots with the rows that lead in,
// activation, threshold, and only for kept neurons the dot with the up row and the sum of the row that leads out, into
// an output of the part's own. Neither the cut nor the order in which the parts' outputs are added depends on the
// number of threads.
#pragma once
#include "activations.h"
#include "ffn_problem.h"

namespace clada {

constexpr int64_t kChunk = 256;       // neurons of a token activated at a time
constexpr int64_t kSharedChunk = 64;  // the same for several tokens: their rows stay in the cache from one to the next
constexpr int kGroup = 4;             // rows added at a time

static inline int64_t rowwise_parts(const SparseFfnCall& ffn) {
  const int64_t parts = ffn.neurons / kChunk, most = 32;
  return parts < 1 ? 1 : parts < most ? parts : most;
}

template <class I, class Rows>
struct RowwiseFfn {
  using V = typename I::V;
  using Row = typename Rows::Row;
  static constexpr int kTogether = Rows::kTogether;

  const FfnProblem<I, Rows>& problem;
  float* x;         // [tokens, padded width]
  float* partial;   // [parts, tokens, padded width]
  float* energy;    // [parts, tokens], the part's share of ||h||^2
  int32_t* active;  // [parts, tokens]
  float* h;         // [tokens, F]

  static size_t workspace_floats(const SparseFfnCall& ffn) {
    const size_t tokens = ffn.batch * ffn.sequence, parts = rowwise_parts(ffn);
    return tokens * ((parts + 1) * whole_spans<Rows>(ffn.width) + 2 * parts + ffn.neurons);
  }

  RowwiseFfn(const FfnProblem<I, Rows>& given, float* workspace) : problem(given) {
    const int64_t each = rowwise_parts(given.ffn) * given.tokens;
    x = workspace;
    partial = x + given.tokens * given.padded_width;
    energy = partial + each * given.padded_width;
    active = reinterpret_cast<int32_t*>(energy + each);
    h = energy + 2 * each;
  }

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

  // y += sum of factors[r] * rows[r]; `next` are read after them.
  void add_rows(const Row* rows, const Row* next, const float* factors, float* y) const {
    V f[kGroup];
    for (int r = 0; r < kGroup; ++r) f[r] = I::all(factors[r]);
    const int64_t width = problem.ffn.width, whole = width - width % Rows::kSpan;
    V first, second;
    for (int64_t k = 0; k < width; k += Rows::kSpan) {
      V low = I::load(y + k), high = I::load(y + k + I::kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) {
        if (k < whole) {
          Rows::prefetch_next(next[r], k);
          Rows::load(rows[r], k, first, second);
        } else {
          Rows::load_tail(rows[r], k, width - k, first, second);
        }
        low = I::fma(f[r], first, low);
        high = I::fma(f[r], second, high);
      }
      I::store(y + k, low);
      I::store(y + k + I::kWidth, high);
    }
  }

  // Rows of neurons[at], ..., the last one repeated where the list ends.
  template <int kCount>
  static void group(const Rows& rows, const int32_t* neurons, int count, int at, Row (&out)[kCount]) {
    for (int r = 0; r < kCount; ++r) out[r] = rows.row(neurons[at + r < count ? at + r : count - 1]);
  }

  // Writes the neurons of [first, last) that are in the token's pool; returns how many.
  int pool_members(int64_t token, int64_t first, int64_t last, int32_t* neurons) const {
    const bool* pool = problem.ffn.pool + token / problem.ffn.sequence * problem.ffn.neurons;
    int count = 0;
    for (int64_t i = first; i < last; ++i) {
      neurons[count] = static_cast<int32_t>(i);
      count += pool[i];
    }
    return count;
  }

  // Turns neurons and their products with the rows that lead in into the kept neurons and their activations.
  int keep(int64_t token, int32_t* neurons, float* z, int count) const {
    const float scale = problem.ffn.scale[token];
    if (problem.b_in) {
      for (int n = 0; n < count; ++n) z[n] += problem.b_in[neurons[n]];
    }
    for (int n = 0; n < count; n += I::kWidth) I::store(z + n, activate<I>(problem.ffn.activation, I::load(z + n)));
    int kept = 0;
    for (int n = 0; n < count; ++n) {
      const float a = z[n], limit = scale * problem.ffn.threshold[neurons[n]];
      neurons[kept] = neurons[n];
      z[kept] = a;
      // Not `>=`: a NaN is kept, and shows.
      kept += a != 0 && !(__builtin_fabsf(a) < limit);
    }
    return kept;
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

  void token_chunk(int64_t token, int64_t first, int64_t last, float* y, float* token_energy, int32_t* token_active) {
    int32_t neurons[kChunk] = {};
    float values[kChunk + kGroup] = {}, ups[kChunk];  // whole vectors of values are activated, whole groups are added
    const float* token_x = x + token * problem.padded_width;
    const int count = pool_members(token, first, last, neurons);
    list_dots(problem.w_in, neurons, count, token_x, values);
    const int kept = keep(token, neurons, values, count);
    if (problem.gated) {
      list_dots(problem.w_up, neurons, kept, token_x, ups);
      for (int n = 0; n < kept; ++n) values[n] *= ups[n];
    }
    for (int n = kept; n < kept + kGroup; ++n) values[n] = 0;
    for (int n = 0; n < kept; n += kGroup) {
      Row rows[kGroup], next[kGroup];
      group(problem.w_out, neurons, kept, n, rows);
      group(problem.w_out, neurons, kept, n + kGroup, next);
      add_rows(rows, next, values + n, y);
    }
    float* token_h = h + token * problem.ffn.neurons;
    for (int n = 0; n < kept; ++n) {
      token_h[neurons[n]] = values[n];
      *token_energy += values[n] * values[n];
    }
    *token_active += kept;
  }

  void part(int64_t index) {
    const int64_t parts = rowwise_parts(problem.ffn), chunk = problem.tokens == 1 ? kChunk : kSharedChunk;
    const int64_t first = problem.ffn.neurons * index / parts, last = problem.ffn.neurons * (index + 1) / parts;
    const int64_t at = index * problem.tokens;
    for (int64_t token = 0; token < problem.tokens; ++token) {
      memset(partial + (at + token) * problem.padded_width, 0, problem.padded_width * sizeof(float));
      memset(h + token * problem.ffn.neurons + first, 0, (last - first) * sizeof(float));
      energy[at + token] = 0;
      active[at + token] = 0;
    }
    for (int64_t start = first; start < last; start += chunk) {
      const int64_t end = start + chunk < last ? start + chunk : last;
      for (int64_t token = 0; token < problem.tokens; ++token) {
        if (!(problem.ffn.scale[token] >= 0)) continue;
        token_chunk(token, start, end, partial + (at + token) * problem.padded_width, energy + at + token,
                    active + at + token);
      }
    }
  }

  // Adds up what the parts left.
  void finish() {
    const int64_t parts = rowwise_parts(problem.ffn), tokens = problem.tokens, wide = problem.padded_width;
    for (int64_t token = 0; token < tokens; ++token) {
      float* y = partial + token * wide;
      for (int64_t part = 1; part < parts; ++part) {
        const float* more = partial + (part * tokens + token) * wide;
        for (int64_t k = 0; k < wide; k += I::kWidth) I::store(y + k, I::add(I::load(y + k), I::load(more + k)));
        energy[token] += energy[part * tokens + token];
        active[token] += active[part * tokens + token];
      }
      problem.write_output(token, 0, problem.ffn.width, y);
      problem.ffn.active[token] = active[token];
      problem.add_scores(token, h + token * problem.ffn.neurons, 0, problem.ffn.neurons, energy[token]);
    }
  }

  void run(const ParallelFor& parallel) {
    problem.clear_scores();
    for (int64_t token = 0; token < problem.tokens; ++token)
      problem.read_input(token, x + token * problem.padded_width);
    parallel.run(
        parallel.pool, rowwise_parts(problem.ffn),
        [](void* data, size_t index) { static_cast<RowwiseFfn*>(data)->part(static_cast<int64_t>(index)); }, this);
    finish();
  }
};

}  // namespace clada
