"""Tests of Triton kernels are collected where Triton can compile them."""

from __future__ import annotations

from ibvit_kernels import why_no_triton

COMPILED = ["test_*_triton.py", "test_*_resources.py", "test_*_gpu.py", "test_mixture_memory.py"]
collect_ignore_glob = [] if why_no_triton() is None else COMPILED
