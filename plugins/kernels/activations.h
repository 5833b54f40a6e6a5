// The activation functions on vectors; names and formulas as in clada/ops/activations.py.
#pragma once
#include "kernels.h"

namespace clada {

// e^x to 2 units in the last place; 0 below -87.3, infinity above 88.4.
template <class I>
typename I::V exponential(typename I::V x) {
  using V = typename I::V;
  x = I::min(I::all(89.0f), I::max(I::all(-87.3f), x));
  const V n = I::round(I::mul(x, I::all(1.44269504f)));
  // ln 2 in two parts, so that what is left of x is exact.
  const V r = I::fma(n, I::all(2.12194440e-4f), I::fma(n, I::all(-0.693359375f), x));
  V series = I::all(1.0f / 5040);
  series = I::fma(series, r, I::all(1.0f / 720));
  series = I::fma(series, r, I::all(1.0f / 120));
  series = I::fma(series, r, I::all(1.0f / 24));
  series = I::fma(series, r, I::all(1.0f / 6));
  series = I::fma(series, r, I::all(0.5f));
  series = I::fma(series, r, I::all(1.0f));
  series = I::fma(series, r, I::all(1.0f));
  return I::mul(series, I::power_of_two(n));
}

// factor * sigmoid(x) = factor / (1 + e^-x)
template <class I>
typename I::V times_sigmoid(typename I::V factor, typename I::V x) {
  return I::div(factor, I::add(I::all(1.0f), exponential<I>(I::sub(I::zero(), x))));
}

// The standard normal distribution function, to 1.5e-7: Abramowitz and Stegun, formula 7.1.26.
template <class I>
typename I::V normal_distribution(typename I::V z) {
  using V = typename I::V;
  const V x = I::mul(I::abs(z), I::all(0.707106781f));
  const V t = I::div(I::all(1.0f), I::fma(I::all(0.3275911f), x, I::all(1.0f)));
  V series = I::all(1.061405429f);
  series = I::fma(series, t, I::all(-1.453152027f));
  series = I::fma(series, t, I::all(1.421413741f));
  series = I::fma(series, t, I::all(-0.284496736f));
  series = I::fma(series, t, I::all(0.254829592f));
  series = I::mul(series, t);
  const V tail = I::mul(I::mul(I::all(0.5f), series), exponential<I>(I::sub(I::zero(), I::mul(x, x))));
  return I::select(I::less(z, I::zero()), tail, I::sub(I::all(1.0f), tail));
}

template <class I>
typename I::V activate(Activation activation, typename I::V z) {
  switch (activation) {
    case Activation::silu:
      return times_sigmoid<I>(z, z);
    case Activation::gelu:
      return I::mul(z, normal_distribution<I>(z));
    case Activation::gelu_tanh: {
      // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
      const auto slope = I::fma(I::mul(z, z), I::all(0.044715f), I::all(1.0f));
      return times_sigmoid<I>(z, I::mul(I::mul(z, slope), I::all(1.59576912f)));
    }
    case Activation::relu:
      return I::max(I::zero(), z);
  }
  return z;
}

}  // namespace clada
