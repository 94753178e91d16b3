// Declarations that the C interfaces of bottleneck and mixture share.
#ifndef IBVIT_LIBRARY_H
#define IBVIT_LIBRARY_H

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define IBVIT_API __attribute__((visibility("default")))

enum ibvit_status { IBVIT_OK = 0, IBVIT_OUT_OF_MEMORY = 1, IBVIT_NO_SUCH_INSTRUCTION_SET = 2 };

// Names of the instruction sets that this machine can run, the fastest first; null past the last one. The index is what
// other functions take as `instruction_set`.
IBVIT_API const char* ibvit_instruction_set(int32_t index);

#if defined(__cplusplus)
}
#endif

#endif
