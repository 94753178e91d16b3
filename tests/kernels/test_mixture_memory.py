"""The memory of the mixture kernels' host code is what `host` and `layouts` state; kernels make nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ibvit.information import backends
from ibvit_kernels.mixture import gemm, host, layouts
from ibvit_kernels.mixture.sorting import LOG2_E
from tests.memory import PeakMemory

COMPONENTS, SAMPLES = 4096, 8192
LAYOUT_BYTES, PREPARATION_BYTES = 20, 160  # per component and dimension, from d = 8 on: as `host` states


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches give outputs of the right size at once."""

    def sums(channels: Sequence[Tensor], flags: Tensor, *_: bool) -> Tensor:
        return torch.ones(2 * len(channels) - 1, flags.shape[0] * 256, dtype=torch.float64)

    def screen(channel: gemm.GemmChannel, coarse: Tensor, threshold: float) -> Tensor:
        return torch.ones(len(coarse), len(channel.const) // gemm.FLAG_COMPONENTS, dtype=torch.int8)

    for name, replacement in (("launch_direct", sums), ("launch_gemm", sums), ("launch_screen", screen)):
        monkeypatch.setattr(layouts, name, replacement)


def channels(count: int, d: int) -> list[Tensor]:
    return [torch.randn(COMPONENTS, d, generator=torch.Generator().manual_seed(k)) for k in range(count)]


@pytest.mark.parametrize("form", ["direct", "gemm", "screen"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 8, 32, 64])
def test_layouts_and_calls_take_what_is_stated(d: int, count: int, form: host.Form) -> None:
    mu = channels(count, d)
    logvar = [torch.zeros_like(m) for m in mu]
    with PeakMemory() as memory:
        prepared = layouts.Layout(mu, logvar, form)
    padded = COMPONENTS * count * max(d, 8)
    assert memory.now <= LAYOUT_BYTES * padded
    assert memory.peak <= PREPARATION_BYTES * padded

    u = [m.repeat(SAMPLES // COMPONENTS, 1) for m in mu]
    reference = [torch.zeros(SAMPLES, dtype=torch.float64)] * count
    with PeakMemory() as memory:
        prepared.log_sums(u, reference)
    stated = layouts.SAMPLE_BYTES + layouts.SAMPLE_DIMENSION_BYTES * count * d
    assert memory.peak <= SAMPLES * stated
    assert layouts.WORKSPACE_BYTES == backends.GPU_WORKSPACE_BYTES
    assert layouts.samples_at_once([d] * count) * stated <= layouts.WORKSPACE_BYTES


def test_a_call_of_any_size_stays_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many samples, all of them so unsure that they are done again in float64."""
    monkeypatch.setattr(layouts, "WORKSPACE_BYTES", 1 << 23)
    mu = channels(2, 3)
    u = [m.repeat(4, 1)[:10_000] for m in mu]
    reference = [torch.full((10_000,), 100 * LOG2_E, dtype=torch.float64)] * 2
    sums = host.Mixture(mu, [torch.zeros_like(m) for m in mu], "direct")
    sums._layout((0, 1))
    monkeypatch.setattr(sums._layout((0, 1)), "log_sums", lambda u, r: torch.full((3, len(u[0])), -1.0).double())
    with PeakMemory() as memory:
        results = sums.log_sums([x[:2000] for x in u], [0, 1], [r[:2000] for r in reference], torch.tensor([[0, 1]]))
    assert memory.peak <= layouts.WORKSPACE_BYTES + 4 * sum(r.nbytes for r in results)
