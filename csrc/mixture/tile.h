// The data that mixture.cpp passes to the inner loops of kernel.h. Logarithms are to base 2.
#ifndef IBVIT_MIXTURE_TILE_H
#define IBVIT_MIXTURE_TILE_H

#include <stdint.h>

// A packed channel has one record of 2 d + 1 floats per component: mu_1, w_1, ..., mu_d, w_d, constant, with
// w = sqrt(log2(e) / 2) / sigma, so that log2 N = constant + offset - sum_j ((u_j - mu_j) w_j)^2. Records are padded to
// whole sub-tiles with components of density zero.
constexpr int kComponentsAtOnce = 32;

// Terms are clamped to 2^kLowest ... 2^kHighest. A sample counts as certain if all single sums of the sample stay below
// kCertain. Then no term was clamped from above. Products of two terms are finite in float32, and so is the sum of the
// products. Clamping from below adds less than components * 2^(kLowest + 50) to a pair, 1e-9 for a million components.
constexpr float kLowest = -100.0f;
constexpr float kHighest = 100.0f;
constexpr double kCertain = 1125899906842624.0;  // 2^50

struct TileColumn {
  int32_t dims;
  const float* packed;     // of the channel
  const float* u;          // [dims][tile]
  const float* reference;  // [tile], less the offset of the channel
};

struct TileJob {
  int32_t columns;
  int32_t pairs;
  const int32_t* pair;  // [pairs, 2]
};

// Adds the terms of components first ... first + count (whole sub-tiles) to sums [columns + pairs][tile]. A call adds
// up in float32, so that it should cover some hundreds of components only.
struct MixtureKernel {
  int32_t tile;  // samples
  void (*sum_tile)(
      const TileJob&, int64_t first, int64_t count, const TileColumn* columns, float* scratch, double* sums);
};

extern const MixtureKernel kPortableMixture, kAvx2Mixture, kAvx512Mixture;

#endif
