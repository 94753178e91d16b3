// Compiled with AVX2 and FMA enabled; called only where the machine has them.
#define IBVIT_LANES 8
#define IBVIT_KERNEL kAvx2Bottleneck
#include "kernel.h"
