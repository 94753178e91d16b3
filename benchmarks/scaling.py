"""Training on 1 … n processes: images per second, efficiency, and what the gradients' all-reduce adds to a step.

Each count of processes is a torchrun job of its own, with one GPU per process (NCCL) or none (gloo). *Weak*: the same
share for each process, so a step does n times the work; *strong*: one global batch, split. Efficiency is against one
process at the same share (weak), or against an n-th of its time (strong). The all-reduce's share of a step is how much
longer it takes than the same step with gradients kept apart. Processes without a GPU share one machine's cores and
memory: they show that it runs, and no efficiency.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ibvit
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import GPU, spread
from ibvit.config import TrainConfig
from ibvit.data.types import Batch
from ibvit.training.distributed import Processes
from ibvit.training.entry import make_deterministic
from ibvit.training.step import TrainStep

COUNTS = [n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if GPU else 2)]
SHARE, GLOBAL = (256, 256) if GPU else (4, 4)
MODEL: dict[str, Any] = {} if GPU else {"depth": 2, "img_size": 32}
CLASSES = 100
BETTER = {"efficiency": "higher", "share_of_all_reduce": "lower"}


def benchmark(full: bool) -> Benchmark:
    jobs = [
        (mode, count, batch)
        for count in COUNTS
        for mode, batch in (("weak", SHARE * count), ("strong", GLOBAL))
        if count > 1 or mode == "weak"
    ]
    alone: list[float] = []
    return Benchmark(
        f"one optimiser step of IB-ViT-Tiny{', 224 px, compiled' if GPU else ', 2 blocks, 32 px'}, resident batch, DDP",
        [
            Case(f"{mode}, {count} processes", partial(measure, mode, count, batch, full, alone))
            for mode, count, batch in jobs
        ],
        BETTER,
    )


def measure(mode: str, count: int, batch: int, full: bool, alone: list[float]) -> list[Row]:
    """One torchrun job; ``alone`` gets the images/s of the first, which has one process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        root = Path(__file__).parents[1]
        path = os.pathsep.join([str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command += ["-m", "benchmarks.scaling", str(batch), "full" if full else "toy", str(out)]
        subprocess.run(command, check=True, env=environment, cwd=root, timeout=400)
        row: Row = {"mode": mode, "processes": count, "batch": batch, **json.loads(out.read_text())}
    alone += [row["images_per_s"]] * (not alone and count == 1)
    return [row | {"efficiency": row["images_per_s"] / alone[0] / count if alone else None}]


def work(batch: int, full: bool, out: Path) -> None:
    """One process of a torchrun job."""
    warmup, rounds, steps = (15, 5, 20) if full else (2, 2, 2)
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

        def milliseconds_per_step(context: AbstractContextManager[Any]) -> list[float]:
            """Of the slowest process in each round."""
            times = []
            with context:
                for _ in range(warmup):
                    step(resident, lr=1e-3, beta=0.01)
                for _ in range(rounds):
                    processes.barrier()
                    start = time.perf_counter()
                    for _ in range(steps):
                        step(resident, lr=1e-3, beta=0.01)
                    if GPU:
                        torch.cuda.synchronize()
                    seconds = torch.tensor((time.perf_counter() - start) / steps, device=processes.device)
                    times.append(1e3 * float(processes.max(seconds)))
            return times

        together = spread(milliseconds_per_step(nullcontext()), "ms")
        apart = spread(milliseconds_per_step(getattr(step.net, "no_sync", nullcontext)()), "ms")
        if processes.is_main:
            found = together | {
                "images_per_s": 1e3 * batch / together["median_ms"],
                "share_of_all_reduce": max(0.0, 1 - apart["median_ms"] / together["median_ms"]),
            }
            out.write_text(json.dumps(found))


if __name__ == "__main__":  # a process of torchrun; `python -m benchmarks scaling` starts it
    work(int(sys.argv[1]), sys.argv[2] == "full", Path(sys.argv[3]))
