// Four lanes: NEON on arm64, SSE2 on x86-64, and whatever the compiler makes of them elsewhere.
#define IBVIT_LANES 4
#define IBVIT_KERNEL kPortableBottleneck
#include "kernel.h"
