// Vectors of 4 floats in the vector extension of GCC and Clang: SSE2 on any x86-64, NEON on Arm.
#pragma once
#include <cstring>

#include "elements.h"

namespace clada {

struct Portable {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t Mask __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 6, kTileVectors = 2;

  template <class To, class From>
  static To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
  }
  static Bits load_halves(const void* p) {
    Halves halves;
    memcpy(&halves, p, sizeof halves);
    return __builtin_convertvector(halves, Bits);
  }

  static V load(const float* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static V load(const Float16* p) {
    const Bits half = load_halves(p);
    // The exponent is moved to float32's place and its bias corrected by a product, which is exact for subnormals too.
    const V magnitude = bit_cast<V>((half & 0x7fffu) << 13) * all(0x1p112f);
    const Bits special = bit_cast<Bits>((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
    return bit_cast<V>(bit_cast<Bits>(magnitude) | special | ((half & 0x8000u) << 16));
  }
  static V load(const BFloat16* p) { return bit_cast<V>(load_halves(p) << 16); }
  // Two vectors of bfloat16: the elements at even places, and those at odd places, which costs less than in order.
  static void load_even_odd(const BFloat16* p, V& even, V& odd) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the even place is the lower half");
    Bits both;
    memcpy(&both, p, sizeof both);
    even = bit_cast<V>(both << 16);
    odd = bit_cast<V>(both & 0xffff0000u);
  }
  static void store(float* p, V v) { memcpy(p, &v, sizeof v); }
  static void store(Float16* p, V v) {
    const Bits bits = bit_cast<Bits>(v);
    const Bits sign = (bits >> 16) & 0x8000u;
    const Bits magnitude = bits & 0x7fffffffu;
    const Bits odd = (magnitude >> 13) & 1u;
    const Bits normal = (magnitude + 0xfffu + odd - (112u << 23)) >> 13;
    // Below 2^-14 the unit in the last place is fixed: adding 0.5 leaves the rounded multiple of it in the low bits.
    const Bits subnormal = bit_cast<Bits>(bit_cast<V>(magnitude) + 0.5f) - 0x3f000000u;
    const Bits is_small = bit_cast<Bits>(magnitude < (113u << 23));
    const Bits overflows = bit_cast<Bits>(magnitude >= 0x477ff000u);
    const Bits is_nan = bit_cast<Bits>(magnitude > 0x7f800000u);
    Bits half = (subnormal & is_small) | (normal & ~is_small);
    half = (half & ~overflows) | (0x7c00u & overflows) | (0x0200u & is_nan);
    const Halves halves = __builtin_convertvector(half | sign, Halves);
    memcpy(p, &halves, sizeof halves);
  }
  static V zero() { return V{}; }
  static V all(float v) { return V{} + v; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  // Of two values, one of them NaN, min and max give the second.
  static V min(V a, V b) { return select(a < b, a, b); }
  static V max(V a, V b) { return select(a > b, a, b); }
  static V abs(V a) { return bit_cast<V>(bit_cast<Bits>(a) & 0x7fffffffu); }
  // Adding 1.5 * 2^23 leaves no bits for a fraction; right for |a| < 2^22.
  static V round(V a) { return (a + 0x1.8p23f) - 0x1.8p23f; }
  // 2^n for a whole n in [-126, 128]; 2^128 is infinity.
  static V power_of_two(V n) { return bit_cast<V>((__builtin_convertvector(n, Mask) + 127) << 23); }
  static Mask less(V a, V b) { return a < b; }
  static Mask less_equal(V a, V b) { return a <= b; }
  static Mask equal(V a, V b) { return a == b; }
  static Mask both(Mask a, Mask b) { return a & b; }
  static Mask opposite(Mask a) { return ~a; }
  static V select(Mask mask, V yes, V no) {
    return bit_cast<V>((bit_cast<Mask>(yes) & mask) | (bit_cast<Mask>(no) & ~mask));
  }
  static constexpr bool kCompresses = false;
  static float sum(V a) {
    float total = 0;
    for (int i = 0; i < kWidth; ++i) total += a[i];
    return total;
  }
  // The sums of four vectors.
  static void store_sums(float* p, const V* v) {
    for (int i = 0; i < 4; ++i) p[i] = sum(v[i]);
  }
  static float largest(V a) {
    float top = a[0];
    for (int i = 1; i < kWidth; ++i) top = a[i] > top ? a[i] : top;
    return top;
  }

  // Types for quantized weights: vectors of kWidth 32-bit integers, each of four bytes or eight 4-bit codes.
  using Ints = Mask;
  // Whether products of pairs of 16 bits take half of the time that those of floats do.
  static constexpr bool kFastPairs = false;
  static constexpr bool kBytePairs = false;
  // Rows whose products with x are summed at a time.
  static constexpr int kDotRows = 1;
  // Products of bytes lack this times the sum of the second factors.
  static constexpr int kByteOffset = 0;

  static Ints load_ints(const void* p) {
    Ints v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  // Stores values that are whole.
  static void store_whole(int32_t* p, V v) {
    const Ints ints = whole(v);
    memcpy(p, &ints, sizeof ints);
  }
  static Ints zero_ints() { return Ints{}; }
  static Ints low_nibbles(Ints v) { return v & 0x0f0f0f0f; }
  static Ints high_nibbles(Ints v) { return (v >> 4) & 0x0f0f0f0f; }
  // Adds to each integer the products of its four nibbles, 0 to 15, with four signed bytes.
  static Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return dot_bytes(sum, nibbles, x); }
  // The same of four signed bytes with four of -127 to 127.
  static Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    sum += signed_byte(codes, 0) * signed_byte(x, 0) + signed_byte(codes, 8) * signed_byte(x, 8);
    return sum + signed_byte(codes, 16) * signed_byte(x, 16) + signed_byte(codes, 24) * signed_byte(x, 24);
  }
  // Two rows at a time: each integer is a pair of 16-bit ones, the first row's low.
  static Ints pair(V even, V odd) { return joined_halves(whole(even), whole(odd)); }
  static Ints all_pairs(int16_t v) { return joined_halves(Ints{} + v, Ints{} + v); }
  // The lower halves of the integers of two rows, and the upper ones.
  static Ints low_halves(Ints even, Ints odd) { return joined_halves(even, odd); }
  static Ints high_halves(Ints even, Ints odd) { return joined_halves(even >> 16, odd >> 16); }
  // The nibbles at a bit of each half, in their places; the highest ones, whose place is a sign's, at the lowest.
  template <int kBit>
  static Ints nibbles(Ints halves) {
    if constexpr (kBit == 12) return (halves >> 12) & 0x000f000f;
    return halves & (0x000f000f << kBit);
  }
  static Ints low_bytes(Ints halves) { return joined_halves(signed_byte(halves, 0), signed_byte(halves, 16)); }
  static Ints high_bytes(Ints halves) { return joined_halves(signed_byte(halves, 8), signed_byte(halves, 24)); }
  static Ints dot_pairs(Ints sum, Ints a, Ints b) { return sum + low_half(a) * low_half(b) + (a >> 16) * (b >> 16); }
  static V to_float(Ints v) { return __builtin_convertvector(v, V); }
  // high * 256 + low - factor * x
  static V joined(Ints high, Ints low, int factor, Ints x) {
    return __builtin_convertvector(high * 256 + low - factor * x, V);
  }
  // The 4-bit code that starts at a bit, and is stored as the code + 8.
  static V nibble(Ints v, int bit) { return __builtin_convertvector(((v >> bit) & 15) - 8, V); }
  // The signed byte that starts at a bit.
  static V byte(Ints v, int bit) { return __builtin_convertvector(signed_byte(v, bit), V); }
  // Each of the first elements four times.
  static V four_times(V v) { return all(v[0]); }

 private:
  static Ints whole(V v) { return __builtin_convertvector(round(v), Ints); }
  static Ints low_half(Ints v) { return bit_cast<Ints>(bit_cast<Bits>(v) << 16) >> 16; }
  static Ints joined_halves(Ints low, Ints high) { return (low & 0xffff) | bit_cast<Ints>(bit_cast<Bits>(high) << 16); }
  static Ints signed_byte(Ints v, int bit) { return bit_cast<Ints>(bit_cast<Bits>(v) << (24 - bit)) >> 24; }
};

}  // namespace clada
