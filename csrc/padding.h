// Extents of padded arrays.
#ifndef IBVIT_PADDING_H
#define IBVIT_PADDING_H

#include <stdint.h>

// The least multiple of `multiple` that is at least `extent`.
constexpr int64_t padded(int64_t extent, int64_t multiple) { return (extent + multiple - 1) / multiple * multiple; }

#endif
