"""Every bottleneck kernel, on the tiles chosen for it, compiles for each architecture, fits, and spills nothing."""

from __future__ import annotations

import pytest
import triton

from ibvit_kernels.bottleneck_tiles import Shape
from tests.kernels.bottleneck_variants import variants
from tests.kernels.resources import ARCHITECTURES, assert_fits, compile_kernel, prefetch

VIT_TINY = Shape(heads=3, width=64, columns=192, hidden=64, latent=32)
VIT_SMALL = VIT_TINY._replace(heads=6, columns=384)

# ViT-Tiny everywhere; two column groups on one architecture.
CASES = [(arch, VIT_TINY, dtype) for dtype in ("bf16", "fp32") for arch in ARCHITECTURES] + [(90, VIT_SMALL, "bf16")]
# Launches known to spill, and the bytes a thread that they may: float32 is for checking, not for speed.
SPILLS = {("fp32", f"backward {made}"): 64 for made in ("input", "posterior", "decoder", "merged")}
# The tiles are chosen for this compiler. Older ones spill a few bytes more and have no room on sm_100: the op says so.
CURRENT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
OLDER_SPILLS = 32
IDS = [
    f"sm_{arch}-H{shape.heads}-D{shape.width}-h{shape.hidden}-r{shape.latent}-{dtype}" for arch, shape, dtype in CASES
]


@pytest.fixture(scope="module", autouse=True)
def queue() -> None:
    """Queue everything at once: the compiler works while the tests wait for its first result."""
    for case in CASES:
        for _, job in variants(*case):
            prefetch(*job, arch=case[0])


@pytest.mark.parametrize(("arch", "shape", "dtype"), CASES, ids=IDS)
def test_fits_and_spills_nothing(arch, shape, dtype, capsys):
    if arch >= 100 and not CURRENT:
        pytest.skip("needs triton 3.9 for sm_100")
    for name, job in variants(arch, shape, dtype):
        usage = compile_kernel(*job, arch=arch)
        with capsys.disabled():
            print(f"\n  sm_{arch} {dtype} {name:28s} {usage}", end="")
        assert usage.stack <= SPILLS.get((dtype, name), 0 if CURRENT else OLDER_SPILLS), name
        assert_fits(usage._replace(stack=0), arch)
