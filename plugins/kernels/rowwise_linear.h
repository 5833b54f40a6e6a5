// SparseLinear for few tokens: row by row, and only the rows of kept inputs.
//
// Inputs are cut into parts and columns into strips: a task sums a part's kept rows over a strip. How they are cut
// depends on sizes alone, so that sums are the same for any number of threads.
#pragma once
#include <cstring>

#include "linear_problem.h"
#include "outward_products.h"
#include "selection.h"

namespace clada {

// Sums says what rows there are (Rows), adds some of them (add), of how many bytes (bytes) a strip is to be
// (kStripBytes), and of how many inputs a part at least (kLeastInputs).
template <class I, class Sums>
struct RowwiseLinear {
  using Rows = typename Sums::Rows;
  using V = typename I::V;
  static constexpr int64_t kTasks = 16;         // about
  static constexpr int64_t kLeastStrip = 2048;  // bytes: what memory gives depends on how much is read in one go
  // Inputs at a time where there are several tokens: their rows stay in the cache from one to the next.
  static constexpr int64_t kSharedInputs = 64;
  static constexpr int64_t kPiece = 4096;  // columns that are finished at a time
  static_assert(kPiece % Rows::kSpan == 0, "pieces are of whole spans");

  struct Cut {
    int64_t strips, parts, chunk, chunks;  // a part is of whole chunks of inputs

    explicit Cut(const SparseLinearCall& call) {
      const int64_t bytes = Sums::bytes(call.outputs);
      const int64_t fewest = at_least(1, bytes / Sums::kStripBytes);
      // A power of two, as threads are, so that all have as much to do.
      for (parts = 1; 2 * parts * fewest <= kTasks && 2 * parts * Sums::kLeastInputs <= call.width;) parts *= 2;
      const int64_t most = at_least(fewest, bytes / kLeastStrip);
      strips = at_least(fewest, kTasks / parts < most ? kTasks / parts : most);
      // Of whole vectors of any instruction set.
      const int64_t share = round_up(at_least(1, (call.width + parts - 1) / parts), 16);
      chunk = call.batch * call.sequence > 1 ? kSharedInputs : share;
      chunks = (call.width + chunk - 1) / chunk;
    }
    static int64_t at_least(int64_t least, int64_t value) { return value < least ? least : value; }
  };

  const LinearProblem<I, Rows>& problem;
  Cut cut;
  int64_t padded_outputs;
  float* y;         // [parts, tokens, padded outputs]
  float* values;    // [tokens, D in whole vectors], the kept inputs of each token
  int32_t* inputs;  // [tokens, D in whole vectors], their numbers
  int32_t* ends;    // [tokens, chunks], where each chunk of inputs ends in them

  static size_t workspace_floats(const SparseLinearCall& call) {
    const Cut cut(call);
    return static_cast<size_t>(call.batch * call.sequence *
                               (cut.parts * whole_spans<Rows>(call.outputs) + 2 * padded<I>(call.width) + cut.chunks));
  }

  RowwiseLinear(const LinearProblem<I, Rows>& given, float* workspace) : problem(given), cut(given.call) {
    const int64_t tokens = given.tokens, width = given.call.width;
    padded_outputs = whole_spans<Rows>(given.call.outputs);
    y = workspace;
    values = y + cut.parts * tokens * padded_outputs;
    inputs = reinterpret_cast<int32_t*>(values + tokens * padded<I>(width));
    ends = inputs + tokens * padded<I>(width);
  }

  // Lists a token's kept inputs.
  void select(int64_t token) const {
    const int64_t width = problem.call.width;
    const float scale = problem.call.scale[token];
    float* kept_values = values + token * padded<I>(width);
    int32_t* kept_inputs = inputs + token * padded<I>(width);
    problem.read_input(token, 0, width, kept_values);
    int32_t kept = 0;
    for (int64_t c = 0; c < cut.chunks; ++c) {
      const int64_t first = c * cut.chunk, last = first + cut.chunk < width ? first + cut.chunk : width;
      for (int64_t i = first; i < last; i += I::kWidth) {
        alignas(64) float some[I::kWidth], thresholds[I::kWidth];
        const bool whole = i + I::kWidth <= last;
        for (int64_t k = 0; !whole && k < I::kWidth; ++k) {
          // An input that is 0 is not kept.
          some[k] = i + k < last ? kept_values[i + k] : 0;
          thresholds[k] = i + k < last ? problem.call.threshold[i + k] : 0;
        }
        // Kept values are written to places that have been read already.
        const V a = I::load(whole ? kept_values + i : some);
        const V threshold = I::load(whole ? problem.call.threshold + i : thresholds);
        kept += list_kept<I>(is_kept<I>(a, I::all(scale), threshold), a, static_cast<int32_t>(i), kept_values + kept,
                             kept_inputs + kept);
      }
      ends[token * cut.chunks + c] = kept;
    }
    problem.call.kept[token] = kept;
  }

  // The column at which a strip begins, at a whole span.
  int64_t first_column(int64_t strip) const { return padded_outputs / Rows::kSpan * strip / cut.strips * Rows::kSpan; }

  float* output(int64_t part, int64_t token) const { return y + (part * problem.tokens + token) * padded_outputs; }

  void work_task(int64_t task) {
    const int64_t part = task / cut.strips, strip = task % cut.strips;
    const int64_t first = first_column(strip), last = first_column(strip + 1);
    const size_t bytes = static_cast<size_t>(last - first) * sizeof(float);
    for (int64_t token = 0; token < problem.tokens; ++token) memset(output(part, token) + first, 0, bytes);
    for (int64_t c = cut.chunks * part / cut.parts; c < cut.chunks * (part + 1) / cut.parts; ++c) {
      for (int64_t token = 0; token < problem.tokens; ++token) {
        const int32_t* token_ends = ends + token * cut.chunks;
        const int begin = c == 0 ? 0 : token_ends[c - 1];
        Sums::add(problem.w, inputs + token * padded<I>(problem.call.width) + begin, token_ends[c] - begin,
                  values + token * padded<I>(problem.call.width) + begin, first, last, output(part, token));
      }
    }
  }

  int64_t pieces() const { return (padded_outputs + kPiece - 1) / kPiece; }

  // One task: adds up what the parts left of a piece of a token's columns.
  void finish(int64_t task) {
    const int64_t token = task / pieces(), first = task % pieces() * kPiece, outputs = problem.call.outputs;
    const int64_t last = first + kPiece < padded_outputs ? first + kPiece : padded_outputs;
    float* sums = output(0, token);
    for (int64_t part = 1; part < cut.parts; ++part) {
      const float* more = output(part, token);
      for (int64_t k = first; k < last; k += I::kWidth) {
        I::store(sums + k, I::add(I::load(sums + k), I::load(more + k)));
      }
    }
    problem.output().write(token, first, (last < outputs ? last : outputs) - first, sums + first);
  }

  void run(const ParallelFor& parallel) {
    for (int64_t token = 0; token < problem.tokens; ++token) select(token);
    if (problem.call.outputs == 0) return;
    run_each<RowwiseLinear, &RowwiseLinear::work_task>(*this, parallel, cut.parts * cut.strips);
    const int64_t tasks = problem.tokens * pieces();
    if (tasks == 1) return finish(0);  // waking others takes longer
    run_each<RowwiseLinear, &RowwiseLinear::finish>(*this, parallel, tasks);
  }
};

}  // namespace clada
