"""Right or not: errors against float64 over what is allowed, by name; and whether results repeat.

Nothing stops here: what exceeds its budget is recorded as such, and its time is still worth knowing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.launches import DEVICE, Layer, captured
from benchmarks.gpu.lines import Record, cases
from benchmarks.problems import NAMES, NO_PAIRS, channel, draw, errors, log_ratios, make_problem, rms, truth_of
from ibvit_kernels.mixture import layouts
from ibvit_kernels.mixture.host import Mixture

RUNS = 30
COMPONENTS, SAMPLES = 20_011, 1003
DIRECT_ERROR = 1e-5  # nats, rms; of more than 64 dimensions in proportion


def measure(record: Record, folder: Path, dry: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False  # the plain float32 is the budget
    checked = [("odd sizes", "fp32")] if dry else shapes.CHECKED
    dimensions = (1,) if dry else shapes.FORM_DIMENSIONS
    cases(
        record,
        [
            *((f"{name} {dtype}", partial(bottleneck, record, name, dtype, dry)) for name, dtype in checked),
            ("repeats", partial(repeats, record, dry)),
            ("graph", partial(graph_draws_fresh_noise, record, dry)),
            *((f"mixture {f} d={d}", partial(mixture, record, f, d, dry)) for d in dimensions for f in shapes.FORMS),
        ],
    )


def bottleneck(record: Record, name: str, dtype: str, dry: bool) -> None:
    """Error ≤ 2 × the plain implementation's in the same precision, plus a few roundings of float32."""
    shape, batch, tokens = shapes.MODELS[name]
    problem = make_problem(
        shape.heads, shape.width, shape.columns, shape.hidden, shape.latent, *((1, 3) if dry else (batch, tokens))
    )
    truth = truth_of(problem, DEVICE)
    fused, plain = (errors(problem, truth, shapes.DTYPES[dtype], DEVICE, impl) for impl in ("triton", "reference"))  # type: ignore[arg-type]
    for output in NAMES:
        allowed = 2 * plain[output] + 2**-22 * rms(truth[output])
        record(
            check="error against float64", model=name, dtype=dtype, output=output, error=fused[output],
            allowed=allowed, ratio_error_to_allowed=fused[output] / allowed, right=fused[output] <= allowed,
        )  # fmt: skip


def small(dry: bool) -> Layer:
    return Layer(*shapes.timed(dry), *((1, 3) if dry else (64, 196)), block=11)


def tensors(layer: Layer) -> list[torch.Tensor]:
    layer.pack()
    gradients = layer.backward()
    return [*layer.forward(), *gradients]


def repeats(record: Record, dry: bool) -> None:
    layer = small(dry)
    runs = 2 if dry else RUNS
    first = tensors(layer)
    equal = [all(map(torch.equal, first, tensors(layer))) for _ in range(runs - 1)]
    record(check="runs bitwise equal", runs=runs, right=all(equal))


def graph_draws_fresh_noise(record: Record, dry: bool) -> None:
    """A replay under another key is the eager call under that key, and not the replay before."""
    layer = small(dry)
    replay = captured(lambda: tensors(layer))
    before: list[Any] = []
    equal, fresh = [], []
    for step in range(2 if dry else 3):
        layer.key[1] = step
        replayed = [tensor.clone() for tensor in replay()]
        equal.append(all(map(torch.equal, replayed, tensors(layer))))
        fresh.append(not before or not torch.equal(before[0], replayed[0]))
        before = replayed
    record(check="graph replay is the eager call bitwise", right=all(equal), fresh=all(fresh))


def mixture(record: Record, form: str, d: int, dry: bool) -> None:
    components, samples = (300, 64) if dry else (COMPONENTS, SAMPLES)
    mu, logvar = channel(d, components, 1.0, 0.2)
    u, reference = draw(mu, logvar, samples)
    prepared = Mixture([mu], [logvar], form)  # type: ignore[arg-type]
    got = prepared.log_sums([u], [0], [reference], NO_PAIRS).single[0]
    error = got - log_ratios(u, mu, logvar, reference).logsumexp(1)
    allowed = layouts.GEMM_ERROR if form == "gemm" else DIRECT_ERROR * max(1, d / 64)
    record(
        check="mixture against float64", form=form, d=d, rms_error_nats=rms(error), mean_error_nats=float(error.mean()),
        allowed_nats=allowed, ratio_error_to_allowed=rms(error) / allowed, right=rms(error) <= allowed,
    )  # fmt: skip
