"""One meaning on every backend, for any split of the work, and no silent fallback."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ibvit
from ibvit.information import backends
from ibvit.information.channel import Channel, log_density, make_channel
from ibvit.progress import Progress
from tests.information import truth
from tests.memory import PeakMemory
from tests.needs import needs_library

HEADS = [truth.channel(150, 3, 1.0, -1.0), truth.channel(150, 5, 0.5, -2.0, seed=1)]


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The choice of a backend is made once; make it anew before and after a test that blocks one."""
    for function in (backends._best, backends.why_missing):
        function.cache_clear()
    yield
    for function in (backends._best, backends.why_missing):
        function.cache_clear()


def draws(channels: list[Channel], samples: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator(channels[0].mu.device).manual_seed(0)
    u, reference = [], []
    for channel in channels:
        x = torch.randint(channel.components, (samples,), generator=generator, device=channel.mu.device)
        noise = torch.randn(samples, channel.dims, generator=generator, device=channel.mu.device)
        u.append(channel.mu[x] + torch.exp(0.5 * channel.logvar[x]) * noise)
        reference.append(log_density(u[-1], channel.mu[x], channel.logvar[x]))
    return u, reference


@needs_library
def test_native_is_torch() -> None:
    channels = [make_channel(*head, 0) for head in HEADS]
    u, reference = draws(channels, 50)
    pairs = torch.tensor([[0, 1], [1, 1]])
    for row, other in zip(
        backends.open_mixture(channels, "native").log_sums(u, [0, 1], reference, pairs),
        backends.open_mixture(channels, "torch").log_sums(u, [0, 1], reference, pairs),
        strict=True,
    ):
        assert torch.allclose(row, other, atol=3e-6)


def test_torch_is_float64_truth_in_any_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = [make_channel(*head, 0) for head in HEADS]
    u, reference = draws(channels, 20)
    reference[0][3] -= 400  # a sum beyond float64's range of safe products
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 2 * 64 * (24 * 2 * 20 + 96 * 5))  # 64 components at once
    single, pair = backends.open_mixture(channels, "torch").log_sums(u, [0, 1], reference, torch.tensor([[0, 1]]))
    terms = [
        truth.log_densities(x.numpy(), c.mu.numpy(), c.logvar.numpy()) - r.numpy()[:, None]
        for x, c, r in zip(u, channels, reference, strict=True)
    ]
    assert single.numpy() == pytest.approx(truth.np.stack([truth.log_sum(t) for t in terms]), abs=1e-9)
    assert pair[0].numpy() == pytest.approx(truth.log_sum(terms[0] + terms[1]), abs=1e-9)


@pytest.mark.parametrize("columns", [1, 2, 20])
@pytest.mark.parametrize("dims", [1, 64])
def test_torch_stays_within_its_workspace(columns: int, dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: every tensor that a call makes, with one sample that is done again in logarithms."""
    monkeypatch.setattr(backends, "WORKSPACE_BYTES", 1 << 25)
    channels = [make_channel(*truth.channel(3000, dims, 1.0, -1.0), 0)]
    mixture = backends.open_mixture(channels, "torch")
    u, reference = draws(channels, mixture.samples_per_call([0] * columns))
    reference[0][0] -= 400
    pairs = torch.tensor([[a, b] for a in range(columns) for b in range(a)], dtype=torch.int64).reshape(-1, 2)
    with PeakMemory() as memory:
        results = mixture.log_sums(u * columns, [0] * columns, reference * columns, pairs)
    assert memory.peak <= backends.WORKSPACE_BYTES + sum(3 * r.nbytes for r in results)


@needs_library
@pytest.mark.parametrize("heads", [2, 36])
def test_the_librarys_threads_stay_within_the_workspace(heads: int) -> None:
    """All pairs of many heads on many cores: fewer threads rather than more memory."""
    channels = [make_channel(*HEADS[0], 0)]
    mixture = backends.NativeMixture(channels, threads=512)
    columns, pairs = [0] * 2 * heads, heads * heads
    threads = mixture.threads(columns, pairs)
    assert threads * mixture._sums.bytes_per_thread(columns, pairs) <= backends.WORKSPACE_BYTES
    assert threads == 512 or heads == 36


def test_explicit_backends_never_fall_back(monkeypatch: pytest.MonkeyPatch, fresh_choice: None) -> None:
    with pytest.raises(ValueError, match="impl: 'triton' takes cuda tensors, got tensors on cpu"):
        ibvit.mutual_information(*HEADS[0], samples=50, impl="triton")
    monkeypatch.setitem(sys.modules, "ibvit_kernels", None)
    with pytest.raises(RuntimeError, match="impl: 'native' is not available"):
        ibvit.mutual_information(*HEADS[0], samples=50, impl="native")


def test_auto_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, fresh_choice: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ibvit_kernels", None)
    fallen = ibvit.nmi(*HEADS, samples=200)
    ibvit.nmi(*HEADS, samples=200)
    assert [bool(re.search("native is not available .* using torch", m)) for m in caplog.messages] == [True]
    monkeypatch.undo()
    assert ibvit.nmi(*HEADS, samples=200, impl="torch").value == fallen.value


@needs_library
def test_threads_do_not_change_the_result() -> None:
    values = [ibvit.nmi(*HEADS, samples=600, threads=threads).value for threads in (1, 2, 5)]
    assert values[0] == values[1] == values[2]


@pytest.mark.gpu
def test_triton_is_torch() -> None:
    channels = [make_channel(*(torch.tensor(a, device="cuda") for a in head), 0) for head in HEADS]
    u, reference = draws(channels, 300)
    pairs = torch.tensor([[0, 1], [0, 0]], device="cuda")
    for row, other in zip(
        backends.open_mixture(channels, "triton").log_sums(u, [0, 1], reference, pairs),
        backends.open_mixture(channels, "torch").log_sums(u, [0, 1], reference, pairs),
        strict=True,
    ):
        assert torch.allclose(row, other, atol=2e-5)
    values = [
        ibvit.nmi(*[[torch.tensor(a, device=device) for a in head] for head in HEADS], samples=4000)
        for device in ("cpu", "cuda")
    ]
    assert abs(values[0].value - values[1].value) <= 5 * (values[0].stderr + values[1].stderr)


def _rank(rank: int, world: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        estimate = ibvit.nmi(*HEADS, samples=1500)
        tolerant = ibvit.mutual_information(*HEADS[0], tolerance=5e-3)
        torch.save([tuple(estimate[:2]), tuple(tolerant[:2]), tolerant.samples], f"{folder}/{rank}.pt")
    finally:
        time.sleep(0.1)  # as ibvit.training.distributed does: gloo of torch 2.6 may deadlock
        torch.distributed.destroy_process_group()


def test_ranks_share_the_samples_and_agree(tmp_path: Path) -> None:
    """Two processes give the answer of one, to rounding, and all of them the same."""
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    alone = ibvit.nmi(*HEADS, samples=1500), ibvit.mutual_information(*HEADS[0], tolerance=5e-3)
    answers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0] == pytest.approx(tuple(alone[0][:2]), abs=1e-10)
    assert answers[0][1] == pytest.approx(tuple(alone[1][:2]), abs=1e-10)
    assert answers[0][2] == alone[1].samples


def test_an_interrupt_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is cut into calls; Ctrl-C between two of them ends it."""
    calls = []

    def interrupted(self: Progress, samples: int) -> None:
        calls.append(samples)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ibvit.mutual_information(*HEADS[0], samples=1_000_000, impl="torch")
    assert len(calls) == 3
