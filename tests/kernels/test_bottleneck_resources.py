"""Every bottleneck kernel, on the tiles chosen for it, compiles for each architecture, fits, and spills as recorded."""

from __future__ import annotations

import pytest

from benchmarks.kernels.resources import compile_kernel, prefetch
from tests.kernels.recorded import BOTTLENECK, assert_as_recorded, bottleneck_jobs

IDS = [
    f"sm_{arch}-H{shape.heads}-D{shape.width}-h{shape.hidden}-r{shape.latent}-{dtype}"
    for arch, shape, dtype in BOTTLENECK
]


@pytest.fixture(scope="module", autouse=True)
def queue() -> None:
    """Queue everything at once: the compiler works while the tests wait for its first result."""
    for case in BOTTLENECK:
        for job in bottleneck_jobs(*case).values():
            prefetch(*job, arch=case[0])


@pytest.mark.parametrize(("arch", "shape", "dtype"), BOTTLENECK, ids=IDS)
def test_resources(arch, shape, dtype):
    for name, job in bottleneck_jobs(arch, shape, dtype).items():
        usage = compile_kernel(*job, arch=arch)
        print(f"{name:70} {usage}")
        assert_as_recorded(name, usage, arch, may_spill=dtype == "fp32")  # float32 is for checking, not for speed
