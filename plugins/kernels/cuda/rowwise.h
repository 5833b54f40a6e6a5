// The ops for few tokens: row by row, and only the rows that are kept. Two launches:
//
// gate_up.cu selects the neurons and computes h; down.cu adds the kept rows of w_out, and writes `active` and `score`.
// SparseLinear is the second half of that: its inputs are the neurons and its outputs the width, w is w_out, and
// select_inputs.cu puts the kept inputs of x in the place of h, and writes `kept`.
#pragma once
#include <cuda_runtime_api.h>

#include "launchers.h"

namespace clada::cuda {

// Neurons of one block of gate_up. Small, so that the blocks are many and small pieces of work: Llama-3-8B's 14336
// neurons are 896 blocks, 6.8 for each multiprocessor of an H200, where 7 fit.
constexpr int kBlockNeurons = 16;
// Blocks of `down` that a multiprocessor has at once, and multiprocessors to aim at: an H200's 132, less a few for the
// blocks that write scores. Whatever the device, so that its sums are the same bits on all; a smaller one works through
// the blocks in turn.
constexpr int down_resident(int tokens) { return tokens == 1 ? 4 : tokens == 2 ? 3 : 2; }
constexpr int kMultiprocessors = 128;
constexpr int kMostSplits = 64;  // the last block of a tile adds that many sums
// Where the tiles alone are more blocks than that, as a vocabulary's are: how often to fill all places, so that the
// last time, when some stay empty, is little of the whole; but splits of so many rows a token, beside which the sums
// that they write and that are read again are little.
constexpr int kRounds = 4;
constexpr int kSplitRows = 256;
constexpr int kTileLanes = 16;       // lanes that share a row of a tile: 256 bytes of it in a row
constexpr int kScoreNeurons = 1024;  // neurons whose scores one block writes
constexpr int kSmallestBlock = 32;   // of quantized weights; others are this times a power of two
// Columns of a lane of a tile where weights are quantized: fewer than 16 bytes hold, since each has a sum for each
// token.
constexpr int quantized_columns(int bits, int tokens) { return bits == 4 && tokens == 1 ? 16 : 8; }

// A matrix [neurons, width] of weights, and of their scales where they are quantized.
struct Weights {
  const void *data, *scales;
};

// A call as its kernels see it, and what lies in its workspace.
struct Rowwise {
  const void *x, *b_in, *b_out;
  Weights w_in, w_up, w_out;
  const float *threshold, *scale;
  const uint8_t* pool;
  void* y;
  int32_t* active_out;
  float* score;
  int tokens, batch, sequence, width, neurons;
  Activation activation;
  Element element;        // of x, the biases and y, and of plain weights
  int bits, scale_shift;  // of quantized weights, the latter log2 of their block; 0 where they are plain
  bool vectors;           // whether rows start and end at multiples of 16 bytes

  // The sizes below are for `padded` tokens, 1, 2, 4 or 8.
  int padded, blocks, tiles, tile_columns, splits, score_blocks;
  unsigned* tickets;  // [tiles], how many splits of a tile are done
  uint16_t* kept;     // [blocks], a bit for each neuron that some token kept
  float* h;           // [neurons, padded]
  float* energy;      // [blocks, padded], the block's share of ||h||^2
  int* active;        // [blocks, padded], neurons kept
  float* sums;        // [splits, padded, tiles * tile_columns]
};

// log2 of the block, 0 where there is none.
int scale_shift(Quantization);

// Whether there are kernels for weights quantized so, in rows of `width`.
bool are_blocks(Quantization, int64_t width);

// Whether it is a multiple of 16 bytes.
bool is_aligned(const void*);

// Whether these sizes are such as the kernels count in int, and the tokens too.
bool can_count(int64_t batch, int64_t sequence, int64_t width, int64_t neurons);

// Of a call whose inputs, outputs and sizes are set: how it is cut, and its places in a workspace that starts at
// `workspace`, which is only computed with; returns its bytes. Without scores there are no blocks for them, nor what
// those read.
size_t lay_out(bool scored, void* workspace, Rowwise&);

cudaError_t launch_gate_up(const Rowwise&, cudaStream_t);
cudaError_t launch_select_inputs(const Rowwise&, cudaStream_t);
cudaError_t launch_down(const Rowwise&, cudaStream_t);

// Calls `with` with the number of padded tokens as a constant.
template <int kCount>
struct Tokens {
  static constexpr int kTokens = kCount;
};
template <class With>
cudaError_t with_tokens(int padded, With with) {
  switch (padded) {
    case 1:
      return with(Tokens<1>());
    case 2:
      return with(Tokens<2>());
    case 4:
      return with(Tokens<4>());
    case 8:
      return with(Tokens<8>());
  }
  return cudaErrorInvalidValue;
}

}  // namespace clada::cuda
