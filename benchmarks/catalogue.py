"""Every benchmark: its module, what it shows, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from ibvit_kernels import library, why_no_triton


def nothing() -> str | None:
    return None


def why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "it needs a CUDA device, none is here"


def why_no_host_time() -> str | None:
    return why_no_triton() or (None if why_no_gpu() else "it times the host alone, without a GPU")


def why_no_dali() -> str | None:
    return None if find_spec("nvidia") and find_spec("nvidia.dali") else "DALI is not installed"


class Entry(NamedTuple):
    """A benchmark: ``module.benchmark(full, …)`` returns its cases, ``module.add_options(parser)`` is optional."""

    module: str
    sentence: str
    why_not: Callable[[], str | None] = nothing
    """Why it cannot run here; None if it can."""


CATALOGUE = {
    "bottleneck": Entry(
        "bottleneck", "Twelve bottleneck layers: the fused kernels beside three ways of plain PyTorch."
    ),
    "host-time": Entry("host_time", "The host's time for one eager call of the Triton op.", why_no_host_time),
    "train": Entry("train", "The whole training step, every way to run it."),
    "top-kernels": Entry("top_kernels", "The twenty kernels that take most of a training step."),
    "scaling": Entry("scaling", "Training on 1 … n processes: images/s and efficiency."),
    "mixture": Entry("mixture", "The estimator's sums at the paper's size on one GPU.", why_no_gpu),
    "information": Entry(
        "information", "The estimator on the CPU beside KeOps, torch and float64.", library.why_absent
    ),
    "data": Entry("data", "Images/s of every way to load images, and what that does to a step.", why_no_dali),
    "spectrum": Entry("spectrum", "Spectra on two embedded data sets, checked against the paper's findings."),
    "step-graph": Entry("step_graph", "Launches, bytes and FLOP of a step, counted from its graph; no GPU needed."),
    "scaling-estimate": Entry("scaling_estimate", "Steps on many GPUs, predicted from the counted work."),
    "compiled-bottleneck": Entry(
        "compiled_bottleneck", "What the compiled bottleneck kernels use; no GPU needed.", why_no_triton
    ),
    "compiled-mixture": Entry(
        "compiled_mixture", "What the compiled mixture kernels use; no GPU needed.", why_no_triton
    ),
}
