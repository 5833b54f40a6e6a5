// Rows of a weight matrix [neurons, width]. The kernels read weights only through row(), load() and widen(), so that
// every format is one type with these members.
//
// A load is 16 bytes of plain weights, 4, 8 or 16 of codes: what is on its way to a thread stays packed, in a few
// registers, and is dequantized four at a time when it is used.
#pragma once
#include <cstring>
#include <type_traits>

#include "elements.cuh"
#include "rowwise.h"

namespace clada::cuda {

template <class E>
struct PlainRows {
  using Row = const E*;
  using Packed = uint4;
  static constexpr int kWeights = 16 / sizeof(E);  // of a load; a multiple of 4
  const E* data;
  int width;

  __device__ __forceinline__ PlainRows(const Weights& matrix, const Rowwise& call)
      : data(static_cast<const E*>(matrix.data)), width(call.width) {}

  __device__ __forceinline__ Row row(int neuron) const { return data + static_cast<int64_t>(neuron) * width; }

  // Weights [column, column + kWeights) of a row, column a multiple of kWeights; zero beyond the end of the row.
  // With kVectors rows start at multiples of 16 bytes and end at one.
  template <bool kVectors>
  __device__ __forceinline__ Packed load(Row row, int column) const {
    uint4 packed = make_uint4(0, 0, 0, 0);
    if constexpr (kVectors) {
      // Nothing comes back to a weight before the next token: it need not stay in a cache.
      if (column < width) packed = __ldcs(reinterpret_cast<const uint4*>(row + column));
    } else {
      E some[kWeights];
#pragma unroll
      for (int i = 0; i < kWeights; ++i) some[i] = column + i < width ? row[column + i] : from_float<E>(0.0f);
      memcpy(&packed, some, sizeof packed);
    }
    return packed;
  }

  // Weights 4 * four, ..., 4 * four + 3 of a load.
  __device__ __forceinline__ void widen(const Packed& packed, int four, float (&weights)[4]) const {
    E some[kWeights];
    memcpy(some, &packed, sizeof packed);
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[i] = to_float(some[4 * four + i]);
  }
};

// The weight that a code of kBits in bits [position, position + kBits) of a word stands for, exactly. Without a
// conversion, of which a multiprocessor makes few: the code becomes a part of the mantissa of a number from 2^23 on,
// and one multiply-add takes that number away and scales. Nothing is rounded from position 8 on, where the scale's 11
// bits and those of what is taken away fit a float32.
template <int kBits>
__device__ __forceinline__ float weight_at(unsigned word, int position, float scale) {
  const unsigned mask = ((1u << kBits) - 1) << position, half = 1u << (kBits - 1);
  const unsigned bits = (word & mask) ^ (0x4B000000u | half << position);  // from two's complement to code + half
  float number;
  memcpy(&number, &bits, sizeof number);
  return fmaf(number, scale / static_cast<float>(1 << position),
              -scale * static_cast<float>((1 << (23 - position)) + static_cast<int>(half)));
}

// Codes as clada/ops/block_quantization.py packs them.
struct Int8 {
  static constexpr int kBits = 8;

  __device__ static __forceinline__ float weight(const unsigned* words, int i, float scale) {
    const unsigned word = words[i / 4];
    return weight_at<kBits>(i % 4 ? word >> (8 * (i % 4) - 8) : word << 8, 8, scale);
  }
};

struct Int4 {
  static constexpr int kBits = 4;

  __device__ static __forceinline__ float weight(const unsigned* words, int i, float scale) {
    // Two shifts a word: of its codes 0 and 1, none of 2 to 4, and 5 to 7.
    const unsigned word = words[i / 8];
    const int at = i % 8;
    if (at < 2) return weight_at<kBits>(word << 8, 4 * at + 8, scale);
    if (at < 5) return weight_at<kBits>(word, 4 * at, scale);
    return weight_at<kBits>(word >> 12, 4 * at - 12, scale);
  }
};

template <class W>
constexpr bool kIsQuantized = std::is_same_v<W, Int8> || std::is_same_v<W, Int4>;

// kOfLoad weights of a load, which are of one block.
template <class Format, int kOfLoad>
struct QuantizedRows {
  static constexpr int kWeights = kOfLoad, kBytes = kWeights * Format::kBits / 8;
  static_assert(kWeights % 4 == 0 && kWeights <= kSmallestBlock && (kBytes == 4 || kBytes == 8 || kBytes == 16));
  struct Row {
    const char* codes;
    const __half* scales;
    __device__ __forceinline__ explicit operator bool() const { return codes != nullptr; }
  };
  struct Packed {
    unsigned words[kBytes / 4];
    __half scale;
  };
  const char* codes;
  const __half* scales;
  int width, scale_shift;

  __device__ __forceinline__ QuantizedRows(const Weights& matrix, const Rowwise& call)
      : QuantizedRows(matrix, call.width, call.scale_shift) {}
  __device__ __forceinline__ QuantizedRows(const Weights& matrix, int row_width, int shift)
      : codes(static_cast<const char*>(matrix.data)),
        scales(static_cast<const __half*>(matrix.scales)),
        width(row_width),
        scale_shift(shift) {}

  __device__ __forceinline__ Row row(int neuron) const {
    return {codes + static_cast<int64_t>(neuron) * (width / 8 * Format::kBits),
            scales + static_cast<int64_t>(neuron) * (width >> scale_shift)};
  }

  template <bool kVectors>
  __device__ __forceinline__ Packed load(Row row, int column) const {
    Packed packed{};
    if (column >= width) return packed;
    const char* from = row.codes + column / 4 * Format::kBits / 2;
    if constexpr (kVectors) {
      using Vector = std::conditional_t<kBytes == 16, uint4, std::conditional_t<kBytes == 8, uint2, unsigned>>;
      const Vector vector = __ldcs(reinterpret_cast<const Vector*>(from));
      memcpy(packed.words, &vector, sizeof vector);
    } else {
      char some[kBytes];
#pragma unroll
      for (int i = 0; i < kBytes; ++i) some[i] = from[i];
      memcpy(packed.words, some, sizeof some);
    }
    // Neighboring threads want the same or its neighbors: it stays in the cache.
    packed.scale = __ldg(row.scales + (column >> scale_shift));
    return packed;
  }

  __device__ __forceinline__ void widen(const Packed& packed, int four, float (&weights)[4]) const {
    const float scale = to_float(packed.scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) weights[i] = Format::weight(packed.words, 4 * four + i, scale);
  }
};

// Rows of a format: plain ones of an element type, or codes of which a load has kOfLoad.
template <class W, int kOfLoad>
struct RowsOf {
  using type = PlainRows<W>;
};
template <int kOfLoad>
struct RowsOf<Int8, kOfLoad> {
  using type = QuantizedRows<Int8, kOfLoad>;
};
template <int kOfLoad>
struct RowsOf<Int4, kOfLoad> {
  using type = QuantizedRows<Int4, kOfLoad>;
};

// Calls `with` with a null pointer to the C++ type of weights: Int8, Int4, or that of an element.
template <class With>
cudaError_t with_weights(const Rowwise& call, With with) {
  if (call.bits == Int8::kBits) return with(static_cast<Int8*>(nullptr));
  if (call.bits == Int4::kBits) return with(static_cast<Int4*>(nullptr));
  return with_element(call.element, with);
}

// Calls `with` with a null pointer to the C++ type of x, the biases and y. Beside plain weights it is theirs; beside
// codes it is known when the kernel runs, as it matters to so little of it that kernels of its own are not worth their
// size.
template <class W, class With>
__device__ __forceinline__ void with_x_type(const Rowwise& call, With with) {
  if constexpr (!kIsQuantized<W>) {
    with(static_cast<W*>(nullptr));
  } else if (call.element == Element::kFloat32) {
    with(static_cast<float*>(nullptr));
  } else if (call.element == Element::kFloat16) {
    with(static_cast<__half*>(nullptr));
  } else {
    with(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace clada::cuda
