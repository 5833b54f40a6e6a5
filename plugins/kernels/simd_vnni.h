// AVX-512 and AVX2 with instructions for products of bytes.
#pragma once
#include <immintrin.h>

#ifdef __AVX512VNNI__
#include "simd_avx512.h"

namespace clada {

struct Avx512Vnni : Avx512 {
  static constexpr int kByteOffset = 128;
  static constexpr bool kFastPairs = true;

  // The codes at a bit of each half, which are stored as the code + 8.
  template <int kBit>
  static Ints signed_nibbles(Ints halves) {
    const Ints codes = _mm512_and_si512(_mm512_srli_epi16(halves, kBit), _mm512_set1_epi16(15));
    return _mm512_sub_epi16(codes, _mm512_set1_epi16(8));
  }

  static Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return _mm512_dpbusd_epi32(sum, nibbles, x); }
  static Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    return _mm512_dpbusd_epi32(sum, _mm512_xor_si512(codes, _mm512_set1_epi8(-128)), x);
  }
  static Ints dot_pairs(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
};

}  // namespace clada
#endif

#ifdef __AVXVNNI__
#include "simd_avx2.h"

namespace clada {

struct AvxVnni : Avx2 {
  static constexpr int kByteOffset = 128;
  static constexpr bool kBytePairs = false;  // products of pairs are as fast

  static Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return _mm256_dpbusd_avx_epi32(sum, nibbles, x); }
  static Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    return _mm256_dpbusd_avx_epi32(sum, _mm256_xor_si256(codes, _mm256_set1_epi8(-128)), x);
  }
  static Ints dot_pairs(Ints sum, Ints a, Ints b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
};

}  // namespace clada
#endif
