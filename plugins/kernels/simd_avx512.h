// Vectors of 16 floats in AVX-512.
#pragma once
#include <immintrin.h>

#include "elements.h"

namespace clada {

struct Avx512 {
  using V = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  // A tile of products keeps kTileRows x kTileVectors sums in registers.
  static constexpr int kTileRows = 12, kTileVectors = 2;

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load(const BFloat16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // Two vectors of bfloat16: the elements at even places, and those at odd places, which costs less than in order.
  static void load_even_odd(const BFloat16* p, V& even, V& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void store(Float16* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static V zero() { return _mm512_setzero_ps(); }
  static V all(float v) { return _mm512_set1_ps(v); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // Of two values, one of them NaN, min and max give the second.
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V abs(V a) { return _mm512_abs_ps(a); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^n for a whole n in [-126, 128]; 2^128 is infinity.
  static V power_of_two(V n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static Mask less(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Mask less_equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static Mask equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Mask both(Mask a, Mask b) { return a & b; }
  static Mask opposite(Mask a) { return static_cast<Mask>(~a); }
  static V select(Mask mask, V yes, V no) { return _mm512_mask_blend_ps(mask, no, yes); }
  static constexpr bool kCompresses = true;
  // See list_kept.
  static int compress(Mask mask, V a, int32_t first, float* values, int32_t* places) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // In registers: storing what is compressed takes far longer.
    _mm512_storeu_ps(values, _mm512_maskz_compress_ps(mask, a));
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lanes, _mm512_set1_epi32(first))));
    return __builtin_popcount(mask);
  }
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  // The sums of four vectors.
  static void store_sums(float* p, const V* v) {
    __m256 halves[4];
    for (int i = 0; i < 4; ++i) {
      halves[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    }
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]), _mm256_hadd_ps(halves[2], halves[3]));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
  static float largest(V a) { return _mm512_reduce_max_ps(a); }

  // Types for quantized weights: vectors of kWidth 32-bit integers, each of four bytes or eight 4-bit codes.
  using Ints = __m512i;
  // Whether products of pairs of 16 bits take half of the time that those of floats do.
  static constexpr bool kFastPairs = false;
  static constexpr bool kBytePairs = false;
  // Rows whose products with x are summed at a time.
  static constexpr int kDotRows = 4;
  // Products of bytes lack this times the sum of the second factors.
  static constexpr int kByteOffset = 0;

  static Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
  // Stores values that are whole.
  static void store_whole(int32_t* p, V v) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(v)); }
  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints low_nibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
  static Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi32(v, 4)); }
  // Adds to each integer the products of its four nibbles, 0 to 15, with four signed bytes.
  static Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) {
    const Ints pairs = _mm512_maddubs_epi16(nibbles, x);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  // The same of four signed bytes with four of -127 to 127.
  static Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    const Ints signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(codes), zero_ints(), x);
    const Ints pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(codes), signed_x);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  // Two rows at a time: each integer is a pair of 16-bit ones, the first row's low.
  static Ints pair(V even, V odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_cvtps_epi32(even),
                                   _mm512_slli_epi32(_mm512_cvtps_epi32(odd), 16));
  }
  static Ints all_pairs(int16_t v) { return _mm512_set1_epi16(v); }
  // The lower halves of the integers of two rows, and the upper ones.
  static Ints low_halves(Ints even, Ints odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, even, _mm512_slli_epi32(odd, 16));
  }
  static Ints high_halves(Ints even, Ints odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16), odd);
  }
  // The nibbles at a bit of each half, in their places; the highest ones, whose place is a sign's, at the lowest.
  template <int kBit>
  static Ints nibbles(Ints halves) {
    if constexpr (kBit == 12) return _mm512_srli_epi16(halves, 12);
    return _mm512_and_si512(halves, _mm512_set1_epi16(15 << kBit));
  }
  static Ints low_bytes(Ints halves) { return _mm512_srai_epi16(_mm512_slli_epi16(halves, 8), 8); }
  static Ints high_bytes(Ints halves) { return _mm512_srai_epi16(halves, 8); }
  static Ints dot_pairs(Ints sum, Ints a, Ints b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
  static V to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  // high * 256 + low - factor * x
  static V joined(Ints high, Ints low, int factor, Ints x) {
    const Ints sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(x, _mm512_set1_epi32(factor))));
  }
  // The 4-bit code that starts at a bit, and is stored as the code + 8.
  static V nibble(Ints v, int bit) {
    const V codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(v, static_cast<unsigned>(bit)), codes);
  }
  // The signed byte that starts at a bit.
  static V byte(Ints v, int bit) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, static_cast<unsigned>(24 - bit)), 24));
  }
  // Each of the first elements four times.
  static V four_times(V v) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), v);
  }
};

}  // namespace clada
