// What the threads of mixture.cpp hand to the inner loops of kernel.h. All in units of log2.
#ifndef IBVIT_MIXTURE_TILE_H
#define IBVIT_MIXTURE_TILE_H

#include <stdint.h>

// A packed channel is one record of 2 d + 1 floats for each component: mu_1, w_1, ..., mu_d, w_d, constant, with
// w = sqrt(log2(e) / 2) / sigma, so that log2 N = constant + offset - sum_j ((u_j - mu_j) w_j)^2. Records are padded to
// whole sub-tiles with components of density zero.
constexpr int kComponentsAtOnce = 32;

// Terms are clamped to 2^kLowest ... 2^kHighest. A sample counts as certain if all its single sums stay below
// kCertain: then no term was clamped from above, products of two terms and their sum are finite in float32, and what
// clamping from below adds to a pair is under components * 2^(kLowest + 50), 1e-9 for a million components.
constexpr float kLowest = -100.0f;
constexpr float kHighest = 100.0f;
constexpr double kCertain = 1125899906842624.0;  // 2^50

struct TileColumn {
  int32_t dims;
  const float* packed;     // of the channel
  const float* u;          // [dims][tile]
  const float* reference;  // [tile], less the channel's offset
};

struct TileJob {
  int32_t columns;
  int32_t pairs;
  const int32_t* pair;  // [pairs, 2]
};

// Adds the terms of components first ... first + count (whole sub-tiles) to sums [columns + pairs][tile]. Within a call
// they are added up in float32, so a call covers some hundreds of components.
struct MixtureKernel {
  int32_t tile;  // samples
  void (*sum_tile)(
      const TileJob&, int64_t first, int64_t count, const TileColumn* columns, float* scratch, double* sums);
};

extern const MixtureKernel kPortableMixture, kAvx2Mixture, kAvx512Mixture;

#endif
