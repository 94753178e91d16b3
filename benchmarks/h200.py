"""The peaks of an H200 that shares, floors and predictions refer to."""

from __future__ import annotations

COPY_BANDWIDTH, TENSOR_FLOPS = 4.3e12, 790e12  # measured: bytes/s, and bf16 or float16 FLOP/s
MULTIPROCESSORS = 132
CLOCK = 1.98e9  # Hz, nominal
# Of one multiprocessor per clock: instructions that four warps of 32 threads issue, counted by thread; exp2.
ISSUE, EXP2 = 128, 16
