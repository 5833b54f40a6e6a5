// Conversion between float32, the type of all computations, and the element types of tensors.
#pragma once
#include <cstring>

#include "elements.h"
#include "kernels.h"

namespace clada {

// A width rounded up to whole vectors.
template <class I>
int64_t padded(int64_t width) {
  return (width + I::kWidth - 1) / I::kWidth * I::kWidth;
}

// Widens `count` values to float32 and zeroes the rest of the last vector.
template <class I, class E>
void widen(const E* from, float* to, int64_t count) {
  const int64_t whole = count - count % I::kWidth;
  for (int64_t k = 0; k < whole; k += I::kWidth) I::store(to + k, I::load(from + k));
  if (whole < count) {
    E some[I::kWidth] = {};
    memcpy(some, from + whole, static_cast<size_t>(count - whole) * sizeof(E));
    I::store(to + whole, I::load(some));
  }
}

// Calls f with a value of an element's type.
template <class F>
auto with_element(Element element, F f) {
  switch (element) {
    case Element::kFloat32:
      return f(float());
    case Element::kFloat16:
      return f(Float16());
    case Element::kBFloat16:
      break;
  }
  return f(BFloat16());
}

template <class I>
void widen(Element element, const void* from, int64_t offset, float* to, int64_t count) {
  with_element(element, [&](auto value) { widen<I>(static_cast<const decltype(value)*>(from) + offset, to, count); });
}

template <class I>
void to_bfloat16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    uint32_t bits;
    memcpy(&bits, from + k, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to[k] = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// Rounds `count` values to an element type; reads whole vectors.
template <class I>
void narrow(const float* from, Element element, void* to, int64_t offset, int64_t count) {
  if (count == 0) return;
  if (element == Element::kFloat32) {
    memcpy(static_cast<float*>(to) + offset, from, static_cast<size_t>(count) * sizeof(float));
  } else if (element == Element::kBFloat16) {
    to_bfloat16<I>(from, static_cast<uint16_t*>(to) + offset, count);
  } else {
    Float16* out = static_cast<Float16*>(to) + offset;
    for (int64_t k = 0; k < count; k += I::kWidth) {
      Float16 some[I::kWidth];
      I::store(some, I::load(from + k));
      const int64_t left = count - k < I::kWidth ? count - k : I::kWidth;
      memcpy(out + k, some, static_cast<size_t>(left) * sizeof(Float16));
    }
  }
}

}  // namespace clada
