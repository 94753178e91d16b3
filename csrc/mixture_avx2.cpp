// Compiled with AVX2 and FMA enabled; mixture.cpp calls it only where the machine has them.
#define IBVIT_LANES 8
#define IBVIT_KERNEL kAvx2
#include "mixture_kernel.h"
