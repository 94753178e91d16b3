"""Fast implementations of ibvit's operations: Triton kernels, and the loader of the CPU library built from csrc/."""
