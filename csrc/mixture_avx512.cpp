// Compiled with AVX-512 F and DQ enabled; mixture.cpp calls it only where the machine has them.
#define IBVIT_LANES 16
#define IBVIT_KERNEL kAvx512
#include "mixture_kernel.h"
