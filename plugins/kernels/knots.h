// The piecewise-linear maps of the load signal; formulas as in clada/ops/load_signal.py.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define CLADA_ANYWHERE __host__ __device__
#else
#define CLADA_ANYWHERE
#endif

namespace clada {

// F: piecewise linear through the knots, 0 below the first and 1 above the last.
CLADA_ANYWHERE static inline float knot_rank(float value, const float* knots, int64_t count) {
  float rank = 0;
  for (int64_t k = 0; k + 1 < count; ++k) {
    float width = knots[k + 1] - knots[k];
    width = width < 0x1p-126f ? 0x1p-126f : width;
    float share = (value - knots[k]) / width;
    share = share < 0 ? 0 : share;
    rank += share > 1 ? 1 : share;
  }
  return rank / static_cast<float>(count - 1);
}

CLADA_ANYWHERE static inline float scale_of_load(float load, const float* knots, int64_t count) {
  float scale = knots[0];
  for (int64_t k = 0; k + 1 < count; ++k) {
    float along = load * static_cast<float>(count - 1) - static_cast<float>(k);
    along = along < 0 ? 0 : along;
    scale += (along > 1 ? 1 : along) * (knots[k + 1] - knots[k]);
  }
  return scale;
}

}  // namespace clada
