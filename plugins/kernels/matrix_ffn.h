// The feed-forward ops for many tokens: as matrix products, every neuron of them.
//
// Tokens are worked through in blocks, and for each, neurons in groups. First the products of the gate and up
// projections, and from them h = kept * activation (* up); then y += h times the rows of the down projection. A group's
// h stays in the cache in between.
#pragma once
#include "activations.h"
#include "ffn_problem.h"
#include "outward_products.h"
#include "selection.h"

namespace clada {

template <class I, class Rows>
struct MatrixFfn : OutwardProducts<I, Rows> {
  using Base = OutwardProducts<I, Rows>;
  using V = typename I::V;
  using Base::count, Base::end_panel, Base::first_panel, Base::h, Base::kColumns, Base::kPanel, Base::kRows,
      Base::panels, Base::rows_up, Base::start;
  static constexpr int64_t kDepth = 256;  // terms of the first product at a time
  static constexpr int64_t kTask = 48;    // neurons a task of the first product
  static_assert(kTask % kRows == 0 && kPanel % kTask == 0 && kDepth % (2 * I::kWidth) == 0, "tiles fill their blocks");

  const FfnProblem<I, Rows>& problem;
  int64_t tasks;
  float* x_panels;     // [blocks of kColumns tokens][padded width][kColumns]
  float* energy;       // [tasks][tokens], the task's share of ||h||^2
  float* active;       // [tasks][tokens], the task's share of the neurons kept
  float* columns;      // [tokens / kColumns][padded width], a row of x for each task that packs them
  int64_t columns_up;  // the size of the current block of tokens rounded up to whole tiles

  static constexpr int64_t kMostColumns = (Base::kBlock + kColumns - 1) / kColumns * kColumns;

  static size_t workspace_floats(const SparseFfnCall& ffn) {
    const int64_t tokens = ffn.batch * ffn.sequence, block = round_up(Base::block_of(tokens), kColumns),
                  width = whole_spans<Rows>(ffn.width);
    return Base::workspace_floats(tokens, ffn.neurons, ffn.width) +
           static_cast<size_t>(block * (width + 2 * round_up(ffn.neurons, kTask) / kTask) + block / kColumns * width);
  }

  MatrixFfn(const FfnProblem<I, Rows>& given, float* workspace)
      : Base(given.w_out, given.ffn.neurons, given.output, given.tokens, workspace), problem(given) {
    const int64_t block = round_up(Base::block_of(given.tokens), kColumns);
    tasks = round_up(given.ffn.neurons, kTask) / kTask;
    x_panels = workspace + Base::workspace_floats(given.tokens, given.ffn.neurons, given.ffn.width);
    energy = x_panels + block * given.padded_width;
    active = energy + block * tasks;
    columns = active + block * tasks;
  }

  // Widens elements [k, k + count) of rows [first, first + kTask) to out, kDepth apart; rows that do not exist are 0.
  void widen_rows(const Rows& rows, int64_t first, int64_t k, int64_t count, float* out) const {
    for (int64_t i = 0; i < kTask; ++i, out += kDepth) {
      if (first + i >= problem.ffn.neurons) {
        memset(out, 0, kDepth * sizeof(float));
        continue;
      }
      rows.widen(rows.row(first + i), k, count, out);
    }
  }

  void prefetch_rows(const Rows& rows, int64_t first, int64_t k, int64_t step, int64_t steps) const {
    if (k >= problem.ffn.width) return;
    for (int64_t i = kTask * step / steps; i < kTask * (step + 1) / steps && first + i < problem.ffn.neurons; ++i) {
      Rows::template prefetch<kDepth>(rows.row(first + i), k);
    }
  }

  // out [kTask, columns_up] = the rows of a task times the tokens of the block
  void multiply_in(const Rows& rows, int64_t first, float* out) const {
    alignas(64) float left[kTask * kDepth];
    memset(out, 0, static_cast<size_t>(kTask * columns_up) * sizeof(float));
    const int64_t width = problem.padded_width, blocks = columns_up / kColumns;
    for (int64_t k = 0; k < width; k += kDepth) {
      const int64_t depth = width - k < kDepth ? width - k : kDepth;
      widen_rows(rows, first, k, depth, left);
      for (int64_t block = 0; block < blocks; ++block) {
        prefetch_rows(rows, first, k + kDepth, block, blocks);
        const float* right = x_panels + (block * width + k) * kColumns;
        const bool half = count - block * kColumns <= kColumns / 2;
        for (int64_t r = 0; r < kTask; r += kRows) {
          float* sums = out + r * columns_up + block * kColumns;
          if (half) {
            multiply_tile<I, I::kTileVectors / 2>(left + r * kDepth, kDepth, right, depth, sums, columns_up);
          } else {
            multiply_tile<I, I::kTileVectors>(left + r * kDepth, kDepth, right, depth, sums, columns_up);
          }
        }
      }
    }
  }

  // A neuron's scales for the tokens of the block: negative, nothing kept, where its pool is closed and beyond the end.
  void neuron_scales(int64_t neuron, float* out) const {
    const SparseFfnCall& ffn = problem.ffn;
    for (int64_t t = 0; t < count;) {
      const int64_t row = (start + t) / ffn.sequence, row_end = (row + 1) * ffn.sequence - start;
      const int64_t end = row_end < count ? row_end : count;
      const bool open = ffn.pool[row * ffn.neurons + neuron] != 0;
      if (open) {
        memcpy(out + t, ffn.scale + start + t, static_cast<size_t>(end - t) * sizeof(float));
      } else {
        for (int64_t i = t; i < end; ++i) out[i] = -1.0f;
      }
      t = end;
    }
    for (int64_t t = count; t < columns_up; ++t) out[t] = -1.0f;
  }

  // One task of the first product: h of kTask neurons for the tokens of the block.
  void task_in(int64_t index) {
    alignas(64) float gate[kTask * kMostColumns], ups[kTask * kMostColumns], scales[kMostColumns];
    const int64_t task = first_panel * (kPanel / kTask) + index, first = task * kTask, place = first % kPanel;
    float* out = h + first / kPanel * rows_up * kPanel + place;
    float* task_energy = energy + task * columns_up;
    float* task_active = active + task * columns_up;
    memset(task_energy, 0, static_cast<size_t>(columns_up) * sizeof(float));
    memset(task_active, 0, static_cast<size_t>(columns_up) * sizeof(float));
    multiply_in(problem.w_in, first, gate);
    if (problem.gated) multiply_in(problem.w_up, first, ups);
    for (int64_t i = 0; i < kTask; ++i) {
      if (first + i >= problem.ffn.neurons) continue;
      neuron_scales(first + i, scales);
      float *z = gate + i * columns_up, *neuron_ups = problem.gated ? ups + i * columns_up : nullptr;
      select(first + i, z, neuron_ups, scales, task_energy, task_active);
    }
    transpose(gate, out);
    // The panel's places beyond the last neuron are multiplied too.
    if (task == tasks - 1) {
      for (int64_t t = 0; t < rows_up; ++t) {
        memset(out + t * kPanel + kTask, 0, static_cast<size_t>(kPanel - place - kTask) * sizeof(float));
      }
    }
  }

  // Writes a task's h [kTask, columns_up] to its place in a panel: out [rows_up, kPanel].
  void transpose(const float* task_h, float* out) const {
    // Few tokens at a time, so that what is written stays in the first cache until it is full.
    for (int64_t from = 0; from < rows_up; from += kColumns) {
      const int64_t to = from + kColumns < rows_up ? from + kColumns : rows_up;
      const int64_t filled = to < columns_up ? to : columns_up;
      for (int64_t i = 0; i < kTask; ++i) {
        for (int64_t t = from; t < filled; ++t) out[t * kPanel + i] = task_h[i * columns_up + t];
        for (int64_t t = filled; t < to; ++t) out[t * kPanel + i] = 0;
      }
    }
  }

  // Turns a neuron's products z into h, and adds to the tokens' energies and counts.
  void select(int64_t neuron, float* z, const float* ups, const float* scales, float* energies, float* counts) const {
    const V threshold = I::all(problem.ffn.threshold[neuron]),
            bias = I::all(problem.b_in ? problem.b_in[neuron] : 0.0f);
    for (int64_t t = 0; t < columns_up; t += I::kWidth) {
      const V a = activate<I>(problem.ffn.activation, I::add(I::load(z + t), bias)), scale = I::load(scales + t);
      const auto kept = is_kept<I>(a, scale, threshold);
      const V product = ups ? I::mul(a, I::load(ups + t)) : a;
      const V value = I::select(kept, product, I::zero());
      I::store(z + t, value);
      I::store(energies + t, I::fma(value, value, I::load(energies + t)));
      I::store(counts + t, I::add(I::load(counts + t), I::select(kept, I::all(1.0f), I::zero())));
    }
  }

  // Rearranges the block's tokens so that a tile reads them in order: one task a kColumns of them.
  void pack_tokens(int64_t block) {
    const int64_t width = problem.padded_width;
    float *out = x_panels + block * width * kColumns, *x = columns + block * problem.padded_width;
    for (int64_t c = 0; c < kColumns; ++c) {
      const int64_t t = block * kColumns + c;
      if (t < count) {
        problem.read_input(start + t, x);
      } else {
        memset(x, 0, static_cast<size_t>(width) * sizeof(float));
      }
      for (int64_t k = 0; k < width; ++k) out[k * kColumns + c] = x[k];
    }
  }

  // Adds the tasks' shares of each token's energy and count.
  void add_shares() {
    for (int64_t task = 1; task < tasks; ++task) {
      for (int64_t t = 0; t < count; ++t) {
        energy[t] += energy[task * columns_up + t];
        active[t] += active[task * columns_up + t];
      }
    }
    for (int64_t t = 0; t < count; ++t) problem.ffn.active[start + t] = static_cast<int32_t>(active[t]);
  }

  void add_panel_scores(int64_t panel) {
    const int64_t first = panel * kPanel, end = first + kPanel;
    const int64_t last = end < problem.ffn.neurons ? end : problem.ffn.neurons;
    for (int64_t t = 0; t < count; ++t) {
      problem.add_scores(start + t, Base::panel_of_token(panel, t), first, last, energy[t]);
    }
  }

  template <void (MatrixFfn::*step)(int64_t)>
  void each(const ParallelFor& parallel, int64_t tasks_of_step) {
    run_each<MatrixFfn, step>(*this, parallel, tasks_of_step);
  }

  void run(const ParallelFor& parallel) {
    clear_scores(problem.ffn);
    for (int64_t first = 0; first < problem.tokens; first += Base::kBlock) {
      Base::begin_block(first, problem.tokens);
      columns_up = round_up(count, kColumns);
      each<&MatrixFfn::pack_tokens>(parallel, columns_up / kColumns);
      for (int64_t panel = 0; panel < panels; panel = end_panel) {
        Base::begin_group(panel);
        const int64_t end_task = end_panel * (kPanel / kTask), first_task = first_panel * (kPanel / kTask);
        each<&MatrixFfn::task_in>(parallel, (end_task < tasks ? end_task : tasks) - first_task);
        Base::multiply_group(parallel);
      }
      add_shares();
      each<&MatrixFfn::add_panel_scores>(parallel, panels);
    }
  }
};

}  // namespace clada
