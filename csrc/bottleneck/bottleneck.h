// C interface of the fused bottleneck and output projection on the CPU, float32. ibvit/ops/reference.py defines them.
//
// Shapes: B images, N tokens, H heads, D width, h hidden, r latent, C columns. Every array is dense, and the last index
// runs fastest. Results do not depend on the number of threads. The threads are GNU OpenMP's; without it there is one.
#ifndef IBVIT_BOTTLENECK_H
#define IBVIT_BOTTLENECK_H

#include "library.h"

#if defined(__cplusplus)
extern "C" {
#endif

struct ibvit_bottleneck_sizes {
  int32_t heads, width, columns, hidden, latent;
};

// Parameters, everywhere in this order: w1 [H, D, h], b1 [H, h], w2 [H, h, 2r], b2 [H, 2r], w3 [H, r, h], b3 [H, h],
// w4 [H, h, D], b4 [H, D], proj_weight [C, H D], proj_bias [C].

// Numbers of floats that ibvit_bottleneck_pack writes.
IBVIT_API int64_t ibvit_bottleneck_weights(struct ibvit_bottleneck_sizes sizes);
IBVIT_API int64_t ibvit_bottleneck_biases(struct ibvit_bottleneck_sizes sizes);

// Fold W4 into the projection and lay the parameters out as the kernels read them.
IBVIT_API int32_t ibvit_bottleneck_pack(
    struct ibvit_bottleneck_sizes sizes,
    const float* const* parameters,
    float* weights,
    float* biases,
    int32_t threads,
    int32_t instruction_set);

IBVIT_API int32_t ibvit_bottleneck_forward(
    struct ibvit_bottleneck_sizes sizes,
    int64_t images,
    int32_t tokens,
    const float* y,        // [B, N, H D]
    const float* weights,  // packed
    const float* biases,
    const int64_t* key,  // seed, step, first sample
    int32_t block,
    float* update,  // [B, N, C]
    float* kl,      // [B, H, N]
    int32_t threads,
    int32_t instruction_set);

IBVIT_API int32_t ibvit_bottleneck_backward(
    struct ibvit_bottleneck_sizes sizes,
    int64_t images,
    int32_t tokens,
    const float* d_update,  // [B, N, C]
    const float* d_kl,      // [B, H, N]
    const float* y,
    const float* const* parameters,
    const float* weights,  // packed
    const float* biases,
    const int64_t* key,
    int32_t block,
    float* d_y,                  // [B, N, H D]
    float* const* d_parameters,  // shaped as the parameters
    int32_t threads,
    int32_t instruction_set);

#if defined(__cplusplus)
}
#endif

#endif
