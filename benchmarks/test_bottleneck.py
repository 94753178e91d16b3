"""Twelve bottleneck + projection layers of ViT-Tiny: fused kernels against three ways of plain PyTorch.

    python -m pytest -s benchmarks/test_bottleneck.py                           # on a GPU
    IBVIT_BENCHMARK=full python -m pytest -s benchmarks/test_bottleneck.py      # on a CPU

The peers: a loop over the heads as the paper's code has it, the batched reference, and that under torch.compile. Each
must first agree with the reference. On a GPU, times are between CUDA events, over inputs that rotate through more than
the L2 cache holds, bf16 over float32 parameters; on a CPU the fused one is the CPU library, float32. Results go to
results/<device>-bottleneck.json. On a CPU without IBVIT_BENCHMARK the same code runs at toy size and writes nothing: it
cannot rot.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from benchmarks.per_head_loop import per_head_loop
from benchmarks.recording import COPY_BANDWIDTH, FULL, TENSOR_FLOPS, device_name, measured_as_trained, write_results
from ibvit.ops import BottleneckParams, api, bottleneck_write, reference
from tests.needs import needs_triton
from tests.ops.problem import Problem, make_problem, rms

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
BLOCKS = 12
TIMED = GPU or FULL
BATCHES, TOKENS = ((64, 256, 1024), 196) if GPU else ((4,), 196) if FULL else ((2,), 5)
HEADS, WIDTH, HIDDEN, LATENT = 3, 64, 64, 32
COLUMNS = HEADS * WIDTH
ROTATION = 160 << 20  # bytes of inputs to walk through: more than three times an H200's L2

Write = Callable[[Problem], tuple[Tensor, Tensor]]


def looped(problem: Problem) -> tuple[Tensor, Tensor]:
    return per_head_loop(*problem)


def batched(problem: Problem) -> tuple[Tensor, Tensor]:
    y, params, weight, bias, key, block = problem
    return reference.bottleneck_write(y, params, weight.to(y.dtype), bias.to(y.dtype), key, block)


def fused(problem: Problem) -> tuple[Tensor, Tensor]:
    return bottleneck_write(*problem, impl="triton" if GPU else "native")


WRITES: dict[str, Write] = {"per-head loop": looped, "batched reference": batched}
if TIMED:
    WRITES["compiled reference"] = torch.compile(batched, dynamic=False)
if GPU or api.why_not_native() is None:
    WRITES["fused"] = fused


def floor(batch: int, what: str) -> tuple[float, float, float]:
    """(bytes, FLOP, seconds) that twelve layers need at least, for the sizes above in bf16."""
    rows = batch * TOKENS
    encoder = WIDTH * HIDDEN + HIDDEN * 2 * LATENT + LATENT * HIDDEN
    flops = {"forward": 2.0 * rows * HEADS * (encoder + HIDDEN * COLUMNS)}
    flops["backward"] = 2.0 * rows * HEADS * (3 * encoder + 2 * HIDDEN * COLUMNS)
    traffic = {"forward": rows * (4.0 * COLUMNS + 4 * HEADS), "backward": rows * (6.0 * COLUMNS + 4 * HEADS)}
    kinds = ("forward", "backward") if what == "both" else (what,)
    seconds = sum(max(traffic[kind] / COPY_BANDWIDTH, flops[kind] / TENSOR_FLOPS) for kind in kinds)
    return BLOCKS * sum(traffic[k] for k in kinds), BLOCKS * sum(flops[k] for k in kinds), BLOCKS * seconds


def layers(batch: int) -> list[Problem]:
    """Twelve layers' problems, then more inputs until they exceed the L2 cache.

    All are the same block: a new number would have the peer compiled again, and costs nobody anything else.
    """
    base = make_problem(HEADS, WIDTH, COLUMNS, HIDDEN, LATENT, batch, TOKENS).cast(DTYPE, DEVICE)
    size = base.y.numel() * base.y.element_size()
    count = max(BLOCKS, -(-ROTATION // (2 * size))) if GPU else BLOCKS
    params = [p.requires_grad_() for p in (*base.params, *base[2:4])]
    weights = BottleneckParams(*params[:8])
    return [
        Problem(torch.randn_like(base.y).requires_grad_(), weights, *params[8:], base.key, base.block)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {
        "what": f"{BLOCKS} layers, H={HEADS} D={WIDTH} h={HIDDEN} r={LATENT} C={COLUMNS}, {TOKENS} tokens, {DTYPE}",
        "device": device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "results": [],
    }
    with measured_as_trained():
        yield found
    if TIMED:
        write_results(found, "bottleneck")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", WRITES)
def test_gate(name, batch):
    """Outputs agree with the float32 reference, so the times below compare the same thing."""
    problem = layers(batch)[0]
    with torch.no_grad():
        truth = batched(problem.cast(torch.float32, DEVICE))
        for one, other in zip(WRITES[name](problem), truth, strict=True):
            assert rms(one - other) <= 2e-2 * rms(other)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("what", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", WRITES)
def test_twelve_layers(name, what, batch, benchmark, record):
    write, problems = WRITES[name], itertools.cycle(layers(batch))
    d_update = torch.randn(batch, TOKENS, COLUMNS, device=DEVICE, dtype=DTYPE)
    d_kl = torch.full((batch, HEADS, TOKENS), 1e-3, device=DEVICE)

    def forward() -> list[tuple[Problem, tuple[Tensor, Tensor]]]:
        with torch.set_grad_enabled(what != "forward"):
            return [(problem, write(problem)) for problem in itertools.islice(problems, BLOCKS)]

    def backward(passed: list[tuple[Problem, tuple[Tensor, Tensor]]]) -> None:
        for problem, outputs in passed:
            torch.autograd.grad(outputs, (problem.y, *problem.params, *problem[2:4]), (d_update, d_kl))

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((forward(),) if what == "backward" else ()), {}

    run: Callable[..., Any] = {"forward": forward, "backward": backward, "both": lambda: backward(forward())}[what]
    times: list[float] = []

    def timed(*args: Any) -> None:
        if not GPU:
            begin = time.perf_counter()
            run(*args)
            times.append(1e3 * (time.perf_counter() - begin))
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(
            80_000_000
        )  # 40 ms: the launches queue up behind it, so that the events see the GPU, not the CPU
        start.record()
        run(*args)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))

    benchmark.pedantic(timed, setup=prepare, rounds=20 if TIMED else 1, warmup_rounds=5 if TIMED else 0)
    if not TIMED:
        return
    milliseconds = statistics.median(times[5:])
    traffic, flops, least = floor(batch, what)
    result = {
        "name": name, "what": what, "batch": batch, "ms": milliseconds, "TFLOP/s": flops / milliseconds / 1e9,
        "MB saved for backward": saved_bytes(write, next(problems)) * BLOCKS / 1e6,
    }  # fmt: skip
    if GPU:
        result |= {"GB/s": traffic / milliseconds / 1e6, "share of floor": 1e3 * least / milliseconds}
    record["results"].append(result)
    print(
        "\n  "
        + "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in result.items())
    )


def saved_bytes(write: Write, problem: Problem) -> int:
    """Bytes of the distinct buffers that one layer keeps for its backward pass, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in (*problem.params, *problem[2:4])}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = write(problem)
    del outputs
    return sum(saved.values())


def test_saved_bytes_of_the_loop_exceed_those_of_its_input():
    problem = layers(BATCHES[0])[0]
    assert saved_bytes(looped, problem) > problem.y.numel() * problem.y.element_size()


class NoLaunch:
    """A kernel that does nothing, so that what remains is the host's own work."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@needs_triton
@pytest.mark.skipif(GPU, reason="the launches are left out: this times the host alone, on CPU tensors")
@pytest.mark.parametrize("what", ["forward", "forward and backward"])
def test_host_time_of_an_eager_call(what, benchmark, monkeypatch):
    """Validation, dispatch, autograd and allocation of one call; Triton's launcher is not in it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the op takes CPU tensors then
    for kernel in ("pack_kernel", "forward_kernel", "backward_kernel", "unmerge_kernel"):
        monkeypatch.setattr(f"ibvit_kernels.bottleneck.host.{kernel}", NoLaunch())
    api._decide.cache_clear()
    problem = make_problem(1, 32, 16, 8, 8, 1, 3).cast(torch.float32)
    leaves = [t.requires_grad_(what != "forward") for t in (problem.y, *problem.params, *problem[2:4])]

    def call() -> None:
        update, kl = bottleneck_write(*problem, impl="triton")
        if what != "forward":
            torch.autograd.grad((update, kl), leaves, (update, kl))

    benchmark.pedantic(call, rounds=300, warmup_rounds=20, iterations=5)
    api._decide.cache_clear()
