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

constexpr int64_t kChunk = 64;  // neurons activated at a time: their rows stay in the cache from token to token
constexpr int kGroup = 4;       // rows read at a time

static inline int64_t rowwise_parts(const SparseFfnCall& ffn) {
  const int64_t parts = ffn.neurons / (2 * kChunk), most = 32;
  return parts < 1 ? 1 : parts < most ? parts : most;
}

template <class I, class Rows>
struct RowwiseFfn {
  using V = typename I::V;
  using Row = typename Rows::Row;

  const FfnProblem<I, Rows>& problem;
  float* x;         // [tokens, padded width]
  float* partial;   // [parts, tokens, padded width]
  float* energy;    // [parts, tokens], the part's share of ||h||^2
  int32_t* active;  // [parts, tokens]
  float* h;         // [tokens, F]

  static size_t workspace_floats(const SparseFfnCall& ffn) {
    const size_t tokens = ffn.batch * ffn.sequence, parts = rowwise_parts(ffn);
    return tokens * ((parts + 1) * padded<I>(ffn.width) + 2 * parts + ffn.neurons);
  }

  RowwiseFfn(const FfnProblem<I, Rows>& given, float* workspace) : problem(given) {
    const int64_t each = rowwise_parts(given.ffn) * given.tokens;
    x = workspace;
    partial = x + given.tokens * given.padded_width;
    energy = partial + each * given.padded_width;
    active = reinterpret_cast<int32_t*>(energy + each);
    h = energy + 2 * each;
  }

  // Dots of x with kGroup rows.
  void dots(const Row* rows, const float* token_x, float* out) const {
    V sums[kGroup][2];
    for (int r = 0; r < kGroup; ++r) sums[r][0] = sums[r][1] = I::zero();
    const int64_t width = problem.ffn.width, whole = width - width % (2 * I::kWidth);
    for (int64_t k = 0; k < whole; k += 2 * I::kWidth) {
      const V x0 = I::load(token_x + k), x1 = I::load(token_x + k + I::kWidth);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        sums[r][0] = I::fma(Rows::load(rows[r], k), x0, sums[r][0]);
        sums[r][1] = I::fma(Rows::load(rows[r], k + I::kWidth), x1, sums[r][1]);
      }
    }
    for (int64_t k = whole; k < width; k += I::kWidth) {
      const int64_t left = width - k < I::kWidth ? width - k : I::kWidth;
      for (int r = 0; r < kGroup; ++r) {
        sums[r][0] = I::fma(Rows::load_tail(rows[r], k, left), I::load(token_x + k), sums[r][0]);
      }
    }
    for (int r = 0; r < kGroup; ++r) out[r] = I::sum(I::add(sums[r][0], sums[r][1]));
  }

  // y += sum of factors[r] * rows[r]
  void add_rows(const Row* rows, const float* factors, float* y) const {
    V f[kGroup];
    for (int r = 0; r < kGroup; ++r) f[r] = I::all(factors[r]);
    const int64_t width = problem.ffn.width, whole = width - width % I::kWidth;
    for (int64_t k = 0; k < whole; k += I::kWidth) {
      V sum = I::load(y + k);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) sum = I::fma(f[r], Rows::load(rows[r], k), sum);
      I::store(y + k, sum);
    }
    if (whole < width) {
      V sum = I::load(y + whole);
      for (int r = 0; r < kGroup; ++r) sum = I::fma(f[r], Rows::load_tail(rows[r], whole, width - whole), sum);
      I::store(y + whole, sum);
    }
  }

  // Rows of neurons[at], ..., the last one repeated where the list ends.
  static void group(const Rows& rows, const int32_t* neurons, int count, int at, Row* out) {
    for (int r = 0; r < kGroup; ++r) out[r] = rows.row(neurons[at + r < count ? at + r : count - 1]);
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

  void token_chunk(int64_t token, int64_t first, int64_t last, float* y, float* token_energy, int32_t* token_active) {
    int32_t neurons[kChunk];
    float a[kChunk] = {};  // whole vectors of it are activated
    Row rows[kGroup];
    const float* token_x = x + token * problem.padded_width;
    const int count = pool_members(token, first, last, neurons);
    for (int n = 0; n < count; n += kGroup) {
      float products[kGroup];
      group(problem.w_in, neurons, count, n, rows);
      dots(rows, token_x, products);
      for (int r = 0; r < kGroup && n + r < count; ++r) a[n + r] = products[r];
    }
    const int kept = keep(token, neurons, a, count);
    float* token_h = h + token * problem.ffn.neurons;
    for (int n = 0; n < kept; n += kGroup) {
      const int here = kept - n < kGroup ? kept - n : kGroup;
      float values[kGroup] = {};
      for (int r = 0; r < here; ++r) values[r] = a[n + r];
      if (problem.gated) {
        float ups[kGroup];
        group(problem.w_up, neurons, kept, n, rows);
        dots(rows, token_x, ups);
        for (int r = 0; r < here; ++r) values[r] *= ups[r];
      }
      group(problem.w_out, neurons, kept, n, rows);
      add_rows(rows, values, y);
      for (int r = 0; r < here; ++r) {
        token_h[neurons[n + r]] = values[r];
        *token_energy += values[r] * values[r];
      }
    }
    *token_active += kept;
  }

  void part(int64_t index) {
    const int64_t parts = rowwise_parts(problem.ffn), chunks = (problem.ffn.neurons + kChunk - 1) / kChunk;
    const int64_t first = chunks * index / parts * kChunk;
    int64_t last = chunks * (index + 1) / parts * kChunk;
    if (last > problem.ffn.neurons) last = problem.ffn.neurons;
    const int64_t at = index * problem.tokens;
    for (int64_t token = 0; token < problem.tokens; ++token) {
      memset(partial + (at + token) * problem.padded_width, 0, problem.padded_width * sizeof(float));
      memset(h + token * problem.ffn.neurons + first, 0, (last - first) * sizeof(float));
      energy[at + token] = 0;
      active[at + token] = 0;
    }
    for (int64_t start = first; start < last; start += kChunk) {
      const int64_t end = start + kChunk < last ? start + kChunk : last;
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
