"""I(X;U) at the paper's size, 2*10^7 samples x 980,000 components, on one GPU.

Each case first passes a gate against float64, then a slice of the samples is timed between CUDA events, and the whole
where the slice predicts less than LONGEST seconds. Shares are of the instruction and exp2 rates of the device at an
H200's nominal clock, which an H100 has too, and of the rate of large products measured here. They count every pair, so
skipping makes them exceed 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.h200 import CLOCK, EXP2, ISSUE
from benchmarks.problems import NO_PAIRS, channel, draw, log_ratios, rms
from benchmarks.recording import Benchmark, Case, Row
from benchmarks.timing import gate, milliseconds, peaks, spread
from ibvit_kernels.mixture import layouts
from ibvit_kernels.mixture.host import Mixture

SAMPLES, COMPONENTS, SLICE = 20_000_000, 980_000, 1 << 20
TOY = (40_000, 2_000, 4096)
LONGEST = 10.0  # seconds
GATE = 2e-5  # nats, rms
# dimensions, σ, spread of the means: little or much information
CHANNELS = (
    (1, 1.0, 0.2), (2, 1.0, 0.2), (2, 0.05, 1.0), (8, 1.0, 0.2), (32, 1.0, 0.2), (32, 0.05, 1.0), (64, 1.0, 0.1),
    (64, 0.05, 1.0),
)  # fmt: skip
BETTER = {
    "share_of_exp2": "higher",
    "share_of_fma_in_direct_form": "higher",
    "share_of_tensor_cores_in_three_products": "higher",
    "ratio_pair_to_two_singles": "lower",
}


def benchmark(full: bool) -> Benchmark:
    samples, components, size = (SAMPLES, COMPONENTS, SLICE) if full else TOY
    return Benchmark(
        f"log sums of {samples:,} samples x {components:,} components",
        [
            *(
                Case(f"d={d} sigma={sigma}", partial(one_channel, d, sigma, spread, samples, components, size))
                for d, sigma, spread in CHANNELS
            ),
            Case("pair", partial(pair, components, size)),
        ],
        BETTER,
    )


def seconds(prepared: Mixture, u: Tensor, reference: Tensor) -> float:
    return milliseconds(lambda: prepared.log_sums([u], [0], [reference], NO_PAIRS)) / 1e3


def one_channel(d: int, sigma: float, means: float, samples: int, components: int, size: int) -> list[Row]:
    mu, logvar = channel(d, components, sigma, means)
    prepared = Mixture([mu], [logvar])
    u, reference = draw(mu, logvar, 64)
    first = seconds(prepared, u, reference)
    got = prepared.log_sums([u], [0], [reference], NO_PAIRS).single[0]
    error = rms(got - log_ratios(u, mu, logvar, reference).logsumexp(1))
    gate(f"d={d}", error, GATE)

    u, reference = draw(mu, logvar, size)
    seconds(prepared, u[: size // 8], reference[: size // 8])
    times = spread([seconds(prepared, u, reference) for _ in range(3)], "s")
    predicted = times["median_s"] * samples / size
    whole = None
    if predicted < LONGEST:
        parts = [draw(mu, logvar, size, seed=2 + i) for i in range(samples // size + 1)]
        u, reference = (torch.cat(columns)[:samples] for columns in zip(*parts, strict=True))
        whole = seconds(prepared, u, reference)
    rate = samples * components / (whole or predicted)
    clocks = torch.cuda.get_device_properties(0).multi_processor_count * CLOCK
    return [
        {
            "part": "one channel", "d": d, "sigma": sigma, "spread": means,
            "form": layouts.Layout([mu], [logvar]).form, "rms_error_nats": error,
            "first_call_with_compilation_s": first, "samples_per_slice": size, **times, "extrapolated_s": predicted,
            "whole_s": whole, "pairs_per_s": rate, "share_of_exp2": rate / (clocks * EXP2),
            "share_of_fma_in_direct_form": rate * (2 * d + 2) / (clocks * ISSUE),
            "share_of_tensor_cores_in_three_products": rate * 3 * 2 * max(16, 2 * d) / peaks().flop_per_s,
        }
    ]  # fmt: skip


def pair(components: int, size: int) -> list[Row]:
    """I(X;U), I(X;V) and I(X;U,V) in one pass: two exponentials per pair of a sample and a component, not three."""
    channels = [channel(2, components, 0.3, 1.0, seed=i) for i in range(2)]
    columns = [draw(mu, logvar, size // 4, seed=9 + i) for i, (mu, logvar) in enumerate(channels)]
    prepared = Mixture([mu for mu, _ in channels], [logvar for _, logvar in channels])
    u, reference = [c[0] for c in columns], [c[1] for c in columns]
    rows: list[Row] = []
    for what, pairs in (("two singles", NO_PAIRS), ("two singles and their pair", torch.tensor([[0, 1]]))):
        prepared.log_sums(u, [0, 1], reference, pairs)
        times = [milliseconds(lambda pairs=pairs: prepared.log_sums(u, [0, 1], reference, pairs)) for _ in range(5)]
        rows.append({"part": what, "samples_per_slice": size // 4, **spread([t / 1e3 for t in times], "s")})
    for row in rows:
        row["ratio_pair_to_two_singles"] = row["median_s"] / rows[0]["median_s"]
    return rows
