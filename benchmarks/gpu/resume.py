"""Whether a run that is interrupted, and one that replays a CUDA graph, are the plain run bit for bit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.lines import Record, cases
from benchmarks.timing import GPU
from ibvit.config import TrainConfig
from ibvit.training import train
from ibvit.training.checkpoint import read_checkpoint

BASE = TrainConfig(
    data="digits", beta=0.5, device="cuda" if GPU else "cpu", latent_dim=8, hidden_dim=16, batch_size=240, epochs=3,
    checkpoint_every=0.4, amp="off", impl="auto",
)  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "graph": {"cuda_graph": True},
    "bf16 graph": {"amp": "bf16", "cuda_graph": True},
}
STOPS = (4, 7, 15)  # steps, of five an epoch; the last is the end


def measure(record: Record, folder: Path, dry: bool) -> None:
    ways = WAYS if GPU else {"plain": {}}
    with tempfile.TemporaryDirectory() as temporary:
        kept: dict[str, Any] = {}
        todo = [(name, partial(resumes, record, name, Path(temporary), kept, dry)) for name in ways]
        if GPU:
            todo.append(("graph is plain", partial(graph_is_plain, record, kept)))
        cases(record, todo)


def trained(run: Path, steps: int | None, **options: Any) -> None:
    train(replace(BASE, out=run, max_steps=steps, **options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(run / "checkpoints" / "last.pt")["model"]
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def resumes(record: Record, name: str, folder: Path, kept: dict[str, Any], dry: bool) -> None:
    stops = (2, 4) if dry else STOPS
    whole, broken = folder / name / "whole", folder / name / "broken"
    trained(whole, stops[-1], **WAYS[name])
    for steps in stops:
        trained(broken, steps, **WAYS[name])
    kept[name] = weights(whole)
    record(
        check="resumed run is the whole run bitwise",
        way=name,
        steps=stops[-1],
        right=equal(kept[name], weights(broken)),
    )


def graph_is_plain(record: Record, kept: dict[str, Any]) -> None:
    record(check="replayed run is the plain run bitwise", right=equal(kept["plain"], kept["graph"]))
