"""Scaling on paper: what a step of IB-ViT-Tiny should take on many GPUs, from its counted work and stated assumptions.

A step on b images of one GPU takes the longer of its counted time (fused, results/step-graph.json) for b images and of
its launches at the shortest gap between kernels of a graph. Then come the optimiser and what of the gradients' ring
all-reduce the backward pass does not hide. Nothing here is measured.
"""

from __future__ import annotations

from functools import partial

import ibvit
from benchmarks.recording import RESULTS, Benchmark, Case, Row, read

GAP = 2e-6  # seconds from one small kernel of a CUDA graph to the next
BACKWARD = 2 / 3  # share of a step's compute behind which an all-reduce can hide
LAST_BUCKET = 0.1  # share of the gradients that is ready only when the backward pass is over
# GPUs → (bus bandwidth in bytes/s for tens of megabytes, latency in s): NVLink in a node, 400 Gb/s per GPU between.
LINKS = {1: (float("inf"), 0.0), 8: (250e9, 40e-6), 64: (100e9, 120e-6)}
BATCHES = (256, 1024, 4096)
COUNTS = RESULTS / "step-graph.json"
BETTER = {"efficiency": "higher"}


def benchmark(full: bool) -> Benchmark:
    """The same at toy size: it takes no time."""
    model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=100)
    gradients = 4.0 * sum(parameter.numel() for parameter in model.parameters())
    rows = read(COUNTS)["rows"]
    (counted,) = (row for row in rows if (row["variant"], row["how"], row["kind"]) == ("ib, fused", "fused", "all"))
    (optimizer,) = (row["ms"] / 1e3 for row in rows if row["kind"] == "optimizer")
    return Benchmark(
        f"a step of IB-ViT-Tiny: {gradients / 1e6:.1f} MB of gradients, {counted['launches']} launches",
        [Case(f"batch {batch}", partial(estimate, batch, counted, optimizer, gradients)) for batch in BATCHES],
        BETTER,
        measured=False,
    )


def step_seconds(batch: int, gpus: int, counted: Row, optimizer: float, gradient_bytes: float) -> float:
    """Seconds of a step on a global batch.

    Args:
        counted: "ms" and "launches" of one step at ``counted["batch"]`` images on one GPU.
        optimizer: its seconds.
        gradient_bytes: size of all gradients.
    """
    compute = max(counted["ms"] / 1e3 * batch / gpus / counted["batch"], counted["launches"] * GAP)
    bandwidth, latency = LINKS[gpus]
    reduce = latency + 2 * (gpus - 1) / gpus * gradient_bytes / bandwidth
    exposed = max(reduce - BACKWARD * compute, LAST_BUCKET * reduce)
    return compute + optimizer + exposed


def estimate(batch: int, counted: Row, optimizer: float, gradient_bytes: float) -> list[Row]:
    seconds = {gpus: step_seconds(batch, gpus, counted, optimizer, gradient_bytes) for gpus in LINKS}
    return [
        {
            "batch": batch, "gpus": gpus, "images_per_gpu": batch // gpus, "ms": 1e3 * time,
            "images_per_s": batch / time, "efficiency": seconds[1] / time / gpus,
        }
        for gpus, time in seconds.items()
    ]  # fmt: skip
