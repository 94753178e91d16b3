"""Sums of Gaussian densities over many components: `host` on Triton, `native` on the CPU library of csrc/."""
