// y = h . w for many tokens: as matrix products, every row of w.
//
// Terms (rows of w) are taken in groups of panels, and for each group y += h times the panel's rows, a task for each
// strip of columns. Weights are read from memory once for each block of tokens and converted to float32 in pieces.
#pragma once
#include "kernels.h"
#include "paired_products.h"
#include "token_output.h"

namespace clada {

// sums[r, c] += sum over k < depth of a[r, k] * b[k, c], for I::kTileRows rows and kVectors vectors of columns; rows of
// b are as wide as a whole tile.
template <class I, int kVectors>
void multiply_tile(const float* a, int64_t a_stride, const float* b, int64_t depth, float* sums, int64_t stride) {
  using V = typename I::V;
  constexpr int kRows = I::kTileRows, kColumns = I::kTileVectors * I::kWidth;
  V s[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) s[r][v] = I::load(sums + r * stride + v * I::kWidth);
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = I::load(b + k * kColumns + v * I::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V left = I::all(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) s[r][v] = I::fma(left, right[v], s[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) I::store(sums + r * stride + v * I::kWidth, s[r][v]);
  }
}

static inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Runs `step` of an object for each index below a count.
template <class Object, void (Object::*step)(int64_t)>
void run_each(Object& object, const ParallelFor& parallel, int64_t count) {
  parallel.run(
      parallel.pool, static_cast<size_t>(count),
      [](void* data, size_t index) { (static_cast<Object*>(data)->*step)(static_cast<int64_t>(index)); }, &object);
}

template <class I, class Rows>
struct OutwardProducts {
  static constexpr int64_t kRows = I::kTileRows, kColumns = I::kTileVectors * I::kWidth;  // of a tile of products
  static constexpr int64_t kTokens = Rows::kPaired ? kPairedTokens : kRows;               // of a tile
  static constexpr int64_t kBlock = 512;                                                  // tokens at a time
  static constexpr int64_t kPanel = 240;                                                  // terms at a time
  static constexpr int64_t kStrip = 64;                                                   // columns a task
  static constexpr int64_t kGroup = 8;                                                    // panels at a time
  static_assert(kStrip % kColumns == 0, "tiles fill their blocks");
  // Whether a span is of several strips, so that none can be put in order before all are there.
  static constexpr bool kScattered = kColumns % Rows::kSpan != 0;
  static_assert(kScattered ? Rows::kSpan % kStrip == 0 : kStrip % Rows::kSpan == 0, "spans fill their blocks");

  Rows w;  // [terms, width]
  int64_t terms;
  TokenOutput<I, Rows> output;
  int64_t panels, strips;
  float* h;                        // [panels][tokens][kPanel]
  float* y;                        // [strips][tokens][kStrip]
  int64_t start, count;            // the current block of tokens
  int64_t rows_up;                 // its size rounded up to whole tiles
  int64_t first_panel, end_panel;  // the current group of terms

  static int64_t block_of(int64_t tokens) { return tokens < kBlock ? tokens : kBlock; }

  static size_t workspace_floats(int64_t tokens, int64_t terms, int64_t width) {
    return static_cast<size_t>(round_up(block_of(tokens), kTokens) *
                               (round_up(terms, kPanel) + round_up(whole_spans<Rows>(width), kStrip)));
  }

  OutwardProducts(const Rows& given_w, int64_t given_terms, const TokenOutput<I, Rows>& given_output, int64_t tokens,
                  float* workspace)
      : w(given_w), terms(given_terms), output(given_output) {
    panels = round_up(terms, kPanel) / kPanel;
    strips = round_up(whole_spans<Rows>(output.width), kStrip) / kStrip;
    h = workspace;
    y = h + round_up(block_of(tokens), kTokens) * panels * kPanel;
  }

  void begin_block(int64_t first_token, int64_t tokens) {
    start = first_token;
    count = block_of(tokens - start);
    rows_up = round_up(count, kTokens);
  }

  void begin_group(int64_t panel) {
    first_panel = panel;
    end_panel = panel + kGroup < panels ? panel + kGroup : panels;
  }

  // h of a token of the block for the terms of a panel.
  float* panel_of_token(int64_t panel, int64_t token) const { return h + (panel * rows_up + token) * kPanel; }

  // y += h times the group's rows; after the last group y is written.
  void multiply_group(const ParallelFor& parallel) {
    if constexpr (Rows::kPaired) {
      run_each<OutwardProducts, &OutwardProducts::multiply_stripe>(*this, parallel, strips * kStrip / Rows::kSpan);
    } else {
      run_each<OutwardProducts, &OutwardProducts::multiply_strip>(*this, parallel, strips);
    }
    if (kScattered && end_panel == panels) {
      run_each<OutwardProducts, &OutwardProducts::write_token>(*this, parallel, count);
    }
  }

 private:
  // One task: adds the group's part to kStrip columns of y, and writes them after the last group.
  void multiply_strip(int64_t strip) {
    alignas(64) float right[kPanel * kStrip];
    const int64_t first = strip * kStrip, tiles = rows_up / kRows;
    float* sums = y + strip * rows_up * kStrip;
    if (first_panel == 0) memset(sums, 0, static_cast<size_t>(rows_up * kStrip) * sizeof(float));
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t terms_left = terms - panel * kPanel, depth = terms_left < kPanel ? terms_left : kPanel;
      widen_panel(panel, first, depth, right);
      const float* left = panel_of_token(panel, 0);
      for (int64_t c = 0; c < kStrip; c += kColumns) {
        for (int64_t i = 0; i < tiles; ++i) {
          prefetch_panel(panel + 1, first, c / kColumns * tiles + i, kStrip / kColumns * tiles);
          multiply_tile<I, I::kTileVectors>(left + i * kRows * kPanel, kPanel, right + c * kPanel, depth,
                                            sums + i * kRows * kStrip + c, kStrip);
        }
      }
    }
    if (kScattered || end_panel < panels) return;
    const int64_t left_over = output.width - first, wide = left_over < kStrip ? left_over : kStrip;
    for (int64_t t = 0; t < count; ++t) output.write(start + t, first, wide, sums + t * kStrip);
  }

  // One task: adds the group's part to a stripe's columns of y, codes not dequantized but multiplied as pairs.
  void multiply_stripe(int64_t stripe) {
    using Products = PairedProducts<I, Rows::kCodeBits>;
    static_assert(kPanel % Products::kDepth == 0, "tiles fill their blocks");
    alignas(64) Products products;
    constexpr int64_t kStrips = Rows::kSpan / kStrip, kVectors = kStrip / I::kWidth;
    float* sums = y + stripe * kStrips * rows_up * kStrip;
    if (first_panel == 0) memset(sums, 0, static_cast<size_t>(kStrips * rows_up * kStrip) * sizeof(float));
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      for (int64_t at = 0; at < kPanel && panel * kPanel + at < terms; at += Products::kDepth) {
        const int64_t first = panel * kPanel + at, left = terms - first;
        products.take(w, first, left < Products::kDepth ? left : Products::kDepth, stripe);
        for (int64_t token = 0; token < rows_up; token += Products::kTokens) {
          products.multiply(panel_of_token(panel, token) + at, kPanel, [&](int64_t t, int64_t vector) {
            return sums + (vector / kVectors * rows_up + token + t) * kStrip + vector % kVectors * I::kWidth;
          });
        }
      }
    }
  }

  // One task: puts the strips of a token together to spans, and writes those.
  void write_token(int64_t t) {
    constexpr int64_t kSpan = Rows::kSpan;
    alignas(64) float sums[kSpan];
    for (int64_t first = 0; first < output.width; first += kSpan) {
      for (int64_t k = 0; k < kSpan; k += kStrip) {
        memcpy(sums + k, y + ((first + k) / kStrip * rows_up + t) * kStrip, kStrip * sizeof(float));
      }
      const int64_t left_over = output.width - first;
      output.write(start + t, first, left_over < kSpan ? left_over : kSpan, sums);
    }
  }

  // Widens columns [first, first + kStrip) of the first `depth` rows of a panel to out, [kStrip /
  // kColumns][kPanel][kColumns].
  void widen_panel(int64_t panel, int64_t first, int64_t depth, float* out) const {
    for (int64_t i = 0; i < depth; ++i) {
      const typename Rows::Row row = w.row(panel * kPanel + i);
      for (int64_t c = 0; c < kStrip; c += kColumns) {
        w.widen(row, first + c, kColumns, out + (c / kColumns * kPanel + i) * kColumns);
      }
    }
  }

  void prefetch_panel(int64_t panel, int64_t first, int64_t step, int64_t steps) const {
    for (int64_t i = kPanel * step / steps; i < kPanel * (step + 1) / steps; ++i) {
      const int64_t term = panel * kPanel + i;
      if (term < terms) Rows::template prefetch<kStrip>(w.row(term), first);
    }
  }
};

}  // namespace clada
