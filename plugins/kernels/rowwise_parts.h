// Common part of both row-by-row algorithms of the feed-forward ops: the neurons are cut into parts, each worked
// through by one thread in one pass, into an output of the part's own.
//
// Neither the cut nor the order in which the parts' outputs are added depends on the number of threads.
#pragma once
#include <atomic>

#include "activations.h"
#include "ffn_problem.h"

namespace clada {

template <class I, class Rows>
struct RowwiseParts {
  const FfnProblem<I, Rows>& problem;
  int64_t parts;
  float* partial;   // [parts, tokens, padded width]
  float* energy;    // [parts, tokens], the part's share of ||h||^2
  int32_t* active;  // [parts, tokens]
  float* h;         // [tokens, F]
  std::atomic<int64_t> taken{0};

  // How many parts there are where the neurons are cut into `equal` ones. The last two are halved, if there are many: a
  // thread that began later than others has less left to do when they are done.
  static int64_t with_halves(int64_t equal) { return equal < kLeastHalved ? equal : equal + 2; }

  static size_t workspace_floats(const SparseFfnCall& ffn, int64_t parts) {
    return static_cast<size_t>(ffn.batch * ffn.sequence * (parts * (whole_spans<Rows>(ffn.width) + 2) + ffn.neurons));
  }

  RowwiseParts(const FfnProblem<I, Rows>& given, int64_t given_parts, float* workspace)
      : problem(given), parts(given_parts) {
    const int64_t each = parts * given.tokens;
    partial = workspace;
    energy = partial + each * given.padded_width;
    active = reinterpret_cast<int32_t*>(energy + each);
    h = energy + 2 * each;
  }

  int64_t first_neuron(int64_t part) const {
    const bool halved = parts > kLeastHalved;
    const int64_t whole = halved ? parts - 4 : 0, halves = parts + whole;
    return problem.ffn.neurons * (part < whole ? 2 * part : part + whole) / halves;
  }

  // The part's output for a token.
  float* output(int64_t part, int64_t token) const {
    return partial + (part * problem.tokens + token) * problem.padded_width;
  }

  // Empties what a part adds to.
  void clear(int64_t part) const {
    const int64_t first = first_neuron(part), last = first_neuron(part + 1);
    for (int64_t token = 0; token < problem.tokens; ++token) {
      memset(output(part, token), 0, static_cast<size_t>(problem.padded_width) * sizeof(float));
      memset(h + token * problem.ffn.neurons + first, 0, static_cast<size_t>(last - first) * sizeof(float));
      energy[part * problem.tokens + token] = 0;
      active[part * problem.tokens + token] = 0;
    }
  }

  // Writes the neurons of [first, last) that are in the token's pool; returns how many.
  int pool_members(int64_t token, int64_t first, int64_t last, int32_t* neurons) const {
    const uint8_t* pool = problem.ffn.pool + token / problem.ffn.sequence * problem.ffn.neurons;
    int count = 0;
    for (int64_t i = first; i < last; ++i) {
      neurons[count] = static_cast<int32_t>(i);
      count += pool[i] != 0;
    }
    return count;
  }

  // Turns neurons and their products with the gate (or only input) rows into the kept neurons and their activations.
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

  // Notes what the kept neurons of a part contribute to a token.
  void note(int64_t part, int64_t token, const int32_t* neurons, const float* values, int kept) const {
    float* token_h = h + token * problem.ffn.neurons;
    for (int n = 0; n < kept; ++n) {
      token_h[neurons[n]] = values[n];
      energy[part * problem.tokens + token] += values[n] * values[n];
    }
    active[part * problem.tokens + token] += kept;
  }

  // Works through all parts, the last ones last, whatever numbers the tasks have that a thread is given.
  template <class Ffn>
  static void work(Ffn& ffn, const ParallelFor& parallel) {
    parallel.run(
        parallel.pool, static_cast<size_t>(ffn.parts),
        [](void* data, size_t) {
          Ffn& ffn = *static_cast<Ffn*>(data);
          ffn.work_part(ffn.taken.fetch_add(1, std::memory_order_relaxed));
        },
        &ffn);
  }

  // Adds up what the parts left.
  void finish() const {
    const int64_t tokens = problem.tokens, wide = problem.padded_width;
    for (int64_t token = 0; token < tokens; ++token) {
      float* y = partial + token * wide;
      for (int64_t part = 1; part < parts; ++part) {
        const float* more = partial + (part * tokens + token) * wide;
        for (int64_t k = 0; k < wide; k += I::kWidth) I::store(y + k, I::add(I::load(y + k), I::load(more + k)));
        energy[token] += energy[part * tokens + token];
        active[token] += active[part * tokens + token];
      }
      problem.output.write(token, 0, problem.ffn.width, y);
      problem.ffn.active[token] = active[token];
      problem.add_scores(token, h + token * problem.ffn.neurons, 0, problem.ffn.neurons, energy[token]);
    }
  }

 private:
  static constexpr int64_t kLeastHalved = 4;
};

}  // namespace clada
