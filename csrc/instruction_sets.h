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

// By the index of ibvit_instruction_set; null past the last one.
const InstructionSet* instruction_set(int32_t index);

#endif
