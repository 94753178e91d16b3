"""The mixture kernels' machine code: nothing spills, everything fits, the inner loop is what it was designed to be."""

from __future__ import annotations

import pytest
import triton

from tests.kernels.mixture_variants import chosen_variants, direct_variant
from tests.kernels.resources import ARCHITECTURES, assert_fits, compile_kernel, compile_sass, loops

# The one variant that is known to spill, and the bytes a thread. Older compilers than this spill a little elsewhere.
SPILLS = {(100, "direct d=2,2"): 8}
CURRENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
OLDER_SPILLS = 16


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_resources(arch: int) -> None:
    print(f"\nsm_{arch:<4} {'kernel':24} registers  stack  shared")
    for variant in chosen_variants(arch):
        usage = compile_kernel(*variant[1:5], arch)
        print(f"        {variant.name:24} {usage.registers:9} {usage.stack:6} {usage.shared:7}")
        assert usage.stack <= (SPILLS.get((arch, variant.name), 0) if CURRENT else OLDER_SPILLS), variant.name
        assert_fits(usage._replace(stack=0), arch)


def test_direct_form_is_near_its_ideal_instruction_count() -> None:
    """2 FFMA a dimension, 2 FADD and 1 MUFU; loads and addresses are shared among a thread's samples."""
    variant = direct_variant((2,), fused=True)
    counts = loops(compile_sass(*variant[1:5], 90))[0]
    assert counts["MUFU"] == variant.exponents
    assert counts["FFMA"] == 4 * variant.exponents
    assert counts["FADD"] <= 2 * variant.exponents
    assert counts.total() <= 8.6 * variant.exponents
