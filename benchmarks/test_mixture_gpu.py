"""I(X;U) at the paper's size, 2*10^7 samples x 980,000 components, on one GPU.

    python -m pytest -s benchmarks/test_mixture_gpu.py

Each case first passes a gate against float64, then a slice of the samples is timed between CUDA events, and the whole
where the slice foretells less than LONGEST seconds. Shares are of the instruction and exp2 rates of the device at its
nominal clock and of a dense float16 rate; they count every pair, so skipping makes them exceed 1. Writes
results/<gpu>-mixture.json.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from ibvit_kernels.mixture import layouts
from ibvit_kernels.mixture.host import Mixture
from tests.kernels.test_mixture_gpu import NO_PAIRS, channel, draw, log_ratios, rms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, none is here"),
]
SAMPLES, COMPONENTS = 20_000_000, 980_000
SLICE = 1 << 20
LONGEST = 10.0
GATE = 2e-5  # nats, rms
# What one multiprocessor issues a clock, and the dense float16 rate of an H200, to give shares a scale.
ISSUE, EXP2 = 128, 16
TENSOR_FLOPS = 790e12
NOMINAL_CLOCK = 1.98e9

CASES = [
    pytest.param(1, 1.0, 0.2, id="d1-little"),
    pytest.param(2, 1.0, 0.2, id="d2-little"),
    pytest.param(2, 0.05, 1.0, id="d2-much"),
    pytest.param(8, 1.0, 0.2, id="d8-little"),
    pytest.param(32, 1.0, 0.2, id="d32-little"),
    pytest.param(32, 0.05, 1.0, id="d32-much"),
    pytest.param(64, 1.0, 0.1, id="d64-little"),
    pytest.param(64, 0.05, 1.0, id="d64-much"),
]


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Any]]:
    """Filled by the tests, written when they are done."""
    properties = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "samples": SAMPLES,
        "components": COMPONENTS,
        "cases": {},
    }
    yield result
    path = (
        Path(__file__).parent
        / "results"
        / f"{properties.name.lower().replace('nvidia ', '').replace(' ', '-')}-mixture.json"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


@pytest.mark.parametrize(("d", "sigma", "spread"), CASES)
def test_one_channel(
    d: int, sigma: float, spread: float, record: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    mu, logvar = channel(d, COMPONENTS, sigma, spread)
    prepared = Mixture([mu], [logvar])
    gate_u, gate_reference = draw(mu, logvar, 64)
    first = seconds(lambda: prepared.log_sums([gate_u], [0], [gate_reference], NO_PAIRS))
    got = prepared.log_sums([gate_u], [0], [gate_reference], NO_PAIRS).single[0]
    error = rms(got - log_ratios(gate_u, mu, logvar, gate_reference).logsumexp(1))
    assert error <= GATE

    u, reference = draw(mu, logvar, SLICE)
    prepared.log_sums([u[: SLICE // 8]], [0], [reference[: SLICE // 8]], NO_PAIRS)
    slices = sorted(seconds(lambda: prepared.log_sums([u], [0], [reference], NO_PAIRS)) for _ in range(3))
    del u, reference
    foretold = slices[1] * SAMPLES / SLICE
    whole = None
    if foretold < LONGEST:
        parts = [draw(mu, logvar, SLICE, seed=2 + i) for i in range(SAMPLES // SLICE + 1)]
        u, reference = (torch.cat(columns)[:SAMPLES] for columns in zip(*parts, strict=True))
        whole = seconds(lambda: prepared.log_sums([u], [0], [reference], NO_PAIRS))
    rate = SAMPLES * COMPONENTS / (whole or foretold)
    multiprocessors = record["multiprocessors"] * NOMINAL_CLOCK
    record["cases"][request.node.callspec.id] = row = {
        "form": layouts.Layout([mu], [logvar]).form,
        "rms_error_nats": error,
        "first_call_with_preparation_and_compilation_s": first,
        "slice_s": slices[1],
        "extrapolated_s": foretold,
        "whole_s": whole,
        "pairs_per_s": rate,
        "share_of_exp2": rate / (multiprocessors * EXP2),
        "share_of_fma_in_direct_form": rate * (2 * d + 2) / (multiprocessors * ISSUE),
        "share_of_tensor_cores_in_three_products": rate * 3 * 2 * max(16, 2 * d) / TENSOR_FLOPS,
    }
    print(f"\n{request.node.callspec.id}: {row}")


def test_pair_costs_less_than_three_channels(record: dict[str, Any]) -> None:
    """I(X;U), I(X;V) and I(X;U,V) in one pass: two exponentials a pair of a sample and a component, not three."""
    channels = [channel(2, COMPONENTS, 0.3, 1.0, seed=i) for i in range(2)]
    columns = [draw(mu, logvar, SLICE // 4, seed=9 + i) for i, (mu, logvar) in enumerate(channels)]
    prepared = Mixture([mu for mu, _ in channels], [logvar for _, logvar in channels])
    u, reference = [c[0] for c in columns], [c[1] for c in columns]

    def times(pairs: Tensor) -> float:
        prepared.log_sums(u, [0, 1], reference, pairs)
        return sorted(seconds(lambda: prepared.log_sums(u, [0, 1], reference, pairs)) for _ in range(5))[2]

    separate, together = times(NO_PAIRS), times(torch.tensor([[0, 1]]))
    record["cases"]["pair-d2-d2"] = {"two_singles_s": separate, "pair_s": together}
    assert together < 1.5 * separate


def seconds(work: Any) -> float:
    """Time of the device's work, between CUDA events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
