// Vectors of 8 floats in AVX2, with FMA and F16C.
#pragma once
#include <immintrin.h>

#include "elements.h"

namespace clada {

struct Avx2 {
  using V = __m256;
  using Mask = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6, kTileVectors = 2;

  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V load(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  // Two vectors of bfloat16: the elements at even places, and those at odd places, which costs less than in order.
  static void load_even_odd(const BFloat16* p, V& even, V& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static void store(Float16* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static V zero() { return _mm256_setzero_ps(); }
  static V all(float v) { return _mm256_set1_ps(v); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // Of two values, one of them NaN, min and max give the second.
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^n for a whole n in [-126, 128]; 2^128 is infinity.
  static V power_of_two(V n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static Mask less(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Mask less_equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  static Mask equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static Mask opposite(Mask a) { return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
  static V select(Mask mask, V yes, V no) { return _mm256_blendv_ps(no, yes, mask); }
  static constexpr bool kCompresses = false;
  static float sum(V a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  // The sums of four vectors.
  static void store_sums(float* p, const V* v) {
    const V sums = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
  static float largest(V a) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }

  // Types for quantized weights: vectors of kWidth 32-bit integers, each of four bytes or eight 4-bit codes.
  using Ints = __m256i;
  // Whether products of pairs of 16 bits take half of the time that those of floats do.
  static constexpr bool kFastPairs = false;
  // Rows whose products with x are summed at a time.
  static constexpr int kDotRows = 2;
  // Products of bytes lack this times the sum of the second factors.
  static constexpr int kByteOffset = 0;

  static Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  // Stores values that are whole.
  static void store_whole(int32_t* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvtps_epi32(v));
  }
  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints low_nibbles(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
  static Ints high_nibbles(Ints v) { return low_nibbles(_mm256_srli_epi32(v, 4)); }
  // Adds to each integer the products of its four nibbles, 0 to 15, with four signed bytes.
  static Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) {
    const Ints pairs = _mm256_maddubs_epi16(nibbles, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // The same of four signed bytes with four of -127 to 127.
  static Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    const Ints pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // Two rows at a time: each integer is a pair of 16-bit ones, the first row's low.
  static Ints pair(V even, V odd) {
    return _mm256_blend_epi16(_mm256_cvtps_epi32(even), _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16), 0xaa);
  }
  static Ints all_pairs(int16_t v) { return _mm256_set1_epi16(v); }
  // The lower halves of the integers of two rows, and the upper ones.
  static Ints low_halves(Ints even, Ints odd) { return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa); }
  static Ints high_halves(Ints even, Ints odd) { return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa); }
  // The nibbles at a bit of each half, in their places; the highest ones, whose place is a sign's, at the lowest.
  template <int kBit>
  static Ints nibbles(Ints halves) {
    if constexpr (kBit == 12) return _mm256_srli_epi16(halves, 12);
    return _mm256_and_si256(halves, _mm256_set1_epi16(15 << kBit));
  }
  static Ints low_bytes(Ints halves) { return _mm256_srai_epi16(_mm256_slli_epi16(halves, 8), 8); }
  static Ints high_bytes(Ints halves) { return _mm256_srai_epi16(halves, 8); }
  static Ints dot_pairs(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static V to_float(Ints v) { return _mm256_cvtepi32_ps(v); }
  // Whether sums of rows whose factors are bytes take half of the time, see byte_row_sums.h.
  static constexpr bool kBytePairs = true;
  // Bytes of two vectors that take turns: of groups 0, 1, 4 and 5, and of groups 2, 3, 6 and 7.
  static void interleave(Ints even, Ints odd, Ints* bytes) {
    bytes[0] = _mm256_unpacklo_epi8(even, odd);
    bytes[1] = _mm256_unpackhi_epi8(even, odd);
  }
  // For each group a factor of either vector, -127 to 127, where interleaved bytes have it.
  static void byte_factors(V even, V odd, Ints* factors) {
    const Ints low = _mm256_and_si256(_mm256_cvtps_epi32(even), _mm256_set1_epi32(0xff));
    const Ints pairs = _mm256_or_si256(low, _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 8));
    const __m128i first = _mm_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 4, 5, 4, 5, 4, 5, 4, 5);
    const __m128i second = _mm_setr_epi8(8, 9, 8, 9, 8, 9, 8, 9, 12, 13, 12, 13, 12, 13, 12, 13);
    factors[0] = _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(first));
    factors[1] = _mm256_shuffle_epi8(pairs, _mm256_broadcastsi128_si256(second));
  }
  // Adds to each integer of 16 bits the products of two nibbles with the factors of their bytes.
  static Ints add_byte_pairs(Ints sum, Ints nibbles, Ints factors) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, factors));
  }
  static Ints subtract_eights(Ints sum, Ints factors) {
    return _mm256_sub_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8(8), factors));
  }
  // Sums of interleaved bytes by the byte of a group: four vectors, each of all groups.
  static void by_byte(const Ints* sums, V* out) {
    const __m128i turns = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    const Ints first = _mm256_shuffle_epi8(sums[0], _mm256_broadcastsi128_si256(turns));
    const Ints second = _mm256_shuffle_epi8(sums[1], _mm256_broadcastsi128_si256(turns));
    const Ints pairs[] = {_mm256_unpacklo_epi32(first, second), _mm256_unpackhi_epi32(first, second)};
    for (int i = 0; i < 2; ++i) {
      const Ints ordered = _mm256_permute4x64_epi64(pairs[i], 0xd8);
      out[2 * i] = to_float(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(ordered)));
      out[2 * i + 1] = to_float(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(ordered, 1)));
    }
  }
  // high * 256 + low - factor * x
  static V joined(Ints high, Ints low, int factor, Ints x) {
    const Ints sum = _mm256_add_epi32(_mm256_slli_epi32(high, 8), low);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(x, _mm256_set1_epi32(factor))));
  }
  // The 4-bit code that starts at a bit, and is stored as the code + 8.
  static V nibble(Ints v, int bit) {
    const Ints code = _mm256_and_si256(_mm256_srli_epi32(v, bit), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
  }
  // The signed byte that starts at a bit.
  static V byte(Ints v, int bit) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - bit), 24)); }
  // Each of the first elements four times.
  static V four_times(V v) { return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)); }
};

}  // namespace clada
