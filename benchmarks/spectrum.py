"""Train spectra on `repetition` and `digits`, record and explore them, and check the paper's findings.

Ends with a report for each data set (OUT/<data>.html) and figures (OUT/figures-<data>/). The same command resumes after
an interruption. A finding that does not hold is a failed case.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.recording import Benchmark, Case, Row, cores
from ibvit.analysis.copypaste import copy_paste
from ibvit.analysis.heads import mean_active_heads
from ibvit.analysis.recorder import RecordOptions, write_records
from ibvit.analysis.records import Records, open_runs
from ibvit.analysis.similarity import similarity
from ibvit.analysis.spectrum import Spectrum, spectrum
from ibvit.config import TrainConfig
from ibvit.figures.catalogue import make_figures
from ibvit.figures.report import write_report
from ibvit.training.sweep import SweepRun, plan, table, train_missing


@dataclass(frozen=True)
class SpectrumPlan:
    """What to train on one data set."""

    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    train: TrainConfig


# A narrow bottleneck is enough here. β rises until the end: heads learn what to send before information is expensive.
SMALL = TrainConfig(latent_dim=4, hidden_dim=16, eval_every=2, device="cpu")
PLANS = {
    "repetition": SpectrumPlan(
        betas=(10.0, 2.0, 1.0, 0.1, 0.0),
        seeds=(0, 1),
        train=replace(SMALL, data="repetition", epochs=10, beta_warmup_epochs=10),
    ),
    "digits": SpectrumPlan(
        betas=(10.0, 1.0, 0.1, 0.0),
        seeds=(0,),
        train=replace(SMALL, data="digits", epochs=30, beta_warmup_epochs=30),
    ),
}
TOY = {
    "digits": SpectrumPlan(
        betas=(1.0,), seeds=(0,), train=replace(SMALL, data="digits", epochs=1, beta_warmup_epochs=1)
    )
}
HELP = 0.05
"""Accuracy beyond that without attention from which communication counts as helping."""


@dataclass
class Finding:
    """One of the paper's qualitative findings."""

    claim: str
    holds: bool
    measured: list[Row] = field(default_factory=list)


def of_seed(result: Spectrum, seed: int) -> np.ndarray:
    """Places of a seed's bottlenecked runs, β from large to small."""
    return np.array([k for k, run in enumerate(result.runs) if run["beta"] is not None and run["seed"] == seed])


def _trend(values: list[int]) -> float:
    """Rank correlation with their order."""
    return float(spearmanr(np.arange(len(values)), values).statistic)


def check_spectrum(result: Spectrum, seeds: tuple[int, ...]) -> list[Finding]:
    """Information, accuracy and active heads along β, in each seed."""
    rows = {seed: of_seed(result, seed) for seed in seeds}
    nats = {seed: result.nats_per_patch[at].tolist() for seed, at in rows.items()}
    active = {seed: result.active_heads[at].tolist() for seed, at in rows.items()}
    mean_active = {seed: result.mean_active_heads[at].tolist() for seed, at in rows.items()}
    transmitting = result.bottlenecked & (result.active_heads > 0)
    slope, error = result.slope()
    rank = float(spearmanr(np.log(result.nats_per_patch[transmitting]), result.accuracy[transmitting]).statistic)
    return [
        Finding(
            "information falls monotonically with β",
            all(np.all(np.diff(values) > 0) for values in nats.values()),
        ),
        Finding(
            "accuracy rises with the logarithm of information",
            slope > 0 and rank > 0,
            [
                {
                    "accuracy_percent_per_e_fold": 100 * slope,
                    "se_percent_per_e_fold": 100 * error,
                    "rank_correlation": rank,
                }
            ],
        ),
        Finding(
            # One patch of 72,000 makes a head active: that count follows β only roughly, so it is asked for its trend.
            "the number of active heads falls with β, and steadily that of heads active on average",
            all(values[0] < values[-1] and _trend(values) > 0 for values in active.values())
            and all(values[0] < values[-1] and np.all(np.diff(values) >= 0) for values in mean_active.values()),
        ),
    ]


def check_survivors(runs: list[Records], result: Spectrum, seeds: tuple[int, ...]) -> list[Finding]:
    """What the strongest head says at the largest β at which, in every seed, communication still helps."""
    alone = max(
        accuracy for run, accuracy in zip(result.runs, result.accuracy, strict=True) if run["attention"] == "none"
    )
    helped = [
        run
        for run, accuracy in zip(runs, result.accuracy, strict=True)
        if mean_active_heads(run) and accuracy > alone + HELP
    ]
    shared = set.intersection(*({run.beta for run in helped if run.seed == seed} for seed in seeds))
    if not shared:
        return [Finding("a head survives in every seed", False)]
    at = {
        beta: [next(run for run in helped if (run.beta, run.seed) == (beta, seed)) for seed in seeds]
        for beta in sorted((value for value in shared if value is not None), reverse=True)
    }
    beta, survivors = next(iter(at.items()))
    names = [mean_active_heads(run)[0] for run in survivors]
    probes = [copy_paste(run, [name]) for run, name in zip(survivors, names, strict=True)]
    effects = [probe.effect()[0] for probe in probes]
    shifts = [probe.shift[0, -1] for probe in probes]
    agreeing = [float(np.mean(np.sign(shift) == np.sign(shift.mean()))) for shift in shifts]
    # Where one head alone speaks in each seed, it is clear which heads to compare; the first of these decides.
    alike = {
        value: similarity(pair, most=1, samples=1 << 16)
        for value, pair in at.items()
        if value == beta or all(len(mean_active_heads(run)) == 1 for run in pair)
    }
    return [
        Finding(
            "the surviving head responds to copies of a patch, more to more copies",
            all(abs(effect[-1]) > 1 and np.all(np.diff(np.abs(effect)) > 0) for effect in effects),
            [
                {
                    "beta": beta,
                    "seed": seed,
                    "head": name,
                    "copies": int(copies),
                    "mean_shift_of_mu_sd": float(shift),
                    "share_shifted_the_common_way": common if at == len(effect) - 1 else None,
                }
                for seed, name, effect, common in zip(seeds, names, effects, agreeing, strict=True)
                for at, (copies, shift) in enumerate(zip(probes[0].copies, effect, strict=True))
            ],
        ),
        Finding(
            "the surviving heads of two seeds are alike, with an NMI above one half",
            bool(alike[beta].nmi[0, 1] > 0.5),
            [
                {"beta": value, "nmi": float(likeness.nmi[0, 1]), "nmi_se": float(likeness.stderr[0, 1])}
                for value, likeness in alike.items()
            ],
        ),
    ]


def run_rows(data: str, result: Spectrum) -> list[Row]:
    """The table behind Fig. 1b; nats are null where attention is full, and β where there is none."""
    return [
        {
            "part": "run", "data": data, "run": run["name"], "attention": run["attention"], "beta": run["beta"],
            "seed": run["seed"], "nats_per_patch": float(nats) if np.isfinite(nats) else None,
            "accuracy": float(accuracy), "accuracy_sd": float(sd), "active_heads": int(active),
            "heads_active_on_average": int(mean_active), "on_pareto_front": bool(pareto),
        }
        for run, nats, accuracy, sd, active, mean_active, pareto in zip(
            result.runs, result.nats_per_patch, result.accuracy, result.accuracy_std, result.active_heads,
            result.mean_active_heads, result.pareto, strict=True,
        )
    ]  # fmt: skip


def finding_rows(findings: list[Finding]) -> list[Row]:
    """A row for each finding and what was measured for it."""
    return [
        {"part": "finding", "claim": finding.claim, "holds": bool(finding.holds), **row}
        for finding in findings
        for row in finding.measured or [{}]
    ]


def explore(data: str, planned: list[SweepRun], out: Path, jobs: int) -> tuple[list[Records], Spectrum]:
    """Train, record, draw and report one data set."""
    failed = train_missing(planned, jobs)
    print(table(planned), flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} run(s) failed: {', '.join(map(str, failed))}")
    for run in planned:
        write_records(run.folder, RecordOptions(attention=True))
    folders = [run.folder for run in planned]
    make_figures("all", folders, out / f"figures-{data}")
    runs = open_runs(folders)
    print(f"report: {write_report(runs, out / f'{data}.html')}", flush=True)
    return runs, spectrum(runs)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, help="folder for runs, figures and reports (default: spectrum; at toy size a temporary one)"
    )
    parser.add_argument(
        "--jobs", type=int, default=len(cores()), help="runs trained at a time, one core each (default: %(default)s)"
    )


def benchmark(full: bool, out: Path | None, jobs: int) -> Benchmark:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ibvit").setLevel(logging.INFO)
    if out is None and full:
        out = Path("spectrum")
    elif out is None:
        folder = tempfile.TemporaryDirectory()
        atexit.register(folder.cleanup)
        out = Path(folder.name)
    plans = PLANS if full else TOY
    planned = {data: plan(p.betas, p.seeds, ["none", "full"], p.train, out / "runs") for data, p in plans.items()}
    missing = sum(not run.finished for runs in planned.values() for run in runs)
    start = time.monotonic()
    findings: list[Finding] = []

    def measure(data: str) -> list[Row]:
        runs, result = explore(data, planned[data], out, jobs)
        if data != "repetition":
            return run_rows(data, result)
        seeds = plans[data].seeds
        findings.extend(check_spectrum(result, seeds) + check_survivors(runs, result, seeds))
        return run_rows(data, result) + finding_rows(findings)

    def cost() -> list[Row]:
        minutes = (time.monotonic() - start) / 60, sum(os.times()[:4]) / 60
        return [{"part": "cost", "runs_trained": missing, "wall_clock_min": minutes[0], "processor_min": minutes[1]}]

    def check() -> list[Row]:
        fails = [finding.claim for finding in findings if not finding.holds]
        if fails:
            raise ValueError(f"these do not hold: {fails}")
        return []

    return Benchmark(
        f"spectra of {' and '.join(plans)}: information, accuracy, active heads, and the paper's findings",
        [*(Case(data, partial(measure, data)) for data in plans), Case("cost", cost), Case("findings", check)],
        {"share_shifted_the_common_way": "higher"},
    )
