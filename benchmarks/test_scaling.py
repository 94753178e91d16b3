"""Training on 1 … n processes: images a second, efficiency, and what the gradients' all-reduce adds to a step.

    python -m pytest -s benchmarks/test_scaling.py    # every GPU of the machine, else 2 processes

Each count of processes is a torchrun job of its own, with one GPU a process (NCCL) or none (gloo). *Weak*: the same
share for each process, so a step does n times the work; *strong*: one global batch, split. Efficiency is against one
process at the same share (weak), or against an n-th of its time (strong). The all-reduce's share of a step is how much
longer it takes than the same step with gradients kept apart. On GPUs, writes results/<gpu>-scaling.json. Processes
without a GPU share one machine's cores and memory: they show that it runs, and no efficiency.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import ibvit
from benchmarks.recording import device_name, write_results
from ibvit.config import TrainConfig
from ibvit.data.types import Batch
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.step import TrainStep

GPU = torch.cuda.is_available()
COUNTS = [n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if GPU else 2)]
SHARE, GLOBAL = (256, 256) if GPU else (4, 4)
MODEL: dict[str, Any] = {} if GPU else {"depth": 2, "img_size": 32}
WARMUP, ROUNDS, STEPS = (15, 5, 20) if GPU else (2, 2, 2)
CLASSES = 100


def test_scaling(tmp_path: Path) -> None:
    found: dict[str, Any] = {
        "what": "one optimiser step of IB-ViT-Tiny, 224 px, resident batch, compiled under DDP",
        "device": device_name(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "results": [],
    }
    for count in COUNTS:
        for mode, batch in (("weak", SHARE * count), ("strong", GLOBAL)):
            if count > 1 or mode == "weak":
                found["results"].append({"mode": mode, **torchrun(count, batch, tmp_path / f"{mode}-{count}")})
    alone = found["results"][0]["images/s"]
    for row in found["results"]:
        row["efficiency"] = row["images/s"] / alone / row["processes"]
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items()))
        assert row["images/s"] > 0
    if GPU:
        write_results(found, "scaling")


def torchrun(count: int, batch: int, out: Path) -> dict[str, Any]:
    """What rank 0 of ``count`` processes measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([*command, str(batch), str(out)], check=True, env=environment, cwd=root, timeout=400)
    return json.loads(out.read_text())


def measure(batch: int, out: Path) -> None:
    """One process of a torchrun job."""
    config = TrainConfig(batch_size=batch, epochs=1, lr=1e-3, compile=GPU)
    with Processes.from_environment() as processes:
        make_deterministic(0)
        model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=CLASSES, **MODEL)
        model = model.to(processes.device).train()
        share = batch // processes.world_size
        images = torch.randn(share, 3, *model.image_size, device=processes.device)
        labels = torch.randint(CLASSES, (share,), device=processes.device)
        step = TrainStep(model, config, processes)
        resident = Batch(images, labels, torch.arange(share))
        together = seconds_a_step(step, resident, processes)
        apart = seconds_a_step(step, resident, processes, without_reduction(step))
        if processes.is_main:
            result = {
                "processes": processes.world_size, "batch": batch, "ms": 1e3 * together, "images/s": batch / together,
                "all-reduce's share": max(0.0, 1 - apart / together),
            }  # fmt: skip
            out.write_text(json.dumps(result))


def without_reduction(step: TrainStep) -> AbstractContextManager[Any]:
    return getattr(step.net, "no_sync", nullcontext)()


def seconds_a_step(
    step: TrainStep, batch: Batch, processes: Processes, context: AbstractContextManager[Any] | None = None
) -> float:
    """Median over rounds, of the slowest process in each."""
    times = []
    with context or nullcontext():
        for _ in range(WARMUP):
            step(batch, lr=1e-3, beta=0.01)
        for _ in range(ROUNDS):
            processes.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                step(batch, lr=1e-3, beta=0.01)
            if GPU:
                torch.cuda.synchronize()
            seconds = torch.tensor((time.perf_counter() - start) / STEPS, device=processes.device)
            times.append(float(processes.max(seconds)))
    return statistics.median(times)


if __name__ == "__main__":
    measure(int(sys.argv[1]), Path(sys.argv[2]))
