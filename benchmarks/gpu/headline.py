"""Twelve layers of ViT-Tiny, bf16: the fused kernels, then each launch alone, then the peers.

All are CUDA graphs, timed between events, so that no launch waits for the host. A peer that cannot be captured is timed
behind a sleeping GPU in which its launches queue up, and the row says whether the host may still have bound it. A CUDA
graph keeps the fused forward without autograd: pack and forward, and pack, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bottleneck
from benchmarks.gpu import shapes
from benchmarks.gpu.launches import BLOCKS, DEVICE, QUEUE, Layer, captured, host_ms, layers, times
from benchmarks.gpu.lines import Record, cases
from benchmarks.problems import Problem
from benchmarks.timing import GPU, peaks
from ibvit.ops import BottleneckParams

SLEEP_MS = 40.0  # that QUEUE cycles last


def measure(record: Record, folder: Path, dry: bool) -> None:
    tokens = 3 if dry else 196
    batches = (1,) if dry else (256, 64, 1024)
    todo: list[tuple[str, Callable[[], None]]] = [
        (f"fused, batch {batches[0]}", partial(fused, record, batches[0], tokens, dry)),
        (f"each launch, batch {batches[0]}", partial(each_launch, record, batches[0], tokens, dry)),
        *((f"fused, batch {batch}", partial(fused, record, batch, tokens, dry)) for batch in batches[1:]),
    ]
    peers: dict[str, Callable[[Problem], tuple[Tensor, Tensor]]] = {
        "batched reference": bottleneck.batched,
        "per-head loop": bottleneck.looped,
    }
    if not dry:
        peers = {"compiled reference": torch.compile(bottleneck.batched, dynamic=False)} | peers
    todo += [(name, partial(peer, record, name, write, batches[0], tokens, dry)) for name, write in peers.items()]
    cases(record, todo)


def stack_of(batch: int, tokens: int, dry: bool) -> tuple[list[Layer], Callable[[], None]]:
    stack = layers(batch, tokens, *shapes.timed(dry), 1 if dry else BLOCKS)

    def refresh() -> None:
        for layer in stack:
            layer.refresh()

    return stack, refresh


def row(name: str, what: str, batch: int, tokens: int, dry: bool, found: dict[str, Any]) -> dict[str, Any]:
    """With rates, and the share of the floor by the peaks measured on this card."""
    card = peaks(toy=dry)
    traffic, flops, least = bottleneck.floor(batch, tokens, what, card)
    milliseconds = found["median_ms"]
    return {
        "implementation": name, "pass": what, "batch": batch, **found, "floor_ms": 1e3 * least,
        "share_of_floor": 1e3 * least / milliseconds, "gb_per_s": traffic / milliseconds / 1e6,
        "tflop_per_s": flops / milliseconds / 1e9,
    }  # fmt: skip


def fused(record: Record, batch: int, tokens: int, dry: bool) -> None:
    stack, refresh = stack_of(batch, tokens, dry)

    def forward() -> list[Any]:
        found = []
        for layer in stack:
            layer.pack()
            found.append(layer.forward())
        return found

    def backward() -> list[Any]:
        return [layer.backward() for layer in reversed(stack)]

    def both() -> list[Any]:
        return [*forward(), *backward()]

    forward()
    for what, work in (("both", both), ("forward", forward), ("backward", backward)):
        found = times(captured(work), refresh, dry)
        record(**row("fused", what, batch, tokens, dry, found), host_bound=False, layers=len(stack))


def each_launch(record: Record, batch: int, tokens: int, dry: bool) -> None:
    """Each for all layers, so that a layer's inputs are no longer in the L2 cache when its turn comes."""
    stack, refresh = stack_of(batch, tokens, dry)
    launches = [layer.launches() for layer in stack]
    for name in launches[0]:

        def work(name: str = name) -> list[Any]:
            return [each[name]() for each in launches]

        record(kernel=name, batch=batch, layers=len(stack), **times(captured(work), refresh, dry))


def peer(
    record: Record,
    name: str,
    write: Callable[[Problem], tuple[Tensor, Tensor]],
    batch: int,
    tokens: int,
    dry: bool,
) -> None:
    """Through autograd, as users of plain PyTorch run it; each layer has weights, inputs and gradients of its own."""
    stack, _ = stack_of(batch, tokens, dry)
    problems = []
    for layer in stack:
        weights = [weight.requires_grad_() for weight in layer.params]
        # One block's number for all: another would have the peer compiled again.
        problems.append(
            Problem(layer.y.requires_grad_(), BottleneckParams(*weights[:8]), *weights[8:], layer.key, stack[0].block)
        )

    @torch.no_grad()
    def refresh() -> None:
        for layer in stack:
            layer.refresh()

    def forward() -> list[Any]:
        with torch.set_grad_enabled(False):
            return [write(problem) for problem in problems]

    def both() -> list[Any]:
        passed = [write(problem) for problem in problems]
        return [
            torch.autograd.grad(outputs, (p.y, *p.params, *p[2:4]), (layer.d_update, layer.d_kl))
            for p, outputs, layer in reversed(list(zip(problems, passed, stack, strict=True)))
        ]

    for what, work in (("both", both), ("forward", forward)):
        try:
            run, bound, queue = captured(work), False, 0
        except RuntimeError as error:
            record("note", implementation=name, note=f"not captured: {error}"[:200])
            run, queue = work, QUEUE
            bound = GPU and host_ms(work) > SLEEP_MS
        if not GPU:
            bound = True
        found = times(run, refresh, dry, rounds=10, queue=queue)
        record(**row(name, what, batch, tokens, dry, found), host_bound=bound, layers=len(stack), device=DEVICE)
        del run
