// C interface of the mixture sums: for many samples, the log of the sum of Gaussian densities over many components.
//
// A column c is one draw u_c for every sample from one channel (diagonal Gaussians, one for each component i). With
//     l(c, s, i) = log N(u_c[s]; mu[i], exp(logvar[i])) - reference_c[s]
// the results are, in nats and float64,
//     single[c, s] = log sum_i exp(l(c, s, i))
//     pair[p, s]   = log sum_i exp(l(a, s, i) + l(b, s, i)),  p = (a, b)
// They do not depend on the number of threads.
#ifndef IBVIT_MIXTURE_H
#define IBVIT_MIXTURE_H

#include "library.h"

#if defined(__cplusplus)
extern "C" {
#endif

// Number of floats that ibvit_mixture_pack writes.
IBVIT_API int64_t ibvit_mixture_packed_size(int64_t components, int32_t dims);

// Write one channel in the layout that the kernels read.
IBVIT_API int32_t ibvit_mixture_pack(
    int64_t components,
    int32_t dims,
    const float* mu,      // [components, dims]
    const float* logvar,  // [components, dims]
    float* packed,        // [ibvit_mixture_packed_size(components, dims)]
    double* offset,       // [1], of the constants in `packed`
    int32_t threads);

IBVIT_API int32_t ibvit_mixture_log_sums(
    int64_t components,
    int64_t samples,
    int32_t columns,
    const int32_t* dims,             // [columns]
    const float* const* packed,      // [columns], of the channel of each column
    const double* offset,            // [columns], of the channel of each column
    const float* const* u,           // [columns] -> [samples, dims]
    const double* const* reference,  // [columns] -> [samples], log-densities in nats
    int32_t pairs,
    const int32_t* pair,  // [pairs, 2], columns
    double* single,       // [columns, samples]
    double* pair_sums,    // [pairs, samples]
    int32_t threads,
    int32_t instruction_set);

#if defined(__cplusplus)
}
#endif

#endif
