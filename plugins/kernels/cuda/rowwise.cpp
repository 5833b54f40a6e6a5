// Division of a call of few tokens into blocks, and the layout of its workspace.
#include "rowwise.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace clada::cuda {
namespace {

int64_t parts(int64_t count, int64_t each) { return (count + each - 1) / each; }

int64_t splits_of(const Rowwise& call) {
  const int64_t places = down_resident(call.padded) * kMultiprocessors, tiles = std::max(1, call.tiles);
  const int64_t most = tiles <= places ? std::min(kMostSplits, call.blocks) : call.neurons / (kSplitRows * call.padded);
  return std::clamp<int64_t>(tiles <= places ? places / tiles : parts(kRounds * places, tiles), 1,
                             std::max<int64_t>(1, most));
}

}  // namespace

int scale_shift(Quantization quantization) {
  int shift = 0;
  while (quantization.block_size >> shift > 1) ++shift;
  return shift;
}

bool are_blocks(Quantization quantization, int64_t width) {
  const int32_t bits = quantization.bits, block = quantization.block_size;
  return (bits == 4 || bits == 8) && block >= kSmallestBlock && (block & (block - 1)) == 0 && width % block == 0;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool can_count(int64_t batch, int64_t sequence, int64_t width, int64_t neurons) {
  const int64_t most = std::numeric_limits<int>::max() / 16;
  for (const int64_t size : {batch, sequence, width, neurons}) {
    if (size < 0 || size > most) return false;
  }
  return batch * sequence <= most;
}

size_t lay_out(bool scored, void* workspace, Rowwise& call) {
  const int of_vector = static_cast<int>(16 / element_size(call.element));
  call.padded = call.tokens <= 1 ? 1 : call.tokens <= 2 ? 2 : call.tokens <= 4 ? 4 : 8;
  // One block at least, which prepares the workspace.
  call.blocks = static_cast<int>(std::max<int64_t>(1, parts(call.neurons, kBlockNeurons)));
  call.tile_columns = kTileLanes * (call.bits != 0 ? quantized_columns(call.bits, call.padded) : of_vector);
  call.tiles = static_cast<int>(parts(call.width, call.tile_columns));
  call.splits = static_cast<int>(splits_of(call));
  call.score_blocks = static_cast<int>(scored ? std::max<int64_t>(1, parts(call.neurons, kScoreNeurons)) : 0);

  size_t used = 0;
  const auto place = [&](auto*& pointer, size_t count) {
    pointer =
        reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(workspace) + used);
    used += (count * sizeof *pointer + 255) / 256 * 256;
  };
  const size_t padded = call.padded, blocks = call.blocks;
  place(call.tickets, call.tiles);
  place(call.kept, blocks);
  place(call.h, padded * blocks * kBlockNeurons);
  if (scored) {
    place(call.energy, padded * blocks);
    place(call.active, padded * blocks);
  }
  place(call.sums, padded * call.splits * call.tiles * call.tile_columns);
  return used;
}

}  // namespace clada::cuda
