// Takes the place of the kernels' own SharedArray: every access to an element is checked for bounds and races.
#pragma once
#include "grid.h"

namespace clada::cuda {

// An element as it is named in an expression: what is done to it is known once it is read or written.
template <class T>
class SharedElement {
 public:
  SharedElement(T& value, cuda_emulation::Word& word, size_t index, const void* place)
      : value_(value), word_(word), index_(index), place_(place) {}
  SharedElement(const SharedElement&) = delete;

  operator T() const {
    read_word(word_, index_, place_);
    return value_;
  }
  const SharedElement& operator=(const T& value) const {
    write_word(word_, index_, place_);
    value_ = value;
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = static_cast<T>(other); }
  const SharedElement& operator+=(const T& value) const { return *this = static_cast<T>(*this) + value; }

 private:
  T& value_;
  cuda_emulation::Word& word_;
  size_t index_;
  const void* place_;  // in the kernel's code
};

template <class T, int kCount>
class SharedArray {
 public:
  // Not inlined, so that what it returns to is a line of the kernel.
  [[gnu::noinline]] SharedElement<T> operator[](int i) const {
    const void* place = __builtin_return_address(0);
    if (i < 0 || i >= kCount) {
      cuda_emulation::fail("asks for shared element " + std::to_string(i) + " of " + std::to_string(kCount) + ", in " +
                           cuda_emulation::describe(place));
    }
    return {values_[i], words_[i], static_cast<size_t>(i), place};
  }

 private:
  mutable T values_[kCount];
  mutable cuda_emulation::Word words_[kCount];
};

}  // namespace clada::cuda
