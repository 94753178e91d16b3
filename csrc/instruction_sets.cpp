#include "instruction_sets.h"

#include <vector>

#include "library.h"

namespace {

std::vector<InstructionSet> available() {
  std::vector<InstructionSet> sets;
#if defined(IBVIT_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) {
    sets.push_back({"avx512", &kAvx512Mixture, &kAvx512Bottleneck});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back({"avx2", &kAvx2Mixture, &kAvx2Bottleneck});
  }
#endif
#if defined(__ARM_NEON)
  sets.push_back({"neon", &kPortableMixture, &kPortableBottleneck});
#else
  sets.push_back({"portable", &kPortableMixture, &kPortableBottleneck});
#endif
  return sets;
}

}  // namespace

const InstructionSet* instruction_set(int32_t index) {
  static const std::vector<InstructionSet> sets = available();
  return index >= 0 && index < int32_t(sets.size()) ? &sets[index] : nullptr;
}

extern "C" const char* ibvit_instruction_set(int32_t index) {
  const InstructionSet* set = instruction_set(index);
  return set == nullptr ? nullptr : set->name;
}
