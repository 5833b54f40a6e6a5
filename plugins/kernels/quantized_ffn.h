// The feed-forward ops with quantized weights for few tokens: row by row, and only the rows that are kept.
//
// A part works through chunks of its neurons. The rows of the down projection for a chunk's kept neurons are read
// after those of the gate and up projections for the next chunk, so that all of them can be prefetched in time.
#pragma once
#include "packed_rows.h"
#include "quantized_input.h"
#include "quantized_row_sums.h"
#include "row_schedule.h"
#include "rowwise_parts.h"

namespace clada {

template <class I, int kBits>
struct QuantizedFfn : RowwiseParts<I, PackedRows<I, kBits>> {
  using Rows = PackedRows<I, kBits>;
  using Base = RowwiseParts<I, Rows>;
  using Base::problem;
  using V = typename I::V;
  using Ints = typename I::Ints;
  using Row = typename Rows::Row;
  // From this many tokens on, products of matrices in float32 are faster.
  static constexpr int64_t kMatrixTokens = 28;
  static constexpr int64_t kPartNeurons = 512, kMostParts = 16;
  static constexpr int kChunk = 128;       // neurons of a token whose activations are known before their rows are read
  static constexpr int kGroup = kSumRows;  // rows added at a time
  // Rows are prefetched so many rows before they are read.
  static constexpr int kAhead = 16;
  static_assert(4 * kChunk < static_cast<int>(RowSchedule<I>::kMost), "all rows of two chunks wait at most");

  char* inputs;  // [tokens], QuantizedInput each

  static int64_t parts_of(const SparseFfnCall& ffn) {
    const int64_t parts = ffn.neurons / kPartNeurons;
    return Base::with_halves(parts < 1 ? 1 : parts < kMostParts ? parts : kMostParts);
  }
  static int64_t input_floats(const SparseFfnCall& ffn) {
    return (QuantizedInput<I>::bytes(whole_spans<Rows>(ffn.width)) + kLine - 1) / kLine * kLine / sizeof(float);
  }
  // The last term is for the input in float32.
  static size_t workspace_floats(const SparseFfnCall& ffn) {
    return Base::workspace_floats(ffn, parts_of(ffn)) + ffn.batch * ffn.sequence * input_floats(ffn) +
           padded<I>(ffn.width);
  }

  QuantizedFfn(const FfnProblem<I, Rows>& given, float* workspace)
      : Base(given, parts_of(given.ffn), workspace + given.tokens * input_floats(given.ffn)),
        inputs(reinterpret_cast<char*>(workspace)) {}

  QuantizedInput<I> input(int64_t token) const {
    return QuantizedInput<I>::at(inputs + token * input_floats(problem.ffn) * sizeof(float), problem.padded_width);
  }

  // A chunk of neurons and a token: first those of its pool, then those that it keeps.
  struct Item {
    int64_t token;
    int count;
    int32_t neurons[kChunk];
    float values[kChunk];
  };

  // Adds a stripe's share of the products of x with kDotRows rows.
  template <bool kWhole>
  void add_products(const Rows& rows, const Row* some, const Row* next, const QuantizedInput<I>& x, int64_t stripe,
                    V* sums) const {
    const int lanes = rows.lanes(stripe);
    Ints high[I::kDotRows], low[I::kDotRows];
    for (int r = 0; r < I::kDotRows; ++r) high[r] = low[r] = I::zero_ints();
    const auto x_at = [&](const uint32_t* words, int64_t k) {
      return I::load_ints(words + (stripe * kGroupWeights / 4 + k) * I::kWidth);
    };
#pragma GCC unroll 8
    for (int64_t k = 0; k < Rows::kVectors; ++k) {
      if constexpr (kBits == 4) {
        const Ints high_0 = x_at(x.high, 2 * k), high_1 = x_at(x.high, 2 * k + 1);
        const Ints low_0 = x_at(x.low, 2 * k), low_1 = x_at(x.low, 2 * k + 1);
#pragma GCC unroll 4
        for (int r = 0; r < I::kDotRows; ++r) {
          const Ints codes = Rows::template vector<kWhole>(some[r], next[r], stripe, k, lanes);
          const Ints first = I::low_nibbles(codes), second = I::high_nibbles(codes);
          high[r] = I::dot_nibbles(I::dot_nibbles(high[r], first, high_0), second, high_1);
          low[r] = I::dot_nibbles(I::dot_nibbles(low[r], first, low_0), second, low_1);
        }
      } else {
        const Ints x_high = x_at(x.high, k), x_low = x_at(x.low, k);
#pragma GCC unroll 4
        for (int r = 0; r < I::kDotRows; ++r) {
          const Ints codes = Rows::template vector<kWhole>(some[r], next[r], stripe, k, lanes);
          high[r] = I::dot_bytes(high[r], codes, x_high);
          low[r] = I::dot_bytes(low[r], codes, x_low);
        }
      }
    }
    const V x_scales = I::load(x.scales + stripe * I::kWidth);
    const Ints x_sums = I::load_ints(x.sums + stripe * I::kWidth);
    for (int r = 0; r < I::kDotRows; ++r) {
      const V scale = I::mul(x_scales, rows.template scales<kWhole>(some[r], next[r], stripe, lanes));
      sums[r] = I::fma(I::joined(high[r], low[r], kBits == 4 ? 8 : I::kByteOffset, x_sums), scale, sums[r]);
    }
  }

  // Dots of a token's x with the next `count` rows.
  void dots(const Rows& rows, int64_t token, int count, RowSchedule<I>& schedule, float* out) const {
    const int64_t whole = rows.width / Rows::kSpan;
    const QuantizedInput<I> x = input(token);
    for (int n = 0; n < count; n += I::kDotRows) {
      Row some[I::kDotRows], next[I::kDotRows];
      V sums[I::kDotRows];
      const int there = count - n < I::kDotRows ? count - n : I::kDotRows;
      schedule.take(there, some, next);
      for (V& sum : sums) sum = I::zero();
      for (int64_t stripe = 0; stripe < whole; ++stripe) add_products<true>(rows, some, next, x, stripe, sums);
      if (whole < rows.stripes) add_products<false>(rows, some, next, x, whole, sums);
      for (int r = 0; r < there; ++r) out[n + r] = I::sum(sums[r]);
    }
  }

  // Adds the next `count` rows times their factors, at most kGroup, to y.
  void add_rows(int count, const float* values, float* y, RowSchedule<I>& schedule) const {
    Row some[kGroup], next[kGroup];
    schedule.take(count, some, next);
    float factors[kGroup] = {};
    for (int r = 0; r < count; ++r) factors[r] = values[r];
    add_stripes<I, kBits>(problem.w_out, some, next, count, factors, 0, problem.w_out.stripes, y);
  }

  // Appends the rows of neurons [first, first + count) of an item to the schedule.
  static void expect(const Rows& rows, const Item& item, int first, int count, RowSchedule<I>& schedule) {
    for (int n = first; n < first + count; ++n) schedule.push(rows.row(item.neurons[n]));
  }

  // Calls f with the first neuron and the number of each group of kept neurons.
  template <class F>
  static void each_group(const Item& kept, F f) {
    for (int n = 0; n < kept.count; n += kGroup) f(n, kept.count - n < kGroup ? kept.count - n : kGroup);
  }

  void expect_kept(const Item& kept, RowSchedule<I>& schedule) const {
    each_group(kept, [&](int first, int count) {
      if (problem.gated) expect(problem.w_up, kept, first, count, schedule);
      expect(problem.w_out, kept, first, count, schedule);
    });
  }

  // Remaining work on the neurons that an item keeps.
  void finish_item(int64_t part, Item& kept, RowSchedule<I>& schedule) const {
    each_group(kept, [&](int first, int count) {
      float* values = kept.values + first;
      if (problem.gated) {
        float ups[kGroup];
        dots(problem.w_up, kept.token, count, schedule, ups);
        for (int n = 0; n < count; ++n) values[n] *= ups[n];
      }
      add_rows(count, values, Base::output(part, kept.token), schedule);
    });
    Base::note(part, kept.token, kept.neurons, kept.values, kept.count);
  }

  // Asks for what will be read of a neuron beside its rows; what is past the end is not read.
  static void ask_for(const void* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 3);
  }

  // The part's items are its chunks and, within a chunk, the tokens, so that rows stay in the cache between tokens.
  bool find_item(int64_t part, int64_t index, Item& item, RowSchedule<I>& schedule) const {
    const int64_t first = Base::first_neuron(part) + index / problem.tokens * kChunk,
                  end = Base::first_neuron(part + 1);
    if (first >= end) return false;
    item.token = index % problem.tokens;
    const bool computed = problem.ffn.scale[item.token] >= 0;
    item.count =
        computed ? Base::pool_members(item.token, first, first + kChunk < end ? first + kChunk : end, item.neurons) : 0;
    expect(problem.w_in, item, 0, item.count, schedule);
    ask_for(problem.ffn.threshold + first, kChunk * sizeof(float));
    if (problem.b_in) ask_for(problem.b_in + first, kChunk * sizeof(float));
    ask_for(problem.ffn.pool + item.token / problem.ffn.sequence * problem.ffn.neurons + first + kChunk, kChunk);
    return true;
  }

  void work_part(int64_t part) const {
    RowSchedule<I> schedule(kAhead);
    Item items[3] = {};
    Base::clear(part);
    Item *kept = nullptr, *item = &items[0];
    if (!find_item(part, 0, *item, schedule)) item = nullptr;
    for (int64_t index = 0; item || kept; ++index) {
      if (kept) expect_kept(*kept, schedule);
      Item* next = &items[(index + 1) % 3];
      if (!item || !find_item(part, index + 1, *next, schedule)) next = nullptr;
      if (item) {
        dots(problem.w_in, item->token, item->count, schedule, item->values);
        item->count = Base::keep(item->token, item->neurons, item->values, item->count);
      }
      if (kept) finish_item(part, *kept, schedule);
      kept = item;
      item = next;
    }
  }

  void run(const ParallelFor& parallel) {
    float* x = reinterpret_cast<float*>(inputs) + problem.tokens * input_floats(problem.ffn) +
               Base::workspace_floats(problem.ffn, Base::parts);
    clear_scores(problem.ffn);
    for (int64_t token = 0; token < problem.tokens; ++token) {
      widen<I>(problem.ffn.element, problem.ffn.x, token * problem.ffn.width, x, problem.ffn.width);
      quantize_input<I, kBits>(x, problem.ffn.width, problem.padded_width, input(token));
    }
    Base::work(*this, parallel);
    Base::finish();
  }
};

}  // namespace clada
