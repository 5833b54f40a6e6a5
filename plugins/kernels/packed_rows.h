// Quantized weights as the CPU kernels hold them: the bytes of the model's file in another order.
//
// A row is cut into groups of 32 weights, and groups are taken kWidth at a time, a stripe: lane l of each of a stripe's
// vectors holds weights of group l, so that what a stripe sums is scaled once. A vector of 4-bit codes holds eight
// weights of each group, one of bytes four. The last stripe has as many lanes as there are groups left. The row's
// scales follow its codes.
#pragma once
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "kernels.h"
#include "workspace.h"

namespace clada {

constexpr int64_t kGroupWeights = 32;

// Of a half of a vector of 4-bit codes, which of eight outputs its nibbles are of, the lowest first; those of the upper
// half are two further on.
constexpr int kNibbleOutputs[] = {0, 4, 1, 5};

// Calls f<kBits>.
template <class F>
auto with_bits(int32_t bits, F f) {
  return bits == 4 ? f(std::integral_constant<int, 4>()) : f(std::integral_constant<int, 8>());
}

template <class I, int kBits>
struct PackedRows {
  using V = typename I::V;
  using Row = const uint8_t*;
  static constexpr int kCodeBits = kBits;
  static constexpr int64_t kSpan = kGroupWeights * I::kWidth;  // weights of a stripe
  static constexpr bool kPaired = I::kFastPairs;               // see OutwardProducts
  static constexpr int64_t kVectors = kBits;                   // of a stripe: 32 * bits / 32
  static constexpr int64_t kSteps = kGroupWeights / kVectors;  // weights of a group in a vector
  static constexpr int64_t kStripeBytes = kVectors * I::kWidth * 4;

  // Values needed repeatedly are computed once: a division takes as long as many weights.
  Row data;
  int64_t width, stride, stripes;
  int scale_groups_log2;  // groups that share a scale

  // Rows of `step` matrices take turns.
  PackedRows(const void* given, int64_t given_width, int64_t block_size, int64_t step)
      : data(static_cast<Row>(given)),
        width(given_width),
        stride(row_bytes(given_width, block_size) * step),
        stripes((given_width + kSpan - 1) / kSpan),
        scale_groups_log2(block_size == kGroupWeights ? 0 : 2) {}

  static int64_t row_bytes(int64_t width, int64_t block_size) {
    return (width * kBits / 8 + width / block_size * 2 + kLine - 1) / kLine * kLine;
  }
  Row row(int64_t i) const { return data + i * stride; }

  // Where in a stripe's outputs, [32][kWidth], weight i of the stripe is.
  static int64_t place(int64_t i) {
    const int64_t lane = i / kGroupWeights, k = i % kGroupWeights;
    return (kBits == 4 ? k / 8 * 8 + k % 2 * 4 + k % 8 / 2 : k) * I::kWidth + lane;
  }

  // Groups of a stripe.
  int lanes(int64_t stripe) const {
    const int64_t left = width / kGroupWeights - stripe * I::kWidth;
    return static_cast<int>(left < I::kWidth ? left : I::kWidth);
  }
  // A vector of a stripe, kWhole where all its lanes are there: else the others hold anything. Prefetches the same
  // place of `next`.
  template <bool kWhole>
  static typename I::Ints vector(Row row, Row next, int64_t stripe, int64_t k, int lanes) {
    const int64_t at = stripe * kStripeBytes + k * (kWhole ? I::kWidth : lanes) * 4;
    __builtin_prefetch(next + at, 0, 3);
    return I::load_ints(row + at);
  }
  // The scale of each group of a stripe, zero where there is no group; those of `next` are prefetched.
  template <bool kWhole>
  V scales(Row row, Row next, int64_t stripe, int lanes) const {
    const int64_t at = width * kBits / 8 + (stripe * I::kWidth >> scale_groups_log2) * 2;
    __builtin_prefetch(next + at, 0, 3);
    const V loaded = I::load(reinterpret_cast<const Float16*>(row + at));
    const V scale = scale_groups_log2 == 0 ? loaded : I::four_times(loaded);
    if (kWhole) return scale;
    // A copy of those that are there would be read before it has been written.
    static constexpr float kLanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static_assert(I::kWidth <= 16, "each lane has a number");
    return I::select(I::less(I::load(kLanes), I::all(static_cast<float>(lanes))), scale, I::zero());
  }
  // Codes of the groups at one of a vector's steps.
  static V codes(typename I::Ints vector, int64_t step) {
    if constexpr (kBits == 4) return I::nibble(vector, static_cast<int>(step / 4 * 4 + step % 4 * 8));
    return I::byte(vector, static_cast<int>(step * 8));
  }

  // Weights [k, k + count) of a row in the order of place(), k and count multiples of kWidth.
  void widen(Row row, int64_t k, int64_t count, float* out) const {
    for (int64_t at = k; at < k + count; at += I::kWidth, out += I::kWidth) {
      const int64_t stripe = at / kSpan, step = at % kSpan / I::kWidth;
      const int here = stripe < stripes ? lanes(stripe) : 0;
      V weights = I::zero();
      if (here == I::kWidth) {
        weights = I::mul(codes(vector<true>(row, row, stripe, step / kSteps, here), step % kSteps),
                         scales<true>(row, row, stripe, here));
      } else if (here > 0) {
        weights = I::mul(codes(vector<false>(row, row, stripe, step / kSteps, here), step % kSteps),
                         scales<false>(row, row, stripe, here));
      }
      I::store(out, weights);
    }
  }
  // Asks for `count` weights from k on to be brought near.
  template <int64_t count>
  static void prefetch(Row row, int64_t k) {
    for (int64_t i = 0; i < count * kBits / 8; i += kLine) __builtin_prefetch(row + k * kBits / 8 + i, 0, 2);
  }

  // Packs rows [first, last) of a matrix of the model's file, codes [rows, width * bits / 8] and scales [rows, width /
  // block_size], to `to`.
  static void pack(const PackedRows& to, int64_t first, int64_t last, int64_t block_size, const void* codes,
                   const void* scales) {
    const int64_t code_bytes = to.width * kBits / 8, scale_bytes = to.width / block_size * 2;
    if (to.width == 0) return;
    for (int64_t i = first; i < last; ++i) {
      uint8_t* out = const_cast<uint8_t*>(to.row(i));
      const uint8_t* from = static_cast<const uint8_t*>(codes) + i * code_bytes;
      for (int64_t stripe = 0; stripe < to.stripes; ++stripe) {
        const int64_t lanes = to.lanes(stripe);
        for (int64_t lane = 0; lane < lanes; ++lane, from += kVectors * 4) {
          uint32_t words[kVectors];
          memcpy(words, from, sizeof words);
          for (int64_t k = 0; k < kVectors; ++k) {
            if (kBits == 4) words[k] ^= 0x88888888u;  // the code + 8
            memcpy(out + stripe * kStripeBytes + (k * lanes + lane) * 4, words + k, 4);
          }
        }
      }
      memcpy(out + code_bytes, static_cast<const uint8_t*>(scales) + i * scale_bytes, static_cast<size_t>(scale_bytes));
    }
  }
};

// Has each of a number of rows packed by `pack(first, last)`, ranges of them by several threads.
template <class Pack>
void pack_ranges(int64_t rows, const ParallelFor& parallel, const Pack& pack) {
  static constexpr int64_t kTasks = 16;
  struct Work {
    int64_t rows;
    const Pack& pack;
  } work{rows, pack};
  parallel.run(
      parallel.pool, kTasks,
      [](void* data, size_t index) {
        const Work& given = *static_cast<const Work*>(data);
        const int64_t task = static_cast<int64_t>(index);
        given.pack(given.rows * task / kTasks, given.rows * (task + 1) / kTasks);
      },
      &work);
}

// The packed matrices of a feed-forward network: w_in, then w_up and w_out, whose rows of a neuron are read one soon
// after the other, and so take turns.
template <class I, int kBits>
struct PackedFfn {
  using Rows = PackedRows<I, kBits>;
  Rows w_in, w_up, w_out;

  PackedFfn(const SparseFfnCall& ffn, const void* packed)
      : w_in(packed, ffn.width, ffn.quantization.block_size, 1),
        w_up(w_in.row(ffn.neurons), ffn.width, ffn.quantization.block_size, 2),
        w_out(w_in.row(ffn.neurons) + (ffn.w_up ? w_in.stride : 0), ffn.width, ffn.quantization.block_size,
              ffn.w_up ? 2 : 1) {}

  // Bytes past the last row are read, not used.
  static size_t bytes(const SparseFfnCall& ffn) {
    const int64_t row = Rows::row_bytes(ffn.width, ffn.quantization.block_size);
    return static_cast<size_t>((ffn.w_up ? 3 : 2) * ffn.neurons * row + kLine);
  }
  static void pack(const SparseFfnCall& ffn, void* packed, const ParallelFor& parallel) {
    const PackedFfn to(ffn, packed);
    const int64_t block_size = ffn.quantization.block_size;
    memset(static_cast<uint8_t*>(packed) + bytes(ffn) - kLine, 0, kLine);
    pack_ranges(ffn.neurons, parallel, [&](int64_t first, int64_t last) {
      Rows::pack(to.w_in, first, last, block_size, ffn.w_in, ffn.s_in);
      if (ffn.w_up) Rows::pack(to.w_up, first, last, block_size, ffn.w_up, ffn.s_up);
      Rows::pack(to.w_out, first, last, block_size, ffn.w_out, ffn.s_out);
    });
  }
};

}  // namespace clada
