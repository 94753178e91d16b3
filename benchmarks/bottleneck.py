"""Twelve bottleneck + projection layers of ViT-Tiny: fused kernels against three ways of plain PyTorch.

The peers: a loop over the heads as the paper's code has it, the batched reference, and that under torch.compile. Each
must first agree with the reference. On a GPU, times are between CUDA events, over inputs that rotate through more than
the L2 cache holds, bf16 over float32 parameters; on a CPU the fused one is the CPU library, float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.per_head_loop import per_head_loop
from benchmarks.problems import Problem, make_problem, rms
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import GPU, Peaks, gate, milliseconds, peaks, spread
from ibvit.ops import BottleneckParams, api, bottleneck_write, reference

DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
BLOCKS = 12
HEADS, WIDTH, HIDDEN, LATENT = 3, 64, 64, 32
COLUMNS = HEADS * WIDTH
ROTATION = 160 << 20  # bytes of inputs to walk through: more than three times an H200's L2
QUEUE = 80_000_000  # cycles, 40 ms: the launches of twelve layers queue up in it
WARMUP, ROUNDS = 5, 20
BETTER = {"share_of_floor": "higher"}

Outputs = tuple[Tensor, Tensor]
Write = Callable[[Problem], Outputs]


def looped(problem: Problem) -> Outputs:
    return per_head_loop(*problem)


def batched(problem: Problem) -> Outputs:
    y, params, weight, bias, key, block = problem
    return reference.bottleneck_write(y, params, weight.to(y.dtype), bias.to(y.dtype), key, block)


def fused(problem: Problem) -> Outputs:
    return bottleneck_write(*problem, impl="triton" if GPU else "native")


def benchmark(full: bool) -> Benchmark:
    batches, tokens = ((2,), 5) if not full else ((64, 256, 1024), 196) if GPU else ((4,), 196)
    writes: dict[str, Write] = {"per-head loop": looped, "batched reference": batched}
    if full:
        writes["compiled reference"] = torch.compile(batched, dynamic=False)
    if GPU or api.why_not_native() is None:
        writes["fused"] = fused
    sizes = f"H={HEADS} D={WIDTH} h={HIDDEN} r={LATENT} C={COLUMNS}"
    return Benchmark(
        f"{BLOCKS} layers, {sizes}, {tokens} tokens, {DTYPE}",
        [
            Case(f"{name}, batch {batch}", partial(measure, name, write, batch, tokens, full))
            for batch in batches
            for name, write in writes.items()
        ],
        BETTER,
    )


def floor(batch: int, tokens: int, what: str, card: Peaks) -> tuple[float, float, float]:
    """(bytes, FLOP, seconds) that twelve layers need at least in bf16 on a card of these peaks."""
    rows = batch * tokens
    encoder = WIDTH * HIDDEN + HIDDEN * 2 * LATENT + LATENT * HIDDEN
    flops = {"forward": 2.0 * rows * HEADS * (encoder + HIDDEN * COLUMNS)}
    flops["backward"] = 2.0 * rows * HEADS * (3 * encoder + 2 * HIDDEN * COLUMNS)
    traffic = {"forward": rows * (4.0 * COLUMNS + 4 * HEADS), "backward": rows * (6.0 * COLUMNS + 4 * HEADS)}
    kinds = ("forward", "backward") if what == "both" else (what,)
    seconds = sum(max(traffic[kind] / card.bytes_per_s, flops[kind] / card.flop_per_s) for kind in kinds)
    return BLOCKS * sum(traffic[k] for k in kinds), BLOCKS * sum(flops[k] for k in kinds), BLOCKS * seconds


def layers(batch: int, tokens: int) -> list[Problem]:
    """Twelve layers' problems, then more inputs until they exceed the L2 cache.

    All are the same block: a new number would have the peer compiled again, and costs nobody anything else.
    """
    base = make_problem(HEADS, WIDTH, COLUMNS, HIDDEN, LATENT, batch, tokens).cast(DTYPE, DEVICE)
    size = base.y.numel() * base.y.element_size()
    count = max(BLOCKS, -(-ROTATION // (2 * size))) if GPU else BLOCKS
    params = [p.requires_grad_() for p in (*base.params, *base[2:4])]
    weights = BottleneckParams(*params[:8])
    return [
        Problem(torch.randn_like(base.y).requires_grad_(), weights, *params[8:], base.key, base.block)
        for _ in range(count)
    ]


def measure(name: str, write: Write, batch: int, tokens: int, full: bool) -> list[Row]:
    """One way at one batch: forward, backward, and both."""
    problems = layers(batch, tokens)
    with torch.no_grad():  # the times below compare the same thing
        truth = batched(problems[0].cast(torch.float32, DEVICE))
        for one, other in zip(write(problems[0]), truth, strict=True):
            gate(name, rms(one - other) / rms(other), 2e-2)
    saved = saved_bytes(write, problems[0]) * BLOCKS / 1e6
    rows = []
    for what in ("forward", "backward", "both"):
        times = spread(timed(write, problems, what, full), "ms")
        traffic, flops, least = floor(batch, tokens, what, peaks())
        row: Row = {
            "implementation": name, "pass": what, "batch": batch, **times,
            "tflop_per_s": flops / times["median_ms"] / 1e9, "saved_for_backward_mb": saved,
        }  # fmt: skip
        if GPU:
            row |= {
                "gb_per_s": traffic / times["median_ms"] / 1e6,
                "share_of_floor": 1e3 * least / times["median_ms"],
            }
        rows.append(row)
    return rows


def timed(write: Write, problems: list[Problem], what: str, full: bool) -> list[float]:
    """Milliseconds of twelve layers in each round."""
    stream = itertools.cycle(problems)
    y = problems[0].y
    d_update = torch.randn_like(y)
    d_kl = torch.full((y.shape[0], HEADS, y.shape[1]), 1e-3, device=DEVICE)

    def forward() -> list[tuple[Problem, Outputs]]:
        with torch.set_grad_enabled(what != "forward"):
            return [(problem, write(problem)) for problem in itertools.islice(stream, BLOCKS)]

    def backward(passed: list[tuple[Problem, Outputs]]) -> None:
        for problem, outputs in passed:
            torch.autograd.grad(outputs, (problem.y, *problem.params, *problem[2:4]), (d_update, d_kl))

    times = []
    for _ in range(WARMUP + ROUNDS if full else 1):
        if what == "backward":
            work: Callable[[], Any] = partial(backward, forward())
        else:
            work = forward if what == "forward" else lambda: backward(forward())
        times.append(milliseconds(work, QUEUE))
    return times[WARMUP if full else 0 :]


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
