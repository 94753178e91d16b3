"""Candidates of tiles, each timed alone for twelve layers. The first of a kind is what the kernels use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import shapes
from benchmarks.gpu.launches import BLOCKS, captured, layers, name_of, times
from benchmarks.gpu.lines import Record, cases
from ibvit_kernels.bottleneck.tiles import Launch


def backward_candidates() -> list[tuple[Launch, ...]]:
    return [
        (Launch(tile, input=True, decoder=True), Launch(tile, posterior=True, merged=True))
        for tile in shapes.BACKWARD_TILES
    ]


def measure(record: Record, folder: Path, dry: bool) -> None:
    batch, tokens = (1, 3) if dry else (256, 196)
    stack = layers(batch, tokens, *shapes.timed(dry), 1 if dry else BLOCKS)

    def refresh() -> None:
        for layer in stack:
            layer.refresh()

    def candidate(name: str, tile: Any, works: list[Callable[[], Any]]) -> None:
        def all_layers() -> None:
            for work in works:
                work()

        found = times(captured(all_layers), refresh, dry)
        rows, warps, stages = tile
        record(kernel=name, tile_rows=rows, warps=warps, stages=stages, batch=batch, layers=len(stack), **found)

    todo: list[tuple[str, Callable[[], None]]] = []
    forward = shapes.FORWARD_TILES[-1:] if dry else shapes.FORWARD_TILES
    for tile in forward:
        works = [layer.forward_with(tile) for layer in stack]
        todo.append((f"forward {tile}", partial(candidate, "forward", tile, works)))
    for launches in [] if dry else backward_candidates():
        both = [layer.backward_with(launches) for layer in stack]
        for i, launch in enumerate(launches):
            name = name_of(launch)
            todo.append((f"{name} {launch.tile}", partial(candidate, name, launch.tile, [w[i] for w in both])))
    cases(record, todo)
