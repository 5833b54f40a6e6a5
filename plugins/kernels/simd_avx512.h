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
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  static float largest(V a) { return _mm512_reduce_max_ps(a); }
};

}  // namespace clada
