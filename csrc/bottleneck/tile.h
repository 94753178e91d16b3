// What bottleneck.cpp hands to the loops over a tile of tokens in kernel.h.
#ifndef IBVIT_BOTTLENECK_TILE_H
#define IBVIT_BOTTLENECK_TILE_H

#include <stdint.h>

constexpr int kBlock = 16;  // the extents of packed weights and of scratch memory are padded to multiples of this
constexpr int kTileTokens = 32;

// Extents of one head's operands, and the offsets of one head's parameters. There are no member functions: each
// instruction set would bring a copy of them, and the linker would keep any one. Padding is zero. A padded latent has
// mu = 0 and rho = 0, so that the KL of this latent is 0. The weights that multiply z of this latent are 0 as well.
struct Layout {
  int32_t heads, width, hidden, latent, columns;
  int32_t padded_width, padded_hidden, padded_latent, padded_columns;  // to multiples of kBlock
  // Packed weights: for each head W1 | W2 | W3 | merged (= W4 Wo^T), then the same four transposed.
  int64_t w2, w3, merged, weights;  // offsets of W2, W3 and merged, and the extent of all four, in either orientation
  // Packed biases: for each head b1 | b2 | b3, then the bias of the output.
  int64_t b2, b3, biases;
  // Gradients: for each head of the weights (not transposed) and of the biases, then of the bias of the output.
  int64_t head_gradients, gradients;
  int64_t scratch;  // floats that a tile needs
};

// One call: the arguments of ibvit_bottleneck_forward and _backward.
struct Pass {
  Layout layout;
  int64_t rows;  // images times tokens
  int32_t tokens;
  const float* y;        // [rows, heads * width]
  const float* weights;  // packed
  const float* biases;
  uint32_t seed[2], step, first_sample, block;
  float* update;          // [rows, columns], forward
  float* kl;              // [images, heads, tokens]
  const float* d_update;  // [rows, columns], backward
  const float* d_kl;      // [images, heads, tokens]
  float* d_y;             // [rows, heads * width]
};

// Tokens first ... first + count, count <= kTileTokens. `scratch` holds layout.scratch floats.
struct BottleneckKernel {
  void (*forward)(const Pass&, int64_t first, int32_t count, float* scratch);
  void (*backward)(const Pass&, int64_t first, int32_t count, float* scratch, float* gradients);
  // c [m, n] = a [m, k] b [k, n]; a's element (i, p) lies at a[i * row + p * step]. m and n are multiples of kBlock.
  void (*multiply)(
      int32_t m, int32_t n, int32_t k, const float* a, int64_t row, int64_t step, const float* b, int64_t b_stride,
      float* c, int64_t c_stride);
};

extern const BottleneckKernel kPortableBottleneck, kAvx2Bottleneck, kAvx512Bottleneck;

#endif
