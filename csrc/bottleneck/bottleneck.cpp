// Layout of the parameters, division of the tokens among threads, and the gradients of the weights that are merged.
#include "bottleneck.h"

#include <algorithm>
#include <new>
#include <numeric>
#include <vector>

#include "instruction_sets.h"
#include "padding.h"
#include "threads.h"

namespace {

// Tokens are divided into parts, and each part adds up gradients apart from the others. There are kParts parts, and up
// to kMostParts where each part then has at least kTilesPerPart tiles.
constexpr int64_t kParts = 4, kMostParts = 16;
constexpr int64_t kTilesPerPart = 16;

Layout layout_of(const ibvit_bottleneck_sizes& s) {
  Layout l = {};
  l.heads = s.heads;
  l.width = s.width;
  l.hidden = s.hidden;
  l.latent = s.latent;
  l.columns = s.columns;
  l.padded_width = int32_t(padded(s.width, kBlock));
  l.padded_hidden = int32_t(padded(s.hidden, kBlock));
  l.padded_latent = int32_t(padded(s.latent, kBlock));
  l.padded_columns = int32_t(padded(s.columns, kBlock));
  l.w2 = int64_t(l.padded_width) * l.padded_hidden;
  l.w3 = l.w2 + int64_t(l.padded_hidden) * 2 * l.padded_latent;
  l.merged = l.w3 + int64_t(l.padded_latent) * l.padded_hidden;
  l.weights = l.merged + int64_t(l.padded_hidden) * l.padded_columns;
  l.b2 = l.padded_hidden;
  l.b3 = l.b2 + 2 * l.padded_latent;
  l.biases = l.b3 + l.padded_hidden;
  l.head_gradients = l.weights + l.biases;
  l.gradients = l.heads * l.head_gradients + l.padded_columns;
  // Floats per token of the tiles of kernel.h: those of the forward pass of one head, and more of the backward pass.
  const int64_t forward = l.padded_width + 4 * l.padded_hidden + 5 * l.padded_latent;
  const int64_t backward = l.padded_columns + 2 * l.padded_hidden + 3 * l.padded_latent + l.padded_width;
  l.scratch = kTileTokens * (forward + backward);
  return l;
}

// Copies rows x columns elements of a matrix with rows `from_stride` apart into one with rows `to_stride` apart.
void copy(const float* from, int64_t from_stride, int32_t rows, int32_t columns, float* to, int64_t to_stride) {
  for (int32_t i = 0; i < rows; ++i) std::copy_n(from + i * from_stride, columns, to + i * to_stride);
}

// The same, transposed: `to` has `columns` rows.
void transpose(const float* from, int64_t from_stride, int32_t rows, int32_t columns, float* to, int64_t to_stride) {
  for (int32_t j = 0; j < columns; ++j) {
    for (int32_t i = 0; i < rows; ++i) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

// The parameters, in the order of the interface.
struct Parameters {
  const float *w1, *b1, *w2, *b2, *w3, *b3, *w4, *b4, *proj_weight, *proj_bias;
};

struct Gradients {
  float *w1, *b1, *w2, *b2, *w3, *b3, *w4, *b4, *proj_weight, *proj_bias;
};

// The pointers p by name: Parameters or Gradients.
template <typename Named, typename Pointer>
Named named(Pointer const* p) {
  return {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]};
}

// Floats of scratch memory for pack_head and unpack_head: a padded factor and a product.
int64_t map_floats(const Layout& l) {
  return 2 * int64_t(l.padded_width) * std::max(l.padded_columns, l.padded_hidden);
}

void pack_head(
    const Layout& l, const BottleneckKernel& kernel, const Parameters& p, int64_t head, float* weights, float* biases,
    float* scratch) {
  const int64_t h = l.hidden, r = l.latent, d = l.width, total = l.heads * d;
  float* to = weights + head * 2 * l.weights;
  float* weights_transposed = to + l.weights;
  std::fill_n(to, 2 * l.weights, 0.0f);
  copy(p.w1 + head * d * h, h, d, h, to, l.padded_hidden);
  transpose(p.w1 + head * d * h, h, d, h, weights_transposed, l.padded_width);
  for (int64_t half = 0; half < 2; ++half) {  // mu, rho
    const float* w2 = p.w2 + (head * h * 2 + half) * r;
    copy(w2, 2 * r, h, r, to + l.w2 + half * l.padded_latent, 2 * l.padded_latent);
    transpose(w2, 2 * r, h, r, weights_transposed + l.w2 + half * l.padded_latent * l.padded_hidden, l.padded_hidden);
  }
  copy(p.w3 + head * r * h, h, r, h, to + l.w3, l.padded_hidden);
  transpose(p.w3 + head * r * h, h, r, h, weights_transposed + l.w3, l.padded_latent);

  float* wo = scratch;  // transposed: [D, C]
  float* w4 = scratch + map_floats(l) / 2;
  std::fill_n(scratch, map_floats(l), 0.0f);
  transpose(p.proj_weight + head * d, total, l.columns, d, wo, l.padded_columns);
  copy(p.w4 + head * h * d, d, h, d, w4, d);
  kernel.multiply(
      l.padded_hidden, l.padded_columns, d, w4, d, 1, wo, l.padded_columns, to + l.merged, l.padded_columns);
  transpose(to + l.merged, l.padded_columns, h, l.columns, weights_transposed + l.merged, l.padded_hidden);

  float* head_biases = biases + head * l.biases;
  std::fill_n(head_biases, l.biases, 0.0f);
  std::copy_n(p.b1 + head * h, h, head_biases);
  copy(p.b2 + head * 2 * r, r, 2, r, head_biases + l.b2, l.padded_latent);
  std::copy_n(p.b3 + head * h, h, head_biases + l.b3);
}

// From the gradients of the packed weights of a head to the gradients of the parameters of this head.
void unpack_head(
    const Layout& l, const BottleneckKernel& kernel, const float* packed, const float* d_out_bias, const Parameters& p,
    const Gradients& to, int64_t head, float* scratch) {
  const int64_t h = l.hidden, r = l.latent, d = l.width, total = l.heads * d;
  const float* biases = packed + l.weights;
  copy(packed, l.padded_hidden, d, h, to.w1 + head * d * h, h);
  std::copy_n(biases, h, to.b1 + head * h);
  for (int64_t half = 0; half < 2; ++half) {
    copy(packed + l.w2 + half * l.padded_latent, 2 * l.padded_latent, h, r, to.w2 + (head * h * 2 + half) * r, 2 * r);
  }
  copy(biases + l.b2, l.padded_latent, 2, r, to.b2 + head * 2 * r, r);
  copy(packed + l.w3, l.padded_hidden, r, h, to.w3 + head * r * h, h);
  std::copy_n(biases + l.b3, h, to.b3 + head * h);

  // merged = W4 Wo^T, and the bias of the output is the sum over heads of Wo b4, plus bo. So d_W4 = d_merged Wo and
  // d_Wo = d_merged^T W4 + d_out_bias b4^T.
  const float* d_merged = packed + l.merged;
  const float* wo = p.proj_weight + head * d;
  float* factor = scratch;
  float* product = scratch + map_floats(l) / 2;
  std::fill_n(factor, map_floats(l) / 2, 0.0f);
  copy(wo, total, l.columns, d, factor, l.padded_width);
  kernel.multiply(
      l.padded_hidden, l.padded_width, l.columns, d_merged, l.padded_columns, 1, factor, l.padded_width, product,
      l.padded_width);
  copy(product, l.padded_width, h, d, to.w4 + head * h * d, d);
  std::fill_n(factor, map_floats(l) / 2, 0.0f);
  copy(p.w4 + head * h * d, d, h, d, factor, l.padded_width);
  kernel.multiply(
      l.padded_columns, l.padded_width, h, d_merged, 1, l.padded_columns, factor, l.padded_width, product,
      l.padded_width);
  const float* b4 = p.b4 + head * d;
  float* d_b4 = to.b4 + head * d;
  std::fill_n(d_b4, d, 0.0f);
  for (int32_t c = 0; c < l.columns; ++c) {
    float* d_wo = to.proj_weight + c * total + head * d;
    for (int64_t j = 0; j < d; ++j) d_wo[j] = product[c * l.padded_width + j] + d_out_bias[c] * b4[j];
    for (int64_t j = 0; j < d; ++j) d_b4[j] += d_out_bias[c] * wo[c * total + j];
  }
}

Pass pass_of(
    const Layout& layout, int64_t images, int32_t tokens, const float* y, const float* weights, const float* biases,
    const int64_t* key, int32_t block) {
  Pass pass = {};
  pass.layout = layout;
  pass.rows = images * tokens;
  pass.tokens = tokens;
  pass.y = y;
  pass.weights = weights;
  pass.biases = biases;
  pass.seed[0] = uint32_t(key[0]);
  pass.seed[1] = uint32_t(uint64_t(key[0]) >> 32);
  pass.step = uint32_t(key[1]);
  pass.first_sample = uint32_t(key[2]);
  pass.block = uint32_t(block);
  return pass;
}

int64_t tiles_of(const Pass& pass) { return (pass.rows + kTileTokens - 1) / kTileTokens; }

int32_t tokens_of(const Pass& pass, int64_t tile) {
  return int32_t(std::min<int64_t>(kTileTokens, pass.rows - tile * kTileTokens));
}

}  // namespace

extern "C" {

int64_t ibvit_bottleneck_weights(ibvit_bottleneck_sizes sizes) { return sizes.heads * 2 * layout_of(sizes).weights; }

int64_t ibvit_bottleneck_biases(ibvit_bottleneck_sizes sizes) {
  const Layout l = layout_of(sizes);
  return l.heads * l.biases + l.padded_columns;
}

int32_t ibvit_bottleneck_pack(
    ibvit_bottleneck_sizes sizes, const float* const* parameters, float* weights, float* biases, int32_t threads,
    int32_t instruction_set) try {
  const InstructionSet* set = ::instruction_set(instruction_set);
  if (set == nullptr) return IBVIT_NO_SUCH_INSTRUCTION_SET;
  const Layout l = layout_of(sizes);
  const auto p = named<Parameters>(parameters);
  for_parts(l.heads, map_floats(l), threads, StartThreads::kNever, [&](int64_t head, float* scratch) {
    pack_head(l, *set->bottleneck, p, head, weights, biases, scratch);
  });
  float* out_bias = biases + l.heads * l.biases;
  std::fill_n(out_bias, l.padded_columns, 0.0f);
  const int64_t total = int64_t(l.heads) * l.width;
  for (int32_t c = 0; c < l.columns; ++c) {
    out_bias[c] = std::inner_product(p.b4, p.b4 + total, p.proj_weight + c * total, p.proj_bias[c]);
  }
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

int32_t ibvit_bottleneck_forward(
    ibvit_bottleneck_sizes sizes, int64_t images, int32_t tokens, const float* y, const float* weights,
    const float* biases, const int64_t* key, int32_t block, float* update, float* kl, int32_t threads,
    int32_t instruction_set) try {
  const InstructionSet* set = ::instruction_set(instruction_set);
  if (set == nullptr) return IBVIT_NO_SUCH_INSTRUCTION_SET;
  const Layout layout = layout_of(sizes);
  Pass pass = pass_of(layout, images, tokens, y, weights, biases, key, block);
  pass.update = update;
  pass.kl = kl;
  for_parts(tiles_of(pass), layout.scratch, threads, StartThreads::kNever, [&](int64_t tile, float* scratch) {
    set->bottleneck->forward(pass, tile * kTileTokens, tokens_of(pass, tile), scratch);
  });
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

int32_t ibvit_bottleneck_backward(
    ibvit_bottleneck_sizes sizes, int64_t images, int32_t tokens, const float* d_update, const float* d_kl,
    const float* y, const float* const* parameters, const float* weights, const float* biases, const int64_t* key,
    int32_t block, float* d_y, float* const* d_parameters, int32_t threads, int32_t instruction_set) try {
  const InstructionSet* set = ::instruction_set(instruction_set);
  if (set == nullptr) return IBVIT_NO_SUCH_INSTRUCTION_SET;
  const Layout layout = layout_of(sizes);
  Pass pass = pass_of(layout, images, tokens, y, weights, biases, key, block);
  pass.d_update = d_update;
  pass.d_kl = d_kl;
  pass.d_y = d_y;
  // The parts decide the order of summation. So they follow from the sizes alone, not from the number of threads.
  const int64_t tiles = tiles_of(pass);
  const int64_t most_parts = std::max(kParts, std::min(tiles / kTilesPerPart, kMostParts));
  const int64_t parts = std::min(most_parts, std::max<int64_t>(tiles, 1));
  std::vector<float> gradients(parts * layout.gradients);
  for_parts(parts, layout.scratch, threads, StartThreads::kNever, [&](int64_t part, float* scratch) {
    for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
      set->bottleneck->backward(
          pass, tile * kTileTokens, tokens_of(pass, tile), scratch, &gradients[part * layout.gradients]);
    }
  });
  const auto add_parts = [&](int64_t first, int64_t count) {
    for (int64_t part = 1; part < parts; ++part) {
      const float* more = &gradients[part * layout.gradients + first];
      for (int64_t i = 0; i < count; ++i) gradients[first + i] += more[i];
    }
    return &gradients[first];
  };
  const auto to = named<Gradients>(d_parameters);
  const float* d_out_bias = add_parts(layout.heads * layout.head_gradients, layout.padded_columns);
  std::copy_n(d_out_bias, layout.columns, to.proj_bias);
  for_parts(layout.heads, map_floats(layout), threads, StartThreads::kNever, [&](int64_t head, float* scratch) {
    const float* packed = add_parts(head * layout.head_gradients, layout.head_gradients);
    unpack_head(layout, *set->bottleneck, packed, d_out_bias, named<Parameters>(parameters), to, head, scratch);
  });
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

}  // extern "C"
