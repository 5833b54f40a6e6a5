// Attention of new tokens over a KV cache that they are written into; names and formulas as in
// clada/ops/cached_attention.py.
//
// The queries of all heads that share keys are rows of one task, so that a key and a value are read once for them.
// Few tokens have few rows: their keys are cut into spans of a fixed length, a task each, whose results are merged; the
// sums are the same for any number of threads.
#pragma once
#include <type_traits>

#include "activations.h"
#include "convert.h"
#include "outward_products.h"
#include "workspace.h"

namespace clada {

template <class I, class E>
struct CachedAttention {
  using V = typename I::V;
  static constexpr int64_t kRows = 32;                    // queries of a task, at most
  static constexpr int64_t kKeys = 128;                   // keys at a time, at most
  static constexpr int64_t kFloats = 2 * kMostHeadWidth;  // of any array below that is as wide as heads are
  static constexpr int64_t kSpan = 256;                   // keys of a task, where they are cut
  static constexpr int64_t kEnoughTasks = 16;             // from so many on, keys are not cut
  static constexpr int64_t kFewProducts = 1 << 17;        // so many are computed before other threads are awake
  static constexpr int64_t kTail = 16;  // beside a row's sum: its largest score, and the sum of its weights

  const CachedAttentionCall& call;
  int64_t group, rows, past, total, padded_width;
  int64_t rows_of_task, blocks, keys_at_a_time, spans;
  float* queries;  // [kv_heads, rows, padded_width], scaled
  float* partial;  // [kv_heads, blocks, spans, rows_of_task, padded_width + kTail]

  static size_t workspace_bytes(const CachedAttentionCall& call) {
    const CachedAttention sized(call, nullptr);
    return static_cast<size_t>(sized.query_floats() + sized.partial_floats()) * sizeof(float) + kLine;
  }

  CachedAttention(const CachedAttentionCall& given, float* workspace) : call(given) {
    group = call.heads / call.kv_heads;
    rows = call.sequence * group;  // of a token one after the other
    total = call.last + 1;
    past = total - call.sequence;
    padded_width = padded<I>(call.width);
    const int64_t fitting = kFloats / padded_width;
    rows_of_task = fitting < kRows ? fitting : kRows;
    if (rows < rows_of_task) rows_of_task = rows;
    blocks = (rows + rows_of_task - 1) / rows_of_task;
    keys_at_a_time = fitting < kKeys ? fitting : kKeys;
    spans = call.kv_heads * blocks < kEnoughTasks ? (total + kSpan - 1) / kSpan : 1;
    queries = workspace;
    partial = workspace ? queries + query_floats() : nullptr;
  }

  int64_t query_floats() const { return call.kv_heads * rows * padded_width; }
  int64_t partial_floats() const {
    return spans > 1 ? call.kv_heads * blocks * spans * rows_of_task * (padded_width + kTail) : 0;
  }

  // Turns the first 2 * rotary values of a head by the angles of a token.
  void turn(float* head, int64_t token) const {
    const int64_t pairs = call.rotary;
    float cos[kMostHeadWidth / 2 + 16], sin[kMostHeadWidth / 2 + 16];
    widen<I>(static_cast<const E*>(call.cos) + token * pairs, cos, pairs);
    widen<I>(static_cast<const E*>(call.sin) + token * pairs, sin, pairs);
    for (int64_t i = 0; i < pairs; ++i) {
      float& one = head[call.interleaved ? 2 * i : i];
      float& other = head[call.interleaved ? 2 * i + 1 : i + pairs];
      const float a = one, b = other;
      one = a * cos[i] - b * sin[i];
      other = b * cos[i] + a * sin[i];
    }
  }

  // A token's place in a buffer of keys or of values.
  E* slot(void* buffer, int64_t kv_head, int64_t place) const {
    return static_cast<E*>(buffer) + (kv_head * call.capacity + place) * call.width;
  }

  // One task: a token's queries, and its keys and values into the cache.
  void take_token(int64_t token) {
    const int64_t width = call.width;
    const E* from = static_cast<const E*>(call.qkv) + token * (call.heads + 2 * call.kv_heads) * width;
    for (int64_t h = 0; h < call.heads; ++h, from += width) {
      float* row = queries + ((h / group * rows) + token * group + h % group) * padded_width;
      widen<I>(from, row, width);
      turn(row, token);
      for (int64_t k = 0; k < padded_width; k += I::kWidth) {
        I::store(row + k, I::mul(I::load(row + k), I::all(call.scale)));
      }
    }
    for (int64_t h = 0; h < call.kv_heads; ++h, from += width) {
      float row[kMostHeadWidth + 16];
      widen<I>(from, row, width);
      turn(row, token);
      narrow<I>(row, call.element, slot(call.present_key, h, past + token), 0, width);
    }
    for (int64_t h = 0; h < call.kv_heads; ++h, from += width) {
      memcpy(slot(call.present_value, h, past + token), from, static_cast<size_t>(width) * sizeof(E));
    }
  }

  // Rows of a task, their running sums, and the keys at hand.
  struct Tile {
    const float* queries;
    int64_t first, count;  // rows
    alignas(64) float scores[kRows * kKeys];
    alignas(64) float sums[kFloats];
    float largest[kRows], weight[kRows];
    alignas(64) float keys[kFloats], values[kFloats];  // used where rows are not of whole vectors
  };

  int64_t end_of_row(int64_t row) const { return past + row / group + 1; }
  int64_t start_of_row(int64_t row) const {
    const int64_t start = call.window < 0 ? 0 : end_of_row(row) - call.window;
    return start > 0 ? start : 0;
  }

  // scores [kCount, keys_at_a_time] of rows from `row` on with `keys` keys.
  template <int kCount, class From>
  void score_rows(Tile& tile, int64_t row, const From* from, int64_t stride, int64_t keys) const {
    constexpr int kTogether = 4;
    const float* q = tile.queries + row * padded_width;
    int64_t t = 0;
    for (; t + kTogether <= keys; t += kTogether) {
      V sums[kCount][kTogether];
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) sums[r][i] = I::zero();
      }
      for (int64_t k = 0; k < padded_width; k += I::kWidth) {
        V some[kTogether];
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) some[i] = I::load(from + (t + i) * stride + k);
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) {
          const V factor = I::load(q + r * padded_width + k);
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) sums[r][i] = I::fma(factor, some[i], sums[r][i]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) I::store_sums(tile.scores + (row + r) * kKeys + t, sums[r]);
    }
    for (; t < keys; ++t) {
      for (int r = 0; r < kCount; ++r) {
        V sum = I::zero();
        for (int64_t k = 0; k < padded_width; k += I::kWidth) {
          sum = I::fma(I::load(q + r * padded_width + k), I::load(from + t * stride + k), sum);
        }
        tile.scores[(row + r) * kKeys + t] = I::sum(sum);
      }
    }
  }

  // Scores of keys [first, first + keys) to weights of a row; the sums so far are brought to the new largest score.
  void weigh(Tile& tile, int64_t row, int64_t first, int64_t keys) const {
    float* scores = tile.scores + row * kKeys;
    int64_t from = start_of_row(tile.first + row) - first, to = end_of_row(tile.first + row) - first;
    from = from < 0 ? 0 : from > keys ? keys : from;
    to = to > keys ? keys : to;
    for (int64_t t = 0; t < from; ++t) scores[t] = 0;
    for (int64_t t = to < from ? from : to; t < keys; ++t) scores[t] = 0;
    if (to <= from) return;
    if (call.softcap > 0) {
      // c * tanh(z / c) = c * (2 / (1 + e^(-2 z / c)) - 1)
      for (int64_t t = from; t < to; ++t) {
        float some[I::kWidth];
        const V doubled = I::all(2 * scores[t] / call.softcap);
        I::store(some, I::sub(times_sigmoid<I>(I::all(2.0f), doubled), I::all(1.0f)));
        scores[t] = call.softcap * some[0];
      }
    }
    float top = tile.largest[row];
    for (int64_t t = from; t < to; ++t) top = scores[t] > top ? scores[t] : top;
    float factor[I::kWidth];
    I::store(factor, exponential<I>(I::all(tile.largest[row] - top)));
    if (tile.largest[row] == -__builtin_inff()) factor[0] = 0;
    tile.largest[row] = top;
    float* sums = tile.sums + row * padded_width;
    for (int64_t k = 0; k < padded_width; k += I::kWidth) {
      I::store(sums + k, I::mul(I::load(sums + k), I::all(factor[0])));
    }
    float total_weight = 0;
    int64_t t = from;
    V added = I::zero();
    for (; t + I::kWidth <= to; t += I::kWidth) {
      const V weights = exponential<I>(I::sub(I::load(scores + t), I::all(top)));
      I::store(scores + t, weights);
      added = I::add(added, weights);
    }
    if (t < to) {
      alignas(64) float some[I::kWidth];
      for (int64_t i = 0; i < I::kWidth; ++i) some[i] = t + i < to ? scores[t + i] : top;
      I::store(some, exponential<I>(I::sub(I::load(some), I::all(top))));
      for (int64_t i = 0; t + i < to; ++i) total_weight += scores[t + i] = some[i];
    }
    tile.weight[row] = tile.weight[row] * factor[0] + total_weight + I::sum(added);
  }

  // Adds the weighted values to the sums of kCount rows, kVectors vectors of them from `column` on.
  template <int kCount, int kVectors, class From>
  void add_values(Tile& tile, int64_t row, int64_t column, const From* from, int64_t stride, int64_t keys) const {
    V sums[kCount][kVectors];
    float* out = tile.sums + row * padded_width + column;
    const float* weights = tile.scores + row * kKeys;
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = I::load(out + r * padded_width + v * I::kWidth);
    }
    for (int64_t t = 0; t < keys; ++t) {
      V some[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) some[v] = I::load(from + t * stride + column + v * I::kWidth);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
        const V weight = I::all(weights[r * kKeys + t]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = I::fma(weight, some[v], sums[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) I::store(out + r * padded_width + v * I::kWidth, sums[r][v]);
    }
  }

  template <int kCount, class From>
  void add_row_values(Tile& tile, int64_t row, const From* from, int64_t stride, int64_t keys) const {
    constexpr int kVectors = 2;
    int64_t column = 0;
    for (; column + kVectors * I::kWidth <= padded_width; column += kVectors * I::kWidth) {
      add_values<kCount, kVectors>(tile, row, column, from, stride, keys);
    }
    if (column < padded_width) add_values<kCount, 1>(tile, row, column, from, stride, keys);
  }

  // Calls f with a number of rows known when compiled, and the first of them, for all rows of a tile.
  template <int kMost, class F>
  static void each_rows(int64_t count, F f) {
    int64_t row = 0;
    for (; row + kMost <= count; row += kMost) f(std::integral_constant<int, kMost>(), row);
    if constexpr (kMost > 1) {
      each_rows<kMost / 2>(count - row, [&](auto few, int64_t at) { f(few, row + at); });
    }
  }

  template <class From>
  void attend_keys(Tile& tile, const From* keys, const From* values, int64_t stride, int64_t first, int64_t count) {
    each_rows<2>(tile.count, [&](auto some, int64_t row) { score_rows<some>(tile, row, keys, stride, count); });
    for (int64_t row = 0; row < tile.count; ++row) weigh(tile, row, first, count);
    each_rows<4>(tile.count, [&](auto some, int64_t row) { add_row_values<some>(tile, row, values, stride, count); });
  }

  // One task: rows of a block of queries, over a span of keys.
  void attend(int64_t task) {
    const int64_t span = task % spans, block = task / spans % blocks, kv_head = task / spans / blocks;
    Tile tile;
    tile.first = block * rows_of_task;
    tile.count = rows - tile.first < rows_of_task ? rows - tile.first : rows_of_task;
    tile.queries = queries + (kv_head * rows + tile.first) * padded_width;
    memset(tile.sums, 0, static_cast<size_t>(tile.count * padded_width) * sizeof(float));
    for (int64_t row = 0; row < tile.count; ++row) {
      tile.largest[row] = -__builtin_inff();
      tile.weight[row] = 0;
    }
    int64_t first = start_of_row(tile.first), end = end_of_row(tile.first + tile.count - 1);
    if (spans > 1) {
      first = first > span * kSpan ? first : span * kSpan;
      end = end < (span + 1) * kSpan ? end : (span + 1) * kSpan;
    }
    for (; first < end; first += keys_at_a_time) {
      const int64_t count = end - first < keys_at_a_time ? end - first : keys_at_a_time;
      const E *keys = slot(call.present_key, kv_head, first), *values = slot(call.present_value, kv_head, first);
      if (padded_width == call.width) {
        attend_keys(tile, keys, values, call.width, first, count);
        continue;
      }
      for (int64_t t = 0; t < count; ++t) {
        widen<I>(keys + t * call.width, tile.keys + t * padded_width, call.width);
        widen<I>(values + t * call.width, tile.values + t * padded_width, call.width);
      }
      attend_keys<float>(tile, tile.keys, tile.values, padded_width, first, count);
    }
    for (int64_t row = 0; row < tile.count; ++row) {
      float* sums = tile.sums + row * padded_width;
      if (spans == 1) {
        write(kv_head, tile.first + row, sums, tile.weight[row]);
        continue;
      }
      float* out = partial + (task * rows_of_task + row) * (padded_width + kTail);
      memcpy(out, sums, static_cast<size_t>(padded_width) * sizeof(float));
      out[padded_width] = tile.largest[row];
      out[padded_width + 1] = tile.weight[row];
    }
  }

  // Divides a row's sum by its weight, and writes it.
  void write(int64_t kv_head, int64_t row, float* sums, float weight) const {
    const V divisor = I::all(weight);
    for (int64_t k = 0; k < padded_width; k += I::kWidth) I::store(sums + k, I::div(I::load(sums + k), divisor));
    const int64_t head = kv_head * group + row % group;
    narrow<I>(sums, call.element, call.y, (row / group * call.heads + head) * call.width, call.width);
  }

  // One task: the results of all spans of a row.
  void merge(int64_t task) {
    const int64_t row = task % rows, kv_head = task / rows, block = row / rows_of_task;
    const int64_t stride = padded_width + kTail;
    const auto of_span = [&](int64_t span) {
      return partial + (((kv_head * blocks + block) * spans + span) * rows_of_task + row % rows_of_task) * stride;
    };
    float top = -__builtin_inff();
    for (int64_t span = 0; span < spans; ++span) {
      const float largest = of_span(span)[padded_width];
      top = largest > top ? largest : top;
    }
    alignas(64) float sums[kMostHeadWidth + 16];
    memset(sums, 0, static_cast<size_t>(padded_width) * sizeof(float));
    float weight = 0;
    for (int64_t span = 0; span < spans; ++span) {
      const float* some = of_span(span);
      if (some[padded_width + 1] == 0) continue;  // no key of the span is this row's
      float factor[I::kWidth];
      I::store(factor, exponential<I>(I::all(some[padded_width] - top)));
      weight += factor[0] * some[padded_width + 1];
      for (int64_t k = 0; k < padded_width; k += I::kWidth) {
        I::store(sums + k, I::fma(I::all(factor[0]), I::load(some + k), I::load(sums + k)));
      }
    }
    write(kv_head, row, sums, weight);
  }

  // Runs a step for each index, on this thread alone where that is less than waking others.
  template <void (CachedAttention::*step)(int64_t)>
  void run_step(const ParallelFor& parallel, int64_t tasks, int64_t products) {
    if (products > kFewProducts && tasks > 1) return run_each<CachedAttention, step>(*this, parallel, tasks);
    for (int64_t task = 0; task < tasks; ++task) (this->*step)(task);
  }

  void run(const ParallelFor& parallel) {
    const size_t cache = static_cast<size_t>(call.kv_heads * call.capacity * call.width) * sizeof(E);
    if (call.present_key != call.past_key) memcpy(call.present_key, call.past_key, cache);
    if (call.present_value != call.past_value) memcpy(call.present_value, call.past_value, cache);
    run_step<&CachedAttention::take_token>(parallel, call.sequence, call.sequence * call.heads * call.width);
    run_step<&CachedAttention::attend>(parallel, call.kv_heads * blocks * spans,
                                       call.sequence * call.heads * call.width * total);
    if (spans > 1) run_step<&CachedAttention::merge>(parallel, call.kv_heads * rows, rows * spans * call.width);
  }
};

template <class I>
size_t cached_attention_workspace(const CachedAttentionCall& call) {
  return with_element(call.element,
                      [&](auto value) { return CachedAttention<I, decltype(value)>::workspace_bytes(call); });
}

template <class I>
void cached_attention(const CachedAttentionCall& call, void* workspace, const ParallelFor& parallel) {
  with_element(call.element,
               [&](auto value) { CachedAttention<I, decltype(value)>(call, first_line(workspace)).run(parallel); });
}

}  // namespace clada
