// Down projection: y as the sum of the kept rows of w_out, each times its h. A block takes the columns of a tile and a
// split of the kept rows; the last block of a tile to finish adds the splits up, in order. A few more blocks write
// `active` and `score`.
#include <launch.cuh>

#include "reduce.cuh"
#include "rows.cuh"
#include "rowwise.h"

namespace clada::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsAtOnce = kThreads / kTileLanes;
constexpr int kListed = 512;  // kept rows whose numbers and h are in shared memory at a time
constexpr int kMasks = 4;     // of `kept` that a thread looks at at a time
constexpr int kWindow = kThreads * kMasks;

// W is the format of the weights: an element type, Int8 or Int4.
template <class W, int kTokens>
struct Shape {
  using Rows = typename RowsOf<W, quantized_columns(std::is_same_v<W, Int4> ? 4 : 8, kTokens)>::type;
  static constexpr int kColumns = kTileLanes * Rows::kWeights;  // of a tile
  // Loads of a thread that are under way at once, as many as leave room for sums: 16 to 96 KB a multiprocessor, least
  // where codes meet many tokens, which take longer to compute than to read.
  static constexpr int kLoads = kIsQuantized<W> ? (std::is_same_v<W, Int4> && kTokens == 1 ? 4 : 8)
                                : kTokens == 1  ? 6
                                : kTokens <= 4  ? 8
                                                : 4;
};

// The bits of neurons [64 i, 64 i + 64), as two words.
__device__ __forceinline__ void kept_bits(const Rowwise& call, int i, unsigned (&words)[2]) {
  words[0] = words[1] = 0;
#pragma unroll
  for (int m = 0; m < kMasks; ++m) {
    const int mask = i * kMasks + m;
    if (mask < call.blocks) words[m / 2] |= static_cast<unsigned>(call.kept[mask]) << m % 2 * kBlockNeurons;
  }
}

// Adds listed rows' columns from `column` on, times their h, to a thread's sums.
template <class W, int kTokens, bool kVectors, class Rows>
__device__ __forceinline__ void add_rows(const Rows& rows, int column, int count,
                                         const SharedArray<int, kListed>& listed,
                                         const SharedArray<float, kListed * kTokens>& h,
                                         float (&sums)[kTokens][Rows::kWeights]) {
  constexpr int kWeights = Rows::kWeights, kLoads = kVectors ? Shape<W, kTokens>::kLoads : 1;
  for (int first = static_cast<int>(threadIdx.x) / kTileLanes; first < count; first += kLoads * kRowsAtOnce) {
    typename Rows::Packed packed[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = first + i * kRowsAtOnce;
      packed[i] = {};
      if (at < count) packed[i] = rows.template load<kVectors>(rows.row(listed[at]), column);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = first + i * kRowsAtOnce;
      if (at < count) {
#pragma unroll
        for (int four = 0; four < kWeights / 4; ++four) {
          float weights[4];
          rows.widen(packed[i], four, weights);
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            const float factor = h[at * kTokens + t];
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[t][4 * four + c] = fmaf(factor, weights[c], sums[t][4 * four + c]);
          }
        }
      }
    }
  }
}

template <class W, int kTokens, bool kVectors>
__device__ __forceinline__ void down_block(const Rowwise& call, SharedArray<int, kListed>& listed,
                                           SharedArray<float, kListed * kTokens>& h,
                                           SharedArray<float, kWarps * Shape<W, kTokens>::kColumns>& sums_of_warps,
                                           SharedArray<unsigned, kWarps>& of_warps, SharedArray<int, 1>& is_last) {
  using S = Shape<W, kTokens>;
  using Rows = typename S::Rows;
  constexpr int kWeights = Rows::kWeights;
  const int thread = static_cast<int>(threadIdx.x);
  const int tile = static_cast<int>(blockIdx.x) % call.tiles, split = static_cast<int>(blockIdx.x) / call.tiles;
  const Rows rows(call.w_out, call);
  const int column = tile * S::kColumns + thread % kTileLanes * kWeights;
  float sums[kTokens][kWeights];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int c = 0; c < kWeights; ++c) sums[t][c] = 0.0f;
  }

  unsigned words[2], kept = 0, all_kept;
  for (int window = 0; window < call.blocks; window += kWindow) {
    kept_bits(call, window / kMasks + thread, words);
    kept += __popc(words[0]) + __popc(words[1]);
  }
  sum_before(kept, of_warps, all_kept);
  // The split's share of all kept rows, however they are spread over the neurons.
  const unsigned share_first = static_cast<unsigned>(static_cast<uint64_t>(all_kept) * split / call.splits);
  const unsigned share_end = static_cast<unsigned>(static_cast<uint64_t>(all_kept) * (split + 1) / call.splits);

  unsigned window_first = 0;
  for (int window = 0; window < call.blocks && window_first < share_end; window += kWindow) {
    const int place = window / kMasks + thread;
    unsigned in_window;
    kept_bits(call, place, words);
    kept = __popc(words[0]) + __popc(words[1]);
    const unsigned before = window_first + sum_before(kept, of_warps, in_window), window_end = window_first + in_window;
    const unsigned end = window_end < share_end ? window_end : share_end;
    for (unsigned first = window_first < share_first ? share_first : window_first; first < end; first += kListed) {
      const unsigned count = end - first < kListed ? end - first : kListed;
      __syncthreads();  // what was listed before has been added
      if (before < first + count && before + kept > first) {
        unsigned number = before;
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          for (unsigned bits = words[w]; bits; bits &= bits - 1, ++number) {
            if (number - first < count) {
              listed[static_cast<int>(number - first)] = place * 64 + w * 32 + __ffs(static_cast<int>(bits)) - 1;
            }
          }
        }
      }
      __syncthreads();
      for (int i = thread; i < static_cast<int>(count) * kTokens; i += kThreads) {
        h[i] = call.h[static_cast<int64_t>(listed[i / kTokens]) * kTokens + i % kTokens];
      }
      __syncthreads();
      add_rows<W, kTokens, kVectors>(rows, column, static_cast<int>(count), listed, h, sums);
    }
    window_first = window_end;
  }

  // Add up over the block's rows: two in a warp, then its warps.
  const int64_t padded_width = static_cast<int64_t>(call.tiles) * S::kColumns;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int c = 0; c < kWeights; ++c) {
      const float sum = sums[t][c] + __shfl_xor_sync(kWholeWarp, sums[t][c], kTileLanes);
      if (lane_index() < kTileLanes) sums_of_warps[warp_index() * S::kColumns + lane_index() * kWeights + c] = sum;
    }
    __syncthreads();
    if (thread < S::kColumns) {
      float sum = 0.0f;
      for (int warp = 0; warp < kWarps; ++warp) sum += sums_of_warps[warp * S::kColumns + thread];
      call.sums[(static_cast<int64_t>(split) * kTokens + t) * padded_width + tile * S::kColumns + thread] = sum;
    }
    __syncthreads();
  }

  __threadfence();
  __syncthreads();
  if (thread == 0) {
    is_last[0] = atomicAdd(call.tickets + tile, 1u) == static_cast<unsigned>(call.splits - 1);
  }
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  for (int i = thread; i < call.tokens * S::kColumns; i += kThreads) {
    const int t = i / S::kColumns, at = tile * S::kColumns + i % S::kColumns;
    if (at >= call.width) continue;
    const float* part = call.sums + t * padded_width + at;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < call.splits; ++s) sum += part[s * kTokens * padded_width];
    with_x_type<W>(call, [&](auto* y) {
      using E = std::remove_pointer_t<decltype(y)>;
      if (call.b_out) sum += to_float(static_cast<const E*>(call.b_out)[at]);
      static_cast<E*>(call.y)[static_cast<int64_t>(t) * call.width + at] = from_float<E>(sum);
    });
  }
}

// Writes the scores of kScoreNeurons neurons; the first such block the counts, too.
template <int kTokens>
__device__ __forceinline__ void score_block(const Rowwise& call, int block) {
  __shared__ SharedArray<float, kWarps> floats_of_warps;
  __shared__ SharedArray<int, kWarps> ints_of_warps;
  const int thread = static_cast<int>(threadIdx.x);
  float energy[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float sum = 0.0f;
    int count = 0;
    for (int i = thread; i < call.blocks; i += kThreads) {
      sum += call.energy[i * kTokens + t];
      count += call.active[i * kTokens + t];
    }
    energy[t] = block_sum(sum, floats_of_warps);
    count = block_sum(count, ints_of_warps);
    if (block == 0 && thread == 0 && t < call.tokens) call.active_out[t] = count;
  }
  const int end = (block + 1) * kScoreNeurons < call.neurons ? (block + 1) * kScoreNeurons : call.neurons;
  for (int neuron = block * kScoreNeurons + thread; neuron < end; neuron += kThreads) {
    for (int row = 0; row < call.batch; ++row) {
      float score = 0.0f;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float h = call.h[static_cast<int64_t>(neuron) * kTokens + t];
        const bool is_of_row = t < call.tokens && t / call.sequence == row;
        if (is_of_row && energy[t] != 0.0f) score += h * h / energy[t];
      }
      call.score[static_cast<int64_t>(row) * call.neurons + neuron] = score;
    }
  }
}

template <class W, int kTokens>
__global__ void __launch_bounds__(kThreads, down_resident(kTokens)) down(const Rowwise call) {
  __shared__ SharedArray<int, kListed> listed;
  __shared__ SharedArray<float, kListed * kTokens> h;
  __shared__ SharedArray<float, kWarps * Shape<W, kTokens>::kColumns> sums_of_warps;
  __shared__ SharedArray<unsigned, kWarps> of_warps;
  __shared__ SharedArray<int, 1> is_last;
  const int tile_blocks = call.tiles * call.splits;
  if (static_cast<int>(blockIdx.x) >= tile_blocks) {
    score_block<kTokens>(call, static_cast<int>(blockIdx.x) - tile_blocks);
  } else if (call.vectors) {
    down_block<W, kTokens, true>(call, listed, h, sums_of_warps, of_warps, is_last);
  } else {
    down_block<W, kTokens, false>(call, listed, h, sums_of_warps, of_warps, is_last);
  }
}

}  // namespace

cudaError_t launch_down(const Rowwise& call, cudaStream_t stream) {
  return with_weights(call, [&](auto* of) {
    return with_tokens(call.padded, [&](auto tokens) {
      using W = std::remove_pointer_t<decltype(of)>;
      return launch(down<W, decltype(tokens)::kTokens>,
                    static_cast<int64_t>(call.tiles) * call.splits + call.score_blocks, kThreads, stream, call);
    });
  });
}

}  // namespace clada::cuda
