"""The mixture kernels' machine code: everything fits and spills as recorded, and so is the inner loop."""

from __future__ import annotations

import pytest

from benchmarks.kernels.resources import ARCHITECTURES, compile_kernel
from tests.kernels.recorded import INNER_LOOP, assert_as_recorded, inner_loop, mixture_variants, record


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_resources(arch: int) -> None:
    for name, variant in mixture_variants(arch).items():
        usage = compile_kernel(*variant[1:5], arch)
        print(f"{name:40} {usage}")
        assert_as_recorded(name, usage, arch)


def test_direct_form_is_near_its_ideal_instruction_count() -> None:
    """2 FFMA per dimension, 2 FADD and 1 MUFU; loads and addresses are shared among the samples of a thread."""
    counts = inner_loop()
    print(counts)
    assert counts["MUFU"] == INNER_LOOP.exponents
    known = record()
    if known is not None:
        assert counts == known["inner_loop"]
        assert counts["FFMA"] == 4 * INNER_LOOP.exponents
        assert counts["FADD"] <= 2 * INNER_LOOP.exponents
        assert sum(counts.values()) <= 8.6 * INNER_LOOP.exponents
