// The kernels of each instruction set, and the choice among them.
#ifndef IBVIT_INSTRUCTION_SETS_H
#define IBVIT_INSTRUCTION_SETS_H

#include "bottleneck/tile.h"
#include "mixture/tile.h"

struct InstructionSet {
  const char* name;
  const MixtureKernel* mixture;
  const BottleneckKernel* bottleneck;
};

// As ibvit_instruction_set counts them; null if there is none.
const InstructionSet* instruction_set(int32_t index);

#endif
