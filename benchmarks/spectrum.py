"""`make spectrum`: train spectra on `repetition` and `digits`, record and explore them, and check the paper's findings.

    python benchmarks/spectrum.py [--out spectrum] [--jobs 2]

Ends with a report for each data set (OUT/<data>.html), figures (OUT/figures-<data>/), and the findings as measured
(OUT/findings.json). Run it again to go on after an interruption. Exit code 1 where a finding does not hold.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.stats import spearmanr

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
class Plan:
    """What to train on one data set."""

    betas: tuple[float, ...]
    seeds: tuple[int, ...]
    train: TrainConfig


# A narrow bottleneck is enough here. β rises until the end: the heads learn what to say before it gets dear.
SMALL = TrainConfig(latent_dim=4, hidden_dim=16, eval_every=2, device="cpu")
PLANS = {
    "repetition": Plan(
        betas=(10.0, 2.0, 1.0, 0.1, 0.0),
        seeds=(0, 1),
        train=replace(SMALL, data="repetition", epochs=10, beta_warmup_epochs=10),
    ),
    "digits": Plan(
        betas=(10.0, 1.0, 0.1, 0.0),
        seeds=(0,),
        train=replace(SMALL, data="digits", epochs=30, beta_warmup_epochs=30),
    ),
}


HELP = 0.05
"""Accuracy beyond that without attention from which communication counts as helping."""


@dataclass
class Finding:
    """One of the paper's qualitative findings."""

    claim: str
    holds: bool
    measured: dict[str, Any] = field(default_factory=dict)


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
    speaking = {seed: result.mean_active_heads[at].tolist() for seed, at in rows.items()}
    transmitting = result.bottlenecked & (result.active_heads > 0)
    slope, error = result.slope()
    rank = float(spearmanr(np.log(result.nats_per_patch[transmitting]), result.accuracy[transmitting]).statistic)
    betas = [result.runs[k]["beta"] for k in rows[seeds[0]]]
    return [
        Finding(
            "information falls monotonically with β",
            all(np.all(np.diff(values) > 0) for values in nats.values()),
            {"beta": betas, "nats per patch by seed": nats},
        ),
        Finding(
            "accuracy rises with the logarithm of information",
            slope > 0 and rank > 0,
            {"points per factor e": 100 * slope, "standard error": 100 * error, "rank correlation": rank},
        ),
        Finding(
            # One patch of 72,000 makes a head active: that count follows β only roughly, so it is asked for its trend.
            "the number of active heads falls with β, and steadily that of heads that speak",
            all(values[0] < values[-1] and _trend(values) > 0 for values in active.values())
            and all(values[0] < values[-1] and np.all(np.diff(values) >= 0) for values in speaking.values()),
            {"beta": betas, "active heads by seed": active, "of these speak": speaking},
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
            {
                "beta": beta,
                "heads by seed": dict(zip(seeds, names, strict=True)),
                "copies": probes[0].copies.tolist(),
                "mean shift of mu in standard deviations of mu_0, by seed": [effect.tolist() for effect in effects],
                "share of patches shifted the common way at most copies, by seed": agreeing,
            },
        ),
        Finding(
            "the surviving heads of two seeds are alike, with an NMI above one half",
            bool(alike[beta].nmi[0, 1] > 0.5),
            {
                "beta": beta,
                "NMI by beta": {value: float(likeness.nmi[0, 1]) for value, likeness in alike.items()},
                "standard error by beta": {value: float(likeness.stderr[0, 1]) for value, likeness in alike.items()},
            },
        ),
    ]


def as_rows(result: Spectrum) -> list[dict[str, Any]]:
    """The table behind Fig. 1b for JSON, which has no infinity: null nats where attention is full."""
    columns = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in result.columns().items()}
    columns["nats per patch"] = [value if np.isfinite(value) else None for value in columns["nats per patch"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def explore(data: str, planned: list[SweepRun], out: Path, jobs: int) -> tuple[list[Records], Spectrum]:
    """Train, record, draw and report one data set."""
    failed = train_missing(planned, jobs)
    print(table(planned), flush=True)
    if failed:
        sys.exit(f"error: {len(failed)} run(s) failed: {', '.join(map(str, failed))}")
    for run in planned:
        write_records(run.folder, RecordOptions(attention=True))
    folders = [run.folder for run in planned]
    make_figures("all", folders, out / f"figures-{data}")
    runs = open_runs(folders)
    print(f"report: {write_report(runs, out / f'{data}.html')}", flush=True)
    return runs, spectrum(runs)


def main(out: Path = Path("spectrum"), jobs: int = 2) -> None:
    """Train spectra on `repetition` and `digits`, end in reports, and check the paper's findings.

    Args:
        out: folder for runs, figures, reports and findings.
        jobs: runs trained at a time, one core each.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("ibvit").setLevel(logging.INFO)
    start = time.monotonic()
    document: dict[str, Any] = {"data": {}}
    findings: list[Finding] = []
    trained = 0
    for data, chosen in PLANS.items():
        planned = plan(chosen.betas, chosen.seeds, ["none", "full"], chosen.train, out / "runs")
        trained += sum(not run.finished for run in planned)
        runs, result = explore(data, planned, out, jobs)
        document["data"][data] = as_rows(result)
        if data == "repetition":
            findings = check_spectrum(result, chosen.seeds) + check_survivors(runs, result, chosen.seeds)
    document["findings on repetition"] = [asdict(finding) for finding in findings]
    path = out / "findings.json"
    earlier = json.loads(path.read_text())["calls"] if path.exists() else []
    minutes = {"wall clock": (time.monotonic() - start) / 60, "processors": sum(os.times()[:4]) / 60}
    document["calls"] = [*earlier, {"runs trained": trained, "minutes": minutes}]
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for finding in findings:
        print(f"{'holds' if finding.holds else 'DOES NOT HOLD'}: {finding.claim}: {json.dumps(finding.measured)}")
    print(f"findings: {path}")
    if not all(finding.holds for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(main)
