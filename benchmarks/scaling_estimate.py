"""Scaling on paper: what a step of IB-ViT-Tiny should take on many GPUs, from its counted work and stated assumptions.

    python -m benchmarks.scaling_estimate      # reads results/step-graph.json

A step on b images of one GPU takes the longer of its counted time (fused, see step_graph) for b images and of its
launches at the shortest gap between kernels of a graph; then come the optimiser and what of the gradients' ring
all-reduce the backward pass does not hide. Nothing here is measured.
"""

from __future__ import annotations

import json

import ibvit
from benchmarks.recording import RESULTS

GAP = 2e-6  # seconds from one small kernel of a CUDA graph to the next
BACKWARD = 2 / 3  # share of a step's compute behind which an all-reduce can hide
LAST_BUCKET = 0.1  # share of the gradients that is ready only when the backward pass is over
# GPUs → (bus bandwidth in bytes/s for tens of megabytes, latency in seconds): NVLink in a node; 400 Gb/s a GPU between.
LINKS = {1: (float("inf"), 0.0), 8: (250e9, 40e-6), 64: (100e9, 120e-6)}
BATCHES = (256, 1024, 4096)
COUNTS = RESULTS / "step-graph.json"


def step_seconds(batch: int, gpus: int, counted: dict[str, float], optimizer: float, gradient_bytes: float) -> float:
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


def main() -> None:
    found = json.loads(COUNTS.read_text())
    counted = {**found["variants"]["ib, fused"]["fused"], "batch": found["batch"]}
    model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=100)
    gradients = 4.0 * sum(parameter.numel() for parameter in model.parameters())
    print(f"gradients: {gradients / 1e6:.1f} MB; {counted['launches']} launches a step")
    print("| global batch | GPUs | images a GPU | ms a step | images/s | efficiency |\n|---|---|---|---|---|---|")
    for batch in BATCHES:
        alone = step_seconds(batch, 1, counted, found["optimizer ms"] / 1e3, gradients)
        for gpus in LINKS:
            seconds = step_seconds(batch, gpus, counted, found["optimizer ms"] / 1e3, gradients)
            print(
                f"| {batch} | {gpus} | {batch // gpus} | {1e3 * seconds:.2f} | {batch / seconds:,.0f} "
                f"| {alone / seconds / gpus:.0%} |"
            )


if __name__ == "__main__":
    main()
