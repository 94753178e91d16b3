"""Twelve layers of ViT-Tiny as the kernels get them, each launch apart, and how they are timed.

No two layers share weights, inputs or gradients, and `Layer.refresh` makes new ones between rounds: nothing that is
timed finds in a cache what an earlier round has left there, but for what one layer's launches leave to each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import make_problem
from benchmarks.timing import GPU, milliseconds, spread
from ibvit_kernels.bottleneck import Packed, Parameters, host, split_inner
from ibvit_kernels.bottleneck.tiles import Launch, Shape, Tile, column_groups, gradient_sizes, splits

DEVICE = "cuda" if GPU else "cpu"
BLOCKS = 12
QUEUE = 80_000_000  # cycles, 40 ms, in which the launches of what cannot be captured queue up
WARMUP, ROUNDS = 3, 20


class Layer:
    """The arguments of one layer's kernels, and its launches one by one."""

    def __init__(self, shape: Shape, dtype: torch.dtype, batch: int, tokens: int, block: int) -> None:
        heads, width, columns, hidden, latent = shape
        problem = make_problem(heads, width, columns, hidden, latent, 1, 1).cast(dtype, DEVICE)
        self.shape, self.dtype, self.block, self.key = shape, dtype, block, problem.key
        self.params = Parameters(*problem.params, problem.proj_weight, problem.proj_bias)
        self.y = torch.empty(batch, tokens, heads * width, dtype=dtype, device=DEVICE)
        self.d_update = torch.empty(batch, tokens, columns, dtype=dtype, device=DEVICE)
        self.d_kl = torch.full((batch, heads, tokens), 1e-3, device=DEVICE)
        self.rows, self.tokens = batch * tokens, tokens
        self.refresh()
        self.packed: Packed = host.pack(shape, dtype, self.params)

    def refresh(self) -> None:
        """New inputs, gradients, weights and noise, in place."""
        for tensor in (self.y, self.d_update):
            tensor.normal_()
        for weight in self.params:
            weight.add_(torch.randn_like(weight), alpha=1e-3)
        self.key[1] += 1

    def pack(self) -> None:
        self.packed = host.pack(self.shape, self.dtype, self.params)

    def forward(self) -> tuple[Tensor, Tensor]:
        return host.forward(self.shape, self.y, self.packed, self.key, self.block)

    def backward(self) -> Any:
        return host.backward(
            self.shape, self.d_update, self.d_kl, self.y, self.params, self.packed, self.key, self.block
        )

    def forward_with(self, tile: Tile) -> Callable[[], None]:
        """The forward kernel alone with a tile; its outputs are allocated once."""
        update, kl = self.forward()
        grid = (-(-self.rows // tile.rows), column_groups(self.shape.columns)[0])
        constants = host.forward_constants(self.shape, tile)

        def launch() -> None:
            host.forward_kernel[grid](
                self.y, *self.packed, self.key, update, kl, self.block, self.rows, self.tokens, **constants
            )

        return launch

    def backward_with(self, launches: Sequence[Launch]) -> list[Callable[[], Any]]:
        """Each backward kernel, the sum of the parts, and unmerge."""
        shape, y = self.shape, self.y
        d_y = torch.empty_like(y)
        rows = min(launch.tile.rows for launch in launches)
        programs = splits(shape, self.rows, rows, host.multiprocessors(y.device))
        sizes = gradient_sizes(shape)
        parts = torch.zeros(programs, sum(sizes), dtype=torch.float32, device=y.device)
        groups = column_groups(shape.columns)[0]
        inner = split_inner(parts.sum(dim=0), sizes)
        w4, b4, proj = (torch.empty_like(t) for t in (self.params.w4, self.params.b4, self.params.proj_weight))

        def kernel(launch: Launch) -> Callable[[], Any]:
            grid = (shape.heads, programs, groups if launch.merged else 1)
            constants = host.backward_constants(shape, launch)
            return lambda: host.backward_kernel[grid](
                self.d_update, self.d_kl, y, *self.packed, self.key, d_y, parts, self.block, self.rows, self.tokens,
                **constants,
            )  # fmt: skip

        tiles = -(-shape.columns // host.COLUMNS) + -(-shape.hidden // host.COLUMNS)

        def unmerge() -> None:
            host.unmerge_kernel[(shape.heads, tiles)](
                inner.merged, inner.proj_bias, self.params.w4, self.params.b4, self.params.proj_weight, w4, b4, proj,
                **host.unmerge_constants(shape),
            )  # fmt: skip

        return [*map(kernel, launches), lambda: parts.sum(dim=0), unmerge]

    def launches(self) -> dict[str, Callable[[], Any]]:
        """Every launch of a forward and backward pass by name, in order."""
        architecture = host.architecture(self.y.device)
        backward = host.backward_launches(architecture, self.shape, self.y.dtype.itemsize)
        names = [name_of(launch) for launch in backward] + ["sum of parts", "unmerge"]
        tile = host.forward_tile(architecture, self.shape, self.y.dtype.itemsize)
        return {
            "pack": self.pack,
            "forward": self.forward_with(tile),
            **dict(zip(names, self.backward_with(backward), strict=True)),
        }


def name_of(launch: Launch) -> str:
    made = "+".join(name for name, wanted in launch._asdict().items() if wanted is True and name != "reload")
    return f"backward {made}"


def layers(batch: int, tokens: int, shape: Shape, dtype: torch.dtype, count: int = BLOCKS) -> list[Layer]:
    return [Layer(shape, dtype, batch, tokens, block) for block in range(count)]


def captured(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work as one CUDA graph, so that no launch waits for the host; itself on a CPU."""
    if not GPU:
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()  # outputs stay allocated as long as the graph

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def times(
    work: Callable[[], Any], refresh: Callable[[], Any], dry: bool, rounds: int = ROUNDS, queue: int = 0
) -> dict[str, Any]:
    """Median, minimum and maximum of rounds in ms; fresh inputs before each, not timed."""
    found = []
    for number in range(1 if dry else WARMUP + rounds):
        refresh()
        elapsed = milliseconds(work, queue)
        if dry or number >= WARMUP:
            found.append(elapsed)
    return spread(found, "ms")


def host_ms(work: Callable[[], Any]) -> float:
    """The host's time for the launches of the work: where it exceeds the device's, the host may bind."""
    import time

    found = []
    for _ in range(3):
        if GPU:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - begin))
    if GPU:
        torch.cuda.synchronize()
    return statistics.median(found)
