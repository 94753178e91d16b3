// The inner loops of the mixture sums, compiled once for each instruction set (see vector.h).
//
// A translation unit defines IBVIT_LANES (floats per register) and IBVIT_KERNEL (the name of the MixtureKernel) and
// includes this file.
#ifndef IBVIT_MIXTURE_KERNEL_H
#define IBVIT_MIXTURE_KERNEL_H

#include "tile.h"
#include "vector.h"

namespace {

constexpr int kVectors = 4;  // of samples, per tile
constexpr int kTile = kLanes * kVectors;
// Components at once. 8 accumulators, 4 broadcast parameters, one u and one intermediate result take 14 registers.
constexpr int kRows = 2;
static_assert(kComponentsAtOnce % kRows == 0, "packed channels are padded to whole sub-tiles");

// The bounds have names because comparison and choice both use them: only so does the compiler make one minimum or
// maximum of the two.
inline Floats exp2_clamped(Floats y) {
  const Floats lowest = splat(kLowest), highest = splat(kHighest);
  y = y > lowest ? y : lowest;
  y = y < highest ? y : highest;
  return exp2(y);
}

// Adds the terms of one column to `sums`, for a tile of samples and `rows` components. With Keep it also stores them in
// `terms`. With Dims = 0 the column gives the number of dimensions.
template <int Dims, bool Keep>
void sum_column(const TileColumn& column, const float* records, int rows, float* sums, float* terms) {
  const int dims = Dims ? Dims : column.dims;
  const int stride = 2 * dims + 1;
  Floats total[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = load(sums + v * kLanes);
  for (int row = 0; row < rows; row += kRows, records += kRows * stride) {
    Floats y[kRows][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Floats reference = load(column.reference + v * kLanes);
      for (int r = 0; r < kRows; ++r) y[r][v] = records[r * stride + 2 * dims] - reference;
    }
    for (int j = 0; j < dims; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const Floats u = load(column.u + j * kTile + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const Floats t = (u - records[r * stride + 2 * j]) * records[r * stride + 2 * j + 1];
          y[r][v] -= t * t;
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const Floats term = exp2_clamped(y[r][v]);
        total[v] += term;
        if (Keep) store(terms + (row + r) * kTile + v * kLanes, term);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, total[v]);
}

// Adds the products of the terms of two columns to `sums`.
void sum_pair(const float* first, const float* second, int rows, float* sums) {
  Floats total[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = load(sums + v * kLanes);
  for (int i = 0; i < rows * kTile; i += kTile) {
    for (int v = 0; v < kVectors; ++v) total[v] += load(first + i + v * kLanes) * load(second + i + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, total[v]);
}

// sum_column for any number of dimensions.
template <bool Keep>
void sum_any(const TileColumn& column, const float* records, int rows, float* sums, float* terms) {
  switch (column.dims) {
    case 1: return sum_column<1, Keep>(column, records, rows, sums, terms);
    case 2: return sum_column<2, Keep>(column, records, rows, sums, terms);
    case 3: return sum_column<3, Keep>(column, records, rows, sums, terms);
    case 4: return sum_column<4, Keep>(column, records, rows, sums, terms);
    default: return sum_column<0, Keep>(column, records, rows, sums, terms);
  }
}

void sum_tile(
    const TileJob& job, int64_t first, int64_t count, const TileColumn* columns, float* scratch, double* sums) {
  float* partial = scratch;                                    // [columns + pairs][kTile]
  float* terms = partial + (job.columns + job.pairs) * kTile;  // [columns][kComponentsAtOnce][kTile], with pairs only
  memset(partial, 0, sizeof(float) * (job.columns + job.pairs) * kTile);
  for (int64_t i = first; i < first + count; i += kComponentsAtOnce) {
    for (int c = 0; c < job.columns; ++c) {
      const float* records = columns[c].packed + i * (2 * columns[c].dims + 1);
      float* column_terms = terms + (int64_t)c * kComponentsAtOnce * kTile;
      const auto sum = job.pairs ? sum_any<true> : sum_any<false>;
      sum(columns[c], records, kComponentsAtOnce, partial + c * kTile, column_terms);
    }
    for (int p = 0; p < job.pairs; ++p) {
      const float* a = terms + (int64_t)job.pair[2 * p] * kComponentsAtOnce * kTile;
      const float* b = terms + (int64_t)job.pair[2 * p + 1] * kComponentsAtOnce * kTile;
      sum_pair(a, b, kComponentsAtOnce, partial + (job.columns + p) * kTile);
    }
  }
  for (int i = 0; i < (job.columns + job.pairs) * kTile; ++i) sums[i] += partial[i];
}

}  // namespace

const MixtureKernel IBVIT_KERNEL = {kTile, sum_tile};

#endif
