// Compiled with AVX-512 F and DQ enabled; called only where the machine has them.
#define IBVIT_LANES 16
#define IBVIT_KERNEL kAvx512Mixture
#include "kernel.h"
