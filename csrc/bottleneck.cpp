// Layout of the parameters, division of the tokens among threads, and the way back from merged weights.
#include "bottleneck.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "instruction_sets.h"

namespace {

constexpr int64_t kTilesAPart = 16;  // at least, beyond kParts parts
constexpr int64_t kParts = 4;
constexpr int64_t kMostParts = 64;

int32_t padded(int32_t extent) { return (extent + kBlock - 1) / kBlock * kBlock; }

Layout layout_of(const ibvit_bottleneck_sizes& s) {
  Layout l = {};
  l.heads = s.heads;
  l.width = s.width;
  l.hidden = s.hidden;
  l.latent = s.latent;
  l.columns = s.columns;
  l.wide_width = padded(s.width);
  l.wide_hidden = padded(s.hidden);
  l.wide_latent = padded(s.latent);
  l.wide_columns = padded(s.columns);
  l.w2 = int64_t(l.wide_width) * l.wide_hidden;
  l.w3 = l.w2 + int64_t(l.wide_hidden) * 2 * l.wide_latent;
  l.merged = l.w3 + int64_t(l.wide_latent) * l.wide_hidden;
  l.weights = l.merged + int64_t(l.wide_hidden) * l.wide_columns;
  l.b2 = l.wide_hidden;
  l.b3 = l.b2 + 2 * l.wide_latent;
  l.biases = l.b3 + l.wide_hidden;
  l.head_gradients = l.weights + l.biases;
  l.gradients = l.heads * l.head_gradients + l.wide_columns;
  // The rows of bottleneck_kernel.h: what a head's forward pass keeps, then what the backward pass adds.
  const int64_t forward = l.wide_width + 4 * l.wide_hidden + 5 * l.wide_latent;
  const int64_t backward = l.wide_columns + 2 * l.wide_hidden + 3 * l.wide_latent + l.wide_width;
  l.scratch = kTileTokens * (forward + backward);
  return l;
}

// OpenMP's threads, if the process has GNU's interface to them (torch on Linux brings it): threads of our own would
// have to share the cores with torch's, which go on spinning for a while after each operation.
void run_threads(void (*body)(void*), void* data, int32_t threads) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const Parallel parallel = Parallel(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (parallel == nullptr || threads <= 1) return body(data);
  parallel(body, data, unsigned(threads), 0);
}

// Runs work(part, scratch) for parts 0 ... parts - 1, with scratch memory of each thread's own. Work does not throw.
template <typename Work>
void for_parts(int64_t parts, int64_t scratch_floats, int32_t threads, const Work& work) {
  threads = int32_t(std::max<int64_t>(1, std::min<int64_t>(threads, parts)));
  std::vector<float> scratch(threads * scratch_floats);
  struct State {
    const Work& work;
    int64_t parts, scratch_floats;
    float* scratch;
    std::atomic<int64_t> next_part{0}, next_thread{0};
  } state{work, parts, scratch_floats, scratch.data()};
  run_threads(
      [](void* data) {
        State& s = *static_cast<State*>(data);
        float* own = s.scratch + s.next_thread++ * s.scratch_floats;
        for (int64_t part = s.next_part++; part < s.parts; part = s.next_part++) s.work(part, own);
      },
      &state, threads);
}

// rows x columns of a matrix, element (i, j) at from[i * row + j * step], into rows of `stride`.
void copy(const float* from, int64_t row, int64_t step, int32_t rows, int32_t columns, float* to, int64_t stride) {
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t j = 0; j < columns; ++j) to[i * stride + j] = from[i * row + j * step];
  }
}

// A head's matrix [rows, columns] into its place among the weights, and transposed.
void place(
    const float* from, int32_t rows, int32_t columns, int32_t wide_rows, int32_t wide_columns, float* to,
    float* transposed) {
  copy(from, columns, 1, rows, columns, to, wide_columns);
  copy(from, 1, columns, columns, rows, transposed, wide_rows);
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

// From the gradients of the packed weights to those of the parameters.
void unpack_gradients(
    const Layout& l, const BottleneckKernel& kernel, const float* gradients, const float* const* parameters,
    float* const* d_parameters) {
  const int64_t total = int64_t(l.heads) * l.width;
  const float* d_out_bias = gradients + l.heads * l.head_gradients;
  std::vector<float> padded_map(int64_t(std::max(l.wide_columns, l.wide_hidden)) * l.wide_width);
  std::vector<float> product(padded_map.size());
  for (int32_t head = 0; head < l.heads; ++head) {
    const float* d_w = gradients + head * l.head_gradients;
    const float* d_b = d_w + l.weights;
    const int64_t h = l.hidden, r = l.latent;
    copy(d_w, l.wide_hidden, 1, l.width, l.hidden, d_parameters[0] + head * l.width * h, h);
    copy(d_b, 0, 1, 1, l.hidden, d_parameters[1] + head * h, h);
    for (int64_t half = 0; half < 2; ++half) {  // mu, rho
      copy(d_w + l.w2 + half * l.wide_latent, 2 * l.wide_latent, 1, l.hidden, l.latent,
           d_parameters[2] + (head * h * 2 + half) * r, 2 * r);
      copy(d_b + l.b2 + half * l.wide_latent, 0, 1, 1, l.latent, d_parameters[3] + (head * 2 + half) * r, r);
    }
    copy(d_w + l.w3, l.wide_hidden, 1, l.latent, l.hidden, d_parameters[4] + head * r * h, h);
    copy(d_b + l.b3, 0, 1, 1, l.hidden, d_parameters[5] + head * h, h);

    // merged = W4 Wo^T, out bias = sum of Wo b4 + bo: d_W4 = d_merged Wo, d_Wo = d_merged^T W4 + d_bias b4^T.
    const float* d_merged = d_w + l.merged;
    const float* wo = parameters[8] + head * l.width;
    std::fill(padded_map.begin(), padded_map.end(), 0.0f);
    copy(wo, total, 1, l.columns, l.width, padded_map.data(), l.wide_width);
    kernel.multiply(l.wide_hidden, l.wide_width, l.columns, d_merged, l.wide_columns, 1, padded_map.data(),
                    l.wide_width, product.data(), l.wide_width);
    copy(product.data(), l.wide_width, 1, l.hidden, l.width, d_parameters[6] + head * h * l.width, l.width);
    float* d_b4 = d_parameters[7] + int64_t(head) * l.width;
    std::fill(d_b4, d_b4 + l.width, 0.0f);
    for (int32_t c = 0; c < l.columns; ++c) {
      for (int32_t d = 0; d < l.width; ++d) d_b4[d] += d_out_bias[c] * wo[c * total + d];
    }
    std::fill(padded_map.begin(), padded_map.end(), 0.0f);
    copy(parameters[6] + head * h * l.width, l.width, 1, l.hidden, l.width, padded_map.data(), l.wide_width);
    kernel.multiply(l.wide_columns, l.wide_width, l.hidden, d_merged, 1, l.wide_columns, padded_map.data(),
                    l.wide_width, product.data(), l.wide_width);
    const float* b4 = parameters[7] + int64_t(head) * l.width;
    float* d_wo = d_parameters[8] + int64_t(head) * l.width;
    for (int32_t c = 0; c < l.columns; ++c) {
      for (int32_t d = 0; d < l.width; ++d) d_wo[c * total + d] = product[c * l.wide_width + d] + d_out_bias[c] * b4[d];
    }
  }
  copy(d_out_bias, 0, 1, 1, l.columns, d_parameters[9], l.columns);
}

}  // namespace

extern "C" {

int64_t ibvit_bottleneck_weights(ibvit_bottleneck_sizes sizes) { return sizes.heads * 2 * layout_of(sizes).weights; }

int64_t ibvit_bottleneck_biases(ibvit_bottleneck_sizes sizes) {
  const Layout l = layout_of(sizes);
  return l.heads * l.biases + l.wide_columns;
}

int32_t ibvit_bottleneck_pack(
    ibvit_bottleneck_sizes sizes, const float* const* parameters, float* weights, float* biases,
    int32_t instruction_set) try {
  const InstructionSet* set = ::instruction_set(instruction_set);
  if (set == nullptr) return IBVIT_NO_SUCH_INSTRUCTION_SET;
  const Layout l = layout_of(sizes);
  const auto [w1, b1, w2, b2, w3, b3, w4, b4, proj_weight, proj_bias] =
      *reinterpret_cast<const float* const(*)[IBVIT_BOTTLENECK_PARAMETERS]>(parameters);
  const int64_t h = l.hidden, r = l.latent, total = int64_t(l.heads) * l.width;
  std::fill(weights, weights + l.heads * 2 * l.weights, 0.0f);
  std::fill(biases, biases + l.heads * l.biases + l.wide_columns, 0.0f);
  float* out_bias = biases + l.heads * l.biases;
  copy(proj_bias, 0, 1, 1, l.columns, out_bias, l.columns);
  std::vector<float> map(int64_t(l.width) * l.wide_columns);  // Wo^T of one head
  for (int32_t head = 0; head < l.heads; ++head) {
    float* to = weights + head * 2 * l.weights;
    float* transposed = to + l.weights;
    place(w1 + head * l.width * h, l.width, l.hidden, l.wide_width, l.wide_hidden, to, transposed);
    const float* own_w2 = w2 + head * h * 2 * r;
    for (int64_t half = 0; half < 2; ++half) {  // mu, rho
      const int64_t column = half * l.wide_latent;
      copy(own_w2 + half * r, 2 * r, 1, l.hidden, l.latent, to + l.w2 + column, 2 * l.wide_latent);
      copy(own_w2 + half * r, 1, 2 * r, l.latent, l.hidden, transposed + l.w2 + column * l.wide_hidden, l.wide_hidden);
    }
    place(w3 + head * r * h, l.latent, l.hidden, l.wide_latent, l.wide_hidden, to + l.w3, transposed + l.w3);
    const float* wo = proj_weight + head * l.width;
    std::fill(map.begin(), map.end(), 0.0f);
    copy(wo, 1, total, l.width, l.columns, map.data(), l.wide_columns);
    std::vector<float> own_w4(int64_t(l.wide_hidden) * l.width);
    copy(w4 + head * h * l.width, l.width, 1, l.hidden, l.width, own_w4.data(), l.width);
    set->bottleneck->multiply(l.wide_hidden, l.wide_columns, l.width, own_w4.data(), l.width, 1, map.data(),
                              l.wide_columns, to + l.merged, l.wide_columns);
    copy(to + l.merged, 1, l.wide_columns, l.wide_columns, l.wide_hidden, transposed + l.merged, l.wide_hidden);
    float* own = biases + head * l.biases;
    copy(b1 + head * h, 0, 1, 1, l.hidden, own, l.hidden);
    for (int64_t half = 0; half < 2; ++half) {
      copy(b2 + (head * 2 + half) * r, 0, 1, 1, l.latent, own + l.b2 + half * l.wide_latent, l.latent);
    }
    copy(b3 + head * h, 0, 1, 1, l.hidden, own + l.b3, l.hidden);
    for (int32_t c = 0; c < l.columns; ++c) {
      for (int32_t d = 0; d < l.width; ++d) out_bias[c] += b4[int64_t(head) * l.width + d] * wo[c * total + d];
    }
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
  for_parts(tiles_of(pass), layout.scratch, threads, [&](int64_t tile, float* scratch) {
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
  // The parts, and so the order of summation, follow from the sizes alone, not from the number of threads.
  const int64_t tiles = tiles_of(pass);
  const int64_t parts = std::min(std::max(kParts, std::min(tiles / kTilesAPart, kMostParts)), std::max<int64_t>(tiles, 1));
  std::vector<float> gradients(parts * layout.gradients);
  for_parts(parts, layout.scratch, threads, [&](int64_t part, float* scratch) {
    for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
      set->bottleneck->backward(
          pass, tile * kTileTokens, tokens_of(pass, tile), scratch, &gradients[part * layout.gradients]);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < layout.gradients; ++i) gradients[i] += gradients[part * layout.gradients + i];
  }
  unpack_gradients(layout, *set->bottleneck, gradients.data(), parameters, d_parameters);
  return IBVIT_OK;
} catch (const std::bad_alloc&) {
  return IBVIT_OUT_OF_MEMORY;
}

}  // extern "C"
