// A tile of tokens through the bottlenecks of all heads, forward and backward, compiled once for each instruction set.
//
// A translation unit defines IBVIT_LANES (floats per register) and IBVIT_KERNEL (the name of the BottleneckKernel) and
// includes this file. Every matrix of a tile lies in scratch memory with padded extents. Rows beyond the last token are
// zero in an input; in an output nobody reads them.
#ifndef IBVIT_BOTTLENECK_KERNEL_H
#define IBVIT_BOTTLENECK_KERNEL_H

#include "arithmetic.h"
#include "tile.h"

namespace {

// One register block of a product has 8 accumulators: enough to keep the multiply-add units busy, and few enough for 16
// registers.
constexpr int kVectors = kBlock / kLanes;
constexpr int kRows = 8 / kVectors;
static_assert(kTileTokens % kBlock == 0 && kBlock % kRows == 0, "products have no remainders");

enum class Start { kZero, kBias, kAdd };

// c [m, n] = start + a [m, k] b [k, n]; a's element (i, p) lies at a[i * row + p * step]; `bias` [n] starts every row.
void multiply(
    int32_t m, int32_t n, int32_t k, const float* a, int64_t row, int64_t step, const float* b, int64_t b_stride,
    float* c, int64_t c_stride, Start start, const float* bias = nullptr) {
  for (int32_t j = 0; j < n; j += kBlock) {
    for (int32_t i = 0; i < m; i += kRows) {
      Floats sum[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          const int32_t column = j + v * kLanes;
          sum[r][v] = start == Start::kAdd    ? load(c + (i + r) * c_stride + column)
                      : start == Start::kBias ? load(bias + column)
                                              : Floats{};
        }
      }
      const float* left = a + i * row;
      const float* right = b + j;
      for (int32_t p = 0; p < k; ++p, left += step, right += b_stride) {
        Floats values[kVectors];
        for (int v = 0; v < kVectors; ++v) values[v] = load(right + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
          const Floats factor = splat(left[r * row]);
          for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * values[v];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) store(c + (i + r) * c_stride + j + v * kLanes, sum[r][v]);
      }
    }
  }
}

// A matrix of one tile: a row for each token.
struct Tile {
  float* data;
  int32_t width;

  float* row(int i) const { return data + int64_t(i) * width; }
};

// to = from [tokens, k] weights [k, to.width] + start.
void map(const Tile& from, const float* weights, const Tile& to, Start start, const float* bias = nullptr) {
  multiply(
      kTileTokens, to.width, from.width, from.data, from.width, 1, weights, to.width, to.data, to.width, start, bias);
}

// gradient [from.width, to.width] += from^T to; bias [to.width] += the sum of the rows of `to`.
void add_gradient(const Tile& from, const Tile& to, float* gradient, float* bias) {
  multiply(
      from.width, to.width, kTileTokens, from.data, 1, from.width, to.data, to.width, gradient, to.width, Start::kAdd);
  if (bias == nullptr) return;
  for (int i = 0; i < kTileTokens; ++i) {
    for (int32_t j = 0; j < to.width; j += kLanes) store(bias + j, load(bias + j) + load(to.row(i) + j));
  }
}

// Hands out scratch memory.
struct Scratch {
  float* next;

  Tile tile(int32_t width) {
    const Tile tile = {next, width};
    next += int64_t(kTileTokens) * width;
    return tile;
  }
};

// The tiles that the forward pass of one head computes; `slope` tiles are the derivatives of GELU.
struct Head {
  Tile y, a, a_slope, posterior, sigma, eps, z, g, g_slope;

  Head(const Layout& l, Scratch* scratch)
      : y(scratch->tile(l.padded_width)), a(scratch->tile(l.padded_hidden)), a_slope(scratch->tile(l.padded_hidden)),
        posterior(scratch->tile(2 * l.padded_latent)), sigma(scratch->tile(l.padded_latent)),
        eps(scratch->tile(l.padded_latent)), z(scratch->tile(l.padded_latent)), g(scratch->tile(l.padded_hidden)),
        g_slope(scratch->tile(l.padded_hidden)) {}
};

// Copies `count` rows of a matrix, `stride` apart, into a tile; the other rows of the tile become zero.
void read(const float* from, int64_t stride, int32_t width, int32_t count, const Tile& to) {
  memset(to.data, 0, sizeof(float) * kTileTokens * to.width);
  for (int32_t i = 0; i < count; ++i) memcpy(to.row(i), from + i * stride, sizeof(float) * width);
}

// Copies the first `count` rows of a tile to rows of a matrix, `stride` apart.
void write(const Tile& from, int32_t width, int32_t count, float* to, int64_t stride) {
  for (int32_t i = 0; i < count; ++i) memcpy(to + i * stride, from.row(i), sizeof(float) * width);
}

// epsilon of head `index`; ibvit/ops/noise.py defines counter and key.
void draw_noise(const Pass& pass, int index, int64_t first, const Tile& eps) {
  uint32_t token[kTileTokens], sample[kTileTokens];
  for (int i = 0; i < kTileTokens; ++i) {
    token[i] = uint32_t((first + i) % pass.tokens);
    sample[i] = pass.first_sample + uint32_t((first + i) / pass.tokens);
  }
  memset(eps.data, 0, sizeof(float) * kTileTokens * eps.width);
  for (int32_t quad = 0; 4 * quad < pass.layout.latent; ++quad) {
    uint32_t words[4][kTileTokens];
    for (int i = 0; i < kTileTokens; ++i) {
      words[0][i] = (pass.block << 20) + (uint32_t(index) << 8) + uint32_t(quad);
      words[1][i] = token[i];
      words[2][i] = sample[i];
      words[3][i] = pass.step;
    }
    philox<kTileTokens>(words, pass.seed[0], pass.seed[1]);
    for (int i = 0; i < kTileTokens; i += kLanes) {
      Floats normals[4];
      normal_pair(load<Words>(words[0] + i), load<Words>(words[1] + i), normals);
      normal_pair(load<Words>(words[2] + i), load<Words>(words[3] + i), normals + 2);
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int n = 0; n < 4; ++n) eps.row(i + lane)[4 * quad + n] = normals[n][lane];
      }
    }
  }
}

template <bool Slope>
void activate(const Tile& x, const Tile& slope) {
  for (int32_t i = 0; i < kTileTokens * x.width; i += kLanes) {
    if (Slope) {
      Floats derivative;
      store(x.data + i, gelu(load(x.data + i), &derivative));
      store(slope.data + i, derivative);
    } else {
      store(x.data + i, gelu(load(x.data + i)));
    }
  }
}

// rho clamped to [-10, 10]; NaN stays, as in torch.
inline Floats clamped(Floats rho) {
  const Floats lowest = splat(-10.0f), highest = splat(10.0f);
  rho = rho < lowest ? lowest : rho;
  return rho > highest ? highest : rho;
}

// z = mu + sigma eps, and the KL of each token unless `kl` is null.
void sample(const Head& head, float* kl) {
  const int32_t width = head.z.width;
  for (int i = 0; i < kTileTokens; ++i) {
    Floats total = {};
    for (int32_t j = 0; j < width; j += kLanes) {
      const Floats mu = load(head.posterior.row(i) + j), rho = clamped(load(head.posterior.row(i) + width + j));
      const Floats sigma = exponential(rho * 0.5f);
      store(head.sigma.row(i) + j, sigma);
      store(head.z.row(i) + j, mu + sigma * load(head.eps.row(i) + j));
      total += exponential(rho) + mu * mu - 1.0f - rho;
    }
    if (kl != nullptr) {
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
      kl[i] = 0.5f * sum;
    }
  }
}

// From y to g, for head `index`; with Slope the derivatives of GELU are stored as well.
template <bool Slope>
void y_to_g(const Pass& pass, int index, int64_t first, int32_t count, const Head& head, float* kl) {
  const Layout& l = pass.layout;
  const float* weights = pass.weights + index * 2 * l.weights;
  const float* biases = pass.biases + index * l.biases;
  const int64_t total = int64_t(l.heads) * l.width;
  read(pass.y + first * total + index * l.width, total, l.width, count, head.y);
  map(head.y, weights, head.a, Start::kBias, biases);
  activate<Slope>(head.a, head.a_slope);
  map(head.a, weights + l.w2, head.posterior, Start::kBias, biases + l.b2);
  draw_noise(pass, index, first, head.eps);
  sample(head, kl);
  map(head.z, weights + l.w3, head.g, Start::kBias, biases + l.b3);
  activate<Slope>(head.g, head.g_slope);
}

// Offset in [images, heads, tokens] of the KL of head `index`; `row` counts the tokens of all images.
inline int64_t kl_index(const Pass& pass, int index, int64_t row) {
  return (row / pass.tokens * pass.layout.heads + index) * pass.tokens + row % pass.tokens;
}

void forward(const Pass& pass, int64_t first, int32_t count, float* memory) {
  const Layout& l = pass.layout;
  Scratch scratch = {memory};
  const Head head(l, &scratch);
  const Tile update = scratch.tile(l.padded_columns);
  for (int index = 0; index < l.heads; ++index) {
    float kl[kTileTokens];
    y_to_g<false>(pass, index, first, count, head, kl);
    const float* merged = pass.weights + index * 2 * l.weights + l.merged;
    map(head.g, merged, update, index == 0 ? Start::kBias : Start::kAdd, pass.biases + l.heads * l.biases);
    for (int32_t i = 0; i < count; ++i) pass.kl[kl_index(pass, index, first + i)] = kl[i];
  }
  write(update, l.columns, count, pass.update + first * l.columns, l.columns);
}

// d_posterior = [d_mu | d_rho] of one head, from d_z and from d_kl, the gradient of the KL of each token.
void differentiate_sample(const Head& head, const Tile& d_z, const float* d_kl, const Tile& d_posterior) {
  const int32_t width = d_z.width;
  for (int i = 0; i < kTileTokens; ++i) {
    const float* posterior = head.posterior.row(i);
    for (int32_t j = 0; j < width; j += kLanes) {
      const Floats dz = load(d_z.row(i) + j), sigma = load(head.sigma.row(i) + j), rho = load(posterior + width + j);
      store(d_posterior.row(i) + j, dz + d_kl[i] * load(posterior + j));
      const Floats d_rho = 0.5f * (dz * load(head.eps.row(i) + j) * sigma + d_kl[i] * (sigma * sigma - 1.0f));
      const Integers outside = (rho < splat(-10.0f)) | (rho > splat(10.0f));
      store(d_posterior.row(i) + width + j, outside ? Floats{} : d_rho);
    }
  }
}

// to *= slope, element by element.
void scale(const Tile& to, const Tile& slope) {
  for (int32_t i = 0; i < kTileTokens * to.width; i += kLanes) {
    store(to.data + i, load(to.data + i) * load(slope.data + i));
  }
}

// Adds the gradients of one tile to `gradients`.
void backward(const Pass& pass, int64_t first, int32_t count, float* memory, float* gradients) {
  const Layout& l = pass.layout;
  Scratch scratch = {memory};
  const Head head(l, &scratch);
  const Tile d_update = scratch.tile(l.padded_columns), d_g = scratch.tile(l.padded_hidden);
  const Tile d_z = scratch.tile(l.padded_latent), d_posterior = scratch.tile(2 * l.padded_latent);
  const Tile d_a = scratch.tile(l.padded_hidden), d_y = scratch.tile(l.padded_width);
  read(pass.d_update + first * l.columns, l.columns, l.columns, count, d_update);
  for (int index = 0; index < l.heads; ++index) {
    float d_kl[kTileTokens] = {};
    for (int32_t i = 0; i < count; ++i) d_kl[i] = pass.d_kl[kl_index(pass, index, first + i)];
    y_to_g<true>(pass, index, first, count, head, nullptr);
    const float* weights_transposed = pass.weights + (index * 2 + 1) * l.weights;
    float* d_weights = gradients + index * l.head_gradients;
    float* d_biases = d_weights + l.weights;
    add_gradient(head.g, d_update, d_weights + l.merged, index == 0 ? gradients + l.heads * l.head_gradients : nullptr);
    map(d_update, weights_transposed + l.merged, d_g, Start::kZero);
    scale(d_g, head.g_slope);
    add_gradient(head.z, d_g, d_weights + l.w3, d_biases + l.b3);
    map(d_g, weights_transposed + l.w3, d_z, Start::kZero);
    differentiate_sample(head, d_z, d_kl, d_posterior);
    add_gradient(head.a, d_posterior, d_weights + l.w2, d_biases + l.b2);
    map(d_posterior, weights_transposed + l.w2, d_a, Start::kZero);
    scale(d_a, head.a_slope);
    add_gradient(head.y, d_a, d_weights, d_biases);
    map(d_a, weights_transposed, d_y, Start::kZero);
    const int64_t total = int64_t(l.heads) * l.width;
    write(d_y, l.width, count, pass.d_y + first * total + index * l.width, total);
  }
}

void multiply_plain(
    int32_t m, int32_t n, int32_t k, const float* a, int64_t row, int64_t step, const float* b, int64_t b_stride,
    float* c, int64_t c_stride) {
  multiply(m, n, k, a, row, step, b, b_stride, c, c_stride, Start::kZero);
}

}  // namespace

const BottleneckKernel IBVIT_KERNEL = {forward, backward, multiply_plain};

#endif
