// Gate and up projections: products with the rows of the pool, activation, threshold, and for each kept neuron the
// product with its row of w_up. A block takes kBlockNeurons neurons; its warps take whole rows, and share them anew
// once it is known which are kept, so that none waits for a warp whose neurons are all kept.
#include <launch.cuh>

#include "activations.cuh"
#include "reduce.cuh"
#include "rows.cuh"
#include "rowwise.h"

namespace clada::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStagedFloats = 4096;  // of x in shared memory: 16 KB, so that 7 blocks fit

// Blocks of a multiprocessor; fewer beside codes, which take registers to become weights.
constexpr int resident_blocks(bool quantized, int tokens) {
  if (quantized) return tokens == 1 ? 7 : tokens == 2 ? 4 : tokens == 4 ? 3 : 2;
  return tokens <= 2 ? 7 : tokens == 4 ? 4 : 3;
}

// W is the format of the weights: an element type, Int8 or Int4.
template <class W, int kTokens>
struct Shape {
  // A load of codes is of 16 bytes, less where so many columns of all tokens could not be staged.
  using Rows = typename RowsOf < W, std::is_same_v<W, Int4>&& kTokens<8 ? 32 : 16>::type;
  // Rows of a warp at a time. Each value of x that is read from shared memory serves all of them; with one token there
  // is little to read, and fewer rows leave less to be done alone by the warp that gets an odd one.
  static constexpr int kRows = kTokens <= 2 ? 2 : 4;
  static constexpr int kColumns = kStagedFloats / kTokens;  // of x that are staged at a time
  static constexpr int kSpan = kWarp * Rows::kWeights;      // columns that a warp loads at a time
  static constexpr int kResident = resident_blocks(kIsQuantized<W>, kTokens);
  // Loads of a thread that are under way at once. With 28 warps a multiprocessor has 112 KB under way at most, and even
  // where half of the warps wait for something else still what an H200's bandwidth times its latency asks for (33 KB).
  static constexpr int kLoads = kIsQuantized<W> && kTokens <= 2 ? 4 : 8;
  static_assert(kColumns % kSpan == 0, "whole spans are staged");
  // Four columns of x are a float4: one of each lane, such that neighboring lanes read neighboring float4s, then the
  // next of each. Where a lane has many, a gap makes those that are written at once lie in different banks.
  static constexpr int kFours = Rows::kWeights / 4;
  static constexpr int kPitch = kFours > 2 ? kWarp + 8 / kFours : kWarp;
  static constexpr int kSpanPlaces = kFours * kPitch;
  using StagedX = SharedArray<float4, kStagedFloats / kSpan * kSpanPlaces>;

  // Where the four columns from `column` on lie.
  static __device__ __forceinline__ int place(int column) {
    const int span = column / kSpan, rest = column % kSpan;
    return span * kSpanPlaces + rest % Rows::kWeights / 4 * kPitch + rest / Rows::kWeights;
  }
};
template <class W, int kTokens>
using StagedX = typename Shape<W, kTokens>::StagedX;

template <bool kVectors, class E>
__device__ __forceinline__ float4 load_four(const E* x, int count) {
  E some[4];
  if constexpr (kVectors) {
    if constexpr (sizeof(E) == 4) {
      const uint4 packed = *reinterpret_cast<const uint4*>(x);
      memcpy(some, &packed, sizeof some);
    } else {
      const uint2 packed = *reinterpret_cast<const uint2*>(x);
      memcpy(some, &packed, sizeof some);
    }
  } else {
    for (int i = 0; i < 4; ++i) some[i] = i < count ? x[i] : from_float<E>(0.0f);
  }
  return make_float4(to_float(some[0]), to_float(some[1]), to_float(some[2]), to_float(some[3]));
}

// Brings columns [first, first + kColumns) of all tokens to shared memory in float32, zeros beyond the width.
template <class W, class E, int kTokens, bool kVectors>
__device__ __forceinline__ void stage(const Rowwise& call, int first, StagedX<W, kTokens>& staged) {
  using S = Shape<W, kTokens>;
  constexpr int kColumns = S::kColumns, kStep = 4 * kThreads;
  static_assert(kColumns % kStep == 0, "a step is of one token");
  static_assert(kStep % S::kSpan == 0 || S::kSpan % kStep == 0, "steps are whole spans, or whole steps a span");
  const E* x = static_cast<const E*>(call.x);
  const int of_thread = 4 * static_cast<int>(threadIdx.x), left = call.width - first;
  const int place = S::place(of_thread);
#pragma unroll
  for (int step = 0; step < kStagedFloats; step += kStep) {
    const int token = step / kColumns, column = step % kColumns + of_thread;
    float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (token < call.tokens && column < left) {
      values = load_four<kVectors>(x + token * call.width + first + column, left - column);
    }
    staged[place + step / S::kSpan * S::kSpanPlaces + step % S::kSpan / S::Rows::kWeights] = values;
  }
}

// Adds the products of rows with the staged columns to a lane's sums; a null row is passed over.
template <class W, int kTokens, bool kVectors, class Rows, int kRows>
__device__ __forceinline__ void add_products(const Rows& rows, const typename Rows::Row (&row)[kRows], int first,
                                             const StagedX<W, kTokens>& staged, float (&sums)[kRows][kTokens]) {
  using S = Shape<W, kTokens>;
  constexpr int kWeights = Rows::kWeights, kAtOnce = kVectors ? S::kLoads / kRows : 1;
  const int left = rows.width - first, end = left < S::kColumns ? left : S::kColumns;
  for (int span = 0; span < end; span += kAtOnce * S::kSpan) {
    typename Rows::Packed packed[kAtOnce][kRows];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        packed[i][r] = {};
        const int column = first + span + i * S::kSpan + lane_index() * kWeights;
        if (row[r]) packed[i][r] = rows.template load<kVectors>(row[r], column);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (span + i * S::kSpan >= end) continue;  // nothing is staged there
#pragma unroll
      for (int four = 0; four < kWeights / 4; ++four) {
        float weights[kRows][4];
#pragma unroll
        for (int r = 0; r < kRows; ++r) rows.widen(packed[i][r], four, weights[r]);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const int staged_span = t * (S::kColumns / S::kSpan) + span / S::kSpan + i;
          const float4 x = staged[staged_span * S::kSpanPlaces + four * S::kPitch + lane_index()];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[r][t] = fmaf(weights[r][0], x.x, sums[r][t]);
            sums[r][t] = fmaf(weights[r][1], x.y, sums[r][t]);
            sums[r][t] = fmaf(weights[r][2], x.z, sums[r][t]);
            sums[r][t] = fmaf(weights[r][3], x.w, sums[r][t]);
          }
        }
      }
    }
  }
}

// The place of the set bit of `bits` that has `before` set bits below it, or -1.
__device__ __forceinline__ int nth_bit(unsigned bits, int before) {
  for (int i = 0; i < before; ++i) bits &= bits - 1;
  return __ffs(static_cast<int>(bits)) - 1;
}

// The products of all tokens with the rows of those of the block's neurons that are `wanted`, a bit each.
template <class W, int kTokens, bool kVectors>
__device__ void rows_products(const Rowwise& call, const Weights& matrix, unsigned wanted, bool& is_staged,
                              StagedX<W, kTokens>& staged, SharedArray<float, kBlockNeurons * kTokens>& products) {
  using S = Shape<W, kTokens>;
  using Rows = typename S::Rows;
  constexpr int kRows = S::kRows;
  const Rows rows(matrix, call);
  const int first_neuron = static_cast<int>(blockIdx.x) * kBlockNeurons, count = __popc(wanted);
  for (int first = 0; first < count; first += kWarps * kRows) {
    int neuron[kRows];
    typename Rows::Row row[kRows];
    float sums[kRows][kTokens];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      neuron[r] = nth_bit(wanted, first + r * kWarps + warp_index());
      row[r] = neuron[r] < 0 ? typename Rows::Row() : rows.row(first_neuron + neuron[r]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sums[r][t] = 0.0f;
    }
    for (int column = 0; column < call.width; column += S::kColumns) {
      if (!is_staged || call.width > S::kColumns) {
        __syncthreads();  // all have read what was staged before
        with_x_type<W>(call, [&](auto* of) {
          stage<W, std::remove_pointer_t<decltype(of)>, kTokens, kVectors>(call, column, staged);
        });
        __syncthreads();
        is_staged = true;
      }
      add_products<W, kTokens, kVectors>(rows, row, column, staged, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float sum = warp_sum(sums[r][t]);
        if (lane_index() == 0 && neuron[r] >= 0) products[neuron[r] * kTokens + t] = sum;
      }
    }
  }
}

template <class W, int kTokens, bool kVectors>
__device__ __forceinline__ void gate_up_block(const Rowwise& call, StagedX<W, kTokens>& staged,
                                              SharedArray<float, kBlockNeurons * kTokens>& gates,
                                              SharedArray<float, kBlockNeurons * kTokens>& ups,
                                              SharedArray<unsigned, kTokens>& kept_by) {
  const int block = static_cast<int>(blockIdx.x), neuron = block * kBlockNeurons + lane_index();
  const bool is_neuron = lane_index() < kBlockNeurons && neuron < call.neurons;
  if (block == 0) {
    // A workspace comes as it is.
    for (int tile = static_cast<int>(threadIdx.x); tile < call.tiles; tile += kThreads) call.tickets[tile] = 0;
  }

  // Each warp finds out for itself which neurons are in a pool; lanes are neurons.
  unsigned in_pool_of = 0;  // a bit for each token
  float threshold = 0.0f, bias = 0.0f;
  if (is_neuron) {
    threshold = call.threshold[neuron];
    with_x_type<W>(call, [&](const auto* b_in) {
      b_in = static_cast<decltype(b_in)>(call.b_in);
      if (b_in) bias = to_float(b_in[neuron]);
    });
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t < call.tokens && call.scale[t] >= 0.0f &&
          call.pool[static_cast<int64_t>(t / call.sequence) * call.neurons + neuron] != 0) {
        in_pool_of |= 1u << t;
      }
    }
  }
  bool is_staged = false;
  rows_products<W, kTokens, kVectors>(call, call.w_in, __ballot_sync(kWholeWarp, in_pool_of != 0), is_staged, staged,
                                      gates);
  __syncthreads();

  // From here on a warp has every kWarps-th token.
  constexpr int kOfWarp = (kTokens + kWarps - 1) / kWarps;
  float a[kOfWarp];
#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    const int t = i * kWarps + warp_index();
    a[i] = 0.0f;
    bool kept = false;
    if (t < kTokens && (in_pool_of >> t & 1)) {
      a[i] = activate(call.activation, gates[lane_index() * kTokens + t] + bias);
      kept = is_kept(a[i], call.scale[t], threshold);
    }
    const unsigned mask = __ballot_sync(kWholeWarp, kept);
    if (lane_index() == 0 && t < kTokens) kept_by[t] = mask;
  }
  __syncthreads();
  unsigned kept_by_some = 0;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) kept_by_some |= kept_by[t];
  if (call.w_up.data) {
    rows_products<W, kTokens, kVectors>(call, call.w_up, kept_by_some, is_staged, staged, ups);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kOfWarp; ++i) {
    const int t = i * kWarps + warp_index();
    if (t >= kTokens) break;
    const unsigned kept = kept_by[t];
    float h = 0.0f;
    if (kept >> lane_index() & 1) h = call.w_up.data ? a[i] * ups[lane_index() * kTokens + t] : a[i];
    if (is_neuron) call.h[static_cast<int64_t>(neuron) * kTokens + t] = h;
    const float energy = warp_sum(h * h);
    if (lane_index() == 0) {
      call.energy[block * kTokens + t] = energy;
      call.active[block * kTokens + t] = __popc(kept);
    }
  }
  if (threadIdx.x == 0) call.kept[block] = static_cast<uint16_t>(kept_by_some);
}

template <class W, int kTokens>
__global__ void __launch_bounds__(kThreads, Shape<W, kTokens>::kResident) gate_up(const Rowwise call) {
  __shared__ StagedX<W, kTokens> staged;
  __shared__ SharedArray<float, kBlockNeurons * kTokens> gates, ups;
  __shared__ SharedArray<unsigned, kTokens> kept_by;  // a token, a bit for each neuron
  if (call.vectors) {
    gate_up_block<W, kTokens, true>(call, staged, gates, ups, kept_by);
  } else {
    gate_up_block<W, kTokens, false>(call, staged, gates, ups, kept_by);
  }
}

}  // namespace

cudaError_t launch_gate_up(const Rowwise& call, cudaStream_t stream) {
  return with_weights(call, [&](auto* of) {
    return with_tokens(call.padded, [&](auto tokens) {
      using W = std::remove_pointer_t<decltype(of)>;
      return launch(gate_up<W, decltype(tokens)::kTokens>, call.blocks, kThreads, stream, call);
    });
  });
}

}  // namespace clada::cuda
