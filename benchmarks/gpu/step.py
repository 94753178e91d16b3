"""The training step of ViT-Tiny at batch 256, bf16: attention alone first, then every way to run the step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import attention, functional

from benchmarks import train
from benchmarks.gpu import cache
from benchmarks.gpu.launches import captured, times
from benchmarks.gpu.lines import Record, cases
from benchmarks.timing import GPU, milliseconds, peaks, spread

# The fused ones first: their number is what the minutes are for.
ORDER = (
    "ib, fused, graph", "ib, fused", "full, eager", "full, compiled", "full, compiled, graph",
    "ib, fused, compiled, graph", "ib, fused, compiled", "ib, reference, eager", "ib, reference, compiled",
)  # fmt: skip
DRY_ORDER = ("ib, fused", "full, eager", "ib, reference, eager")
HEADS, TOKENS, WIDTH = 3, 196, 64
SHOWN = 20
COMPILED = "inductor.bin"  # of torch.compile; copied into cache.FOLDER it saves the next run its compilation


def measure(record: Record, folder: Path, dry: bool) -> None:
    batch = 4 if dry else train.TABLE_BATCH
    brought = cache.FOLDER / COMPILED
    if not dry and brought.exists():
        torch.compiler.load_cache_artifacts(brought.read_bytes())
    backends = [attention.SDPBackend.MATH] if dry or not GPU else list(SDPA)
    ways = [name for name in (DRY_ORDER if dry or not GPU else ORDER) if name in train.VARIANTS]
    todo: list[tuple[str, Callable[[], None]]] = [
        *((f"attention {b}", partial(attention_alone, record, b, batch, dry)) for b in backends),
        *((name, partial(step, record, name, batch, dry)) for name in ways),
        ("longest kernels", partial(longest, record, ways[0], batch, dry)),
    ]
    try:
        cases(record, todo)
    finally:
        if not dry and (artifacts := torch.compiler.save_cache_artifacts()) is not None:
            (folder / COMPILED).write_bytes(artifacts[0])


SDPA = {
    attention.SDPBackend.FLASH_ATTENTION: "flash",
    attention.SDPBackend.CUDNN_ATTENTION: "cudnn",
    attention.SDPBackend.EFFICIENT_ATTENTION: "efficient",
    attention.SDPBackend.MATH: "math",
}


def attention_alone(record: Record, backend: attention.SDPBackend, batch: int, dry: bool) -> None:
    """softmax(QKᵀ/√D) V of twelve blocks with inputs of their own, forward and backward."""
    size = (batch, HEADS, 8 if dry else TOKENS, WIDTH)
    dtype, device = (torch.bfloat16, "cuda") if GPU else (torch.float32, "cpu")
    blocks = [[torch.empty(size, dtype=dtype, device=device) for _ in range(4)] for _ in range(12)]

    def refresh() -> None:
        with torch.no_grad():
            for block in blocks:
                for tensor in block:
                    tensor.normal_()

    def work() -> list[Any]:
        found = []
        with attention.sdpa_kernel(backend):
            for *inputs, d_out in blocks:
                leaves = [tensor.detach().requires_grad_() for tensor in inputs]
                out = functional.scaled_dot_product_attention(*leaves)
                found.append(torch.autograd.grad(out, leaves, d_out))
        return found

    refresh()
    found = times(captured(work), refresh, dry)
    useful = 12 * (2 + 5) * 2 * batch * HEADS * size[2] ** 2 * WIDTH
    rate = useful / found["median_ms"] / 1e9
    record(attention=SDPA[backend], batch=batch, layers=12, **found, useful_tflop_per_s=rate)


def step(record: Record, name: str, batch: int, dry: bool) -> None:
    """Steps on a resident batch; weights, noise and optimiser state change with each."""
    gc.collect()  # a step and its graph refer to each other
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rounds, steps, warmup = (1, 1, 1) if dry else (9, 10, 12)
    with train.Running(name, batch) as run:
        run(warmup)
        loss = run.loss()
        found = spread([milliseconds(lambda: run(steps)) / steps for _ in range(rounds)], "ms")
        row: dict[str, Any] = {"variant": name, "batch": batch, "steps_of_loss": warmup, "loss_nats": loss, **found}
        row["images_per_s"] = 1e3 * batch / found["median_ms"]
        record("row", **row, **({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if GPU else {}))
        if GPU:
            events = train.kernels(run)
            busy = sum(event.self_device_time_total for event in events) / 1e3
            flop = 1e9 * train.GFLOP[train.VARIANTS[name].attention] * row["images_per_s"]
            share = flop / peaks().flop_per_s
            # Less than the step's time: the host binds, or launches leave gaps.
            record(variant=name, kernels_per_step=len(events), busy_ms=busy, share_of_tensor_core_limit=share)


def longest(record: Record, name: str, batch: int, dry: bool) -> None:
    sums: dict[str, list[float]] = {}
    with train.Running(name, batch) as run:
        run(1 if dry else 12)
        for event in train.kernels(run):
            sums.setdefault(event.name, []).append(event.self_device_time_total if GPU else event.self_cpu_time_total)
    total = sum(map(sum, sums.values()))
    for kernel, each in sorted(sums.items(), key=lambda item: -sum(item[1]))[: 3 if dry else SHOWN]:
        record(
            variant=name, kernel=kernel[:100], launches=len(each), sum_ms=sum(each) / 1e3,
            share_of_step=sum(each) / total,
        )  # fmt: skip
