// Layout of the channels, division of the samples among threads, and float64 sums where float32 is not enough.
#include "mixture.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "instruction_sets.h"
#include "padding.h"
#include "threads.h"

namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLogTwoPi = 1.8378770664093453;
constexpr int64_t kBlockBytes = 1 << 17;   // of packed components that stay in the L2 cache, all columns together
constexpr int64_t kBlockComponents = 512;  // at most, between two float64 additions of a sample
constexpr int64_t kTilesAtOnce = 8;        // tiles of samples that share a block while it is in the cache
constexpr float kNowhere = -1e30f;         // log2 of the density of a padding component

int64_t padded_components(int64_t components) { return padded(components, kComponentsAtOnce); }

// While an object lives, the thread rounds subnormal results to zero. Many products of two small terms are subnormal.
// They add nothing to a sum, but the processor would compute them slowly.
class FlushTinyToZero {
 public:
#if defined(__SSE2__)
  FlushTinyToZero() { _mm_setcsr(control_word_ | _MM_FLUSH_ZERO_ON); }
  ~FlushTinyToZero() { _mm_setcsr(control_word_); }

 private:
  const unsigned control_word_ = _mm_getcsr();
#elif defined(__aarch64__)
  FlushTinyToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(control_word_));
    asm volatile("msr fpcr, %0" : : "r"(control_word_ | (uint64_t(1) << 24)));
  }
  ~FlushTinyToZero() { asm volatile("msr fpcr, %0" : : "r"(control_word_)); }

 private:
  uint64_t control_word_;
#else
  FlushTinyToZero() {}
#endif
};

// The arguments of ibvit_mixture_log_sums.
struct Call {
  int64_t components, samples;
  int32_t columns;
  const int32_t* dims;
  const float* const* packed;
  const double* offset;
  const float* const* u;
  const double* const* reference;
  TileJob job;
  double* single;
  double* pair_sums;

  // log2 of the reference of sample s, relative to the packed constants.
  double reference_log2(int32_t c, int64_t s) const {
    return kLog2E * (reference[c][s] + 0.5 * dims[c] * kLogTwoPi) - offset[c];
  }

  double* result(int32_t row) const {
    return row < columns ? single + row * samples : pair_sums + (row - columns) * samples;
  }
};

// log2 of a sum of powers of two of any size.
class LogSum {
 public:
  void add(double exponent) {
    if (exponent > largest_) {
      sum_ = sum_ * std::exp2(largest_ - exponent) + 1;
      largest_ = exponent;
    } else {
      sum_ += std::exp2(exponent - largest_);
    }
  }
  double value() const { return largest_ + std::log2(sum_); }

 private:
  double largest_ = -std::numeric_limits<double>::infinity();
  double sum_ = 0;
};

// One sample in float64 with running maxima, for a draw so far out that the other components outweigh the component of
// the draw by 2^50.
void sum_carefully(const Call& call, int64_t s) {
  std::vector<LogSum> sums(call.columns + call.job.pairs);
  std::vector<double> exponents(call.columns);
  for (int64_t i = 0; i < call.components; ++i) {
    for (int32_t c = 0; c < call.columns; ++c) {
      const int32_t dims = call.dims[c];
      const float* record = call.packed[c] + i * (2 * dims + 1);
      double exponent = record[2 * dims] - call.reference_log2(c, s);
      for (int32_t j = 0; j < dims; ++j) {
        const double t = (double(call.u[c][s * dims + j]) - record[2 * j]) * record[2 * j + 1];
        exponent -= t * t;
      }
      exponents[c] = exponent;
      sums[c].add(exponent);
    }
    for (int32_t p = 0; p < call.job.pairs; ++p) {
      sums[call.columns + p].add(exponents[call.job.pair[2 * p]] + exponents[call.job.pair[2 * p + 1]]);
    }
  }
  for (int32_t row = 0; row < call.columns + call.job.pairs; ++row) call.result(row)[s] = sums[row].value() / kLog2E;
}

// Floats of scratch memory for sum_tile: the sums, and with pairs the terms of a sub-tile.
int64_t scratch_floats(const Call& call, const MixtureKernel& kernel) {
  const int64_t terms = call.job.pairs ? int64_t(call.columns) * kComponentsAtOnce : 0;
  return (call.columns + call.job.pairs + terms) * kernel.tile;
}

// Samples first ... first + count, at most kTilesAtOnce tiles, against all components.
void sum_samples(const Call& call, const MixtureKernel& kernel, int64_t first, int64_t count, float* scratch) {
  const int32_t rows = call.columns + call.job.pairs;
  const int64_t tile = kernel.tile, tiles = (count + tile - 1) / tile;
  int64_t width = 0;
  for (int32_t c = 0; c < call.columns; ++c) width += call.dims[c];

  // Samples lie across the lanes; the last tile repeats the last sample.
  std::vector<float> u(tiles * tile * width), reference(tiles * tile * call.columns);
  std::vector<TileColumn> columns(tiles * call.columns);
  float* next = u.data();
  for (int64_t t = 0; t < tiles; ++t) {
    for (int32_t c = 0; c < call.columns; ++c) {
      float* tile_reference = &reference[(t * call.columns + c) * tile];
      columns[t * call.columns + c] = {call.dims[c], call.packed[c], next, tile_reference};
      for (int64_t lane = 0; lane < tile; ++lane) {
        const int64_t s = first + std::min(t * tile + lane, count - 1);
        tile_reference[lane] = float(call.reference_log2(c, s));
        for (int32_t j = 0; j < call.dims[c]; ++j) next[j * tile + lane] = call.u[c][s * call.dims[c] + j];
      }
      next += call.dims[c] * tile;
    }
  }

  std::vector<double> sums(tiles * rows * tile);
  const int64_t capacity = kBlockBytes / int64_t(sizeof(float)) / (2 * width + call.columns);
  const int64_t whole_subtiles = padded_components(capacity) - kComponentsAtOnce;
  const int64_t block = std::min(kBlockComponents, std::max<int64_t>(whole_subtiles, kComponentsAtOnce));
  const int64_t components = padded_components(call.components);
  for (int64_t i = 0; i < components; i += block) {
    const FlushTinyToZero flush;
    for (int64_t t = 0; t < tiles; ++t) {
      kernel.sum_tile(
          call.job, i, std::min(block, components - i), &columns[t * call.columns], scratch,
          &sums[t * rows * tile]);
    }
  }

  for (int64_t k = 0; k < count; ++k) {
    const double* sample_sums = &sums[(k / tile) * rows * tile + k % tile];  // of one row each, `tile` apart
    bool certain = true;
    for (int32_t c = 0; c < call.columns; ++c) certain = certain && sample_sums[c * tile] < kCertain;
    if (!certain) {
      sum_carefully(call, first + k);
      continue;
    }
    for (int32_t row = 0; row < rows; ++row) call.result(row)[first + k] = std::log(sample_sums[row * tile]);
  }
}

}  // namespace

extern "C" {

int64_t ibvit_mixture_packed_size(int64_t components, int32_t dims) {
  return padded_components(components) * (2 * dims + 1);
}

int32_t ibvit_mixture_pack(
    int64_t components, int32_t dims, const float* mu, const float* logvar, float* packed, double* offset,
    int32_t threads) try {
  constexpr int64_t kRows = 4096;
  const int64_t parts = (padded_components(components) + kRows - 1) / kRows;
  const auto constant = [&](int64_t i) {
    double sum = 0;
    for (int32_t j = 0; j < dims; ++j) sum += logvar[i * dims + j];
    return -0.5 * kLog2E * sum;
  };
  // Constants are stored less the mean of the constants, so that the rounding error does not grow with d.
  std::vector<double> sums(parts);
  for_parts(parts, 0, threads, StartThreads::kWithoutOpenMP, [&](int64_t part, float*) {
    for (int64_t i = part * kRows; i < std::min(components, (part + 1) * kRows); ++i) sums[part] += constant(i);
  });
  double mean = 0;
  for (double sum : sums) mean += sum / double(components);
  *offset = mean;
  for_parts(parts, 0, threads, StartThreads::kWithoutOpenMP, [&](int64_t part, float*) {
    for (int64_t i = part * kRows; i < std::min(padded_components(components), (part + 1) * kRows); ++i) {
      float* record = packed + i * (2 * dims + 1);
      const bool is_padding = i >= components;
      for (int32_t j = 0; j < dims; ++j) {
        record[2 * j] = is_padding ? 0.0f : mu[i * dims + j];
        record[2 * j + 1] = is_padding ? 0.0f : float(std::sqrt(0.5 * kLog2E) * std::exp(-0.5 * logvar[i * dims + j]));
      }
      record[2 * dims] = is_padding ? kNowhere : float(constant(i) - mean);
    }
  });
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

int32_t ibvit_mixture_log_sums(
    int64_t components, int64_t samples, int32_t columns, const int32_t* dims, const float* const* packed,
    const double* offset, const float* const* u, const double* const* reference, int32_t pairs, const int32_t* pair,
    double* single, double* pair_sums, int32_t threads, int32_t instruction_set) try {
  const InstructionSet* set = ::instruction_set(instruction_set);
  if (set == nullptr) return IBVIT_NO_SUCH_INSTRUCTION_SET;
  const MixtureKernel& kernel = *set->mixture;
  const Call call{components, samples,   columns,                dims,   packed,
                  offset,     u,         reference,              {columns, pairs, pair},
                  single,     pair_sums};
  // As many tiles at once as still leave a part for every thread.
  const int64_t share = (samples + threads - 1) / threads;
  const int64_t tiles = std::min(kTilesAtOnce, std::max<int64_t>(share / kernel.tile, 1));
  const int64_t at_once = tiles * kernel.tile;
  const int64_t parts = (samples + at_once - 1) / at_once;
  const auto sum_part = [&](int64_t part, float* scratch) {
    sum_samples(call, kernel, part * at_once, std::min(at_once, samples - part * at_once), scratch);
  };
  for_parts(parts, scratch_floats(call, kernel), threads, StartThreads::kWithoutOpenMP, sum_part);
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

}  // extern "C"
