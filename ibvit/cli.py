"""Command line: ``ibvit <command>`` and ``train.py``. One function per command; its docstring is ``--help``.

Imports of torch stay inside the commands, so that ``--help`` and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from math import isfinite, isnan
from pathlib import Path
from typing import Any, Literal

import tyro

from ibvit.command_line import TrainOptions, run_command, with_files, without_none
from ibvit.config import LoaderName, TrainConfig
from ibvit.data.commands import Check, DataCommand, Pack
from ibvit.errors import MissingExtraError
from ibvit.kinds import EndName

app = tyro.extras.SubcommandApp()
for _options in (Check, Pack):
    without_none(_options)


def train_main() -> None:
    """Entry of ``train.py``."""
    run_command(lambda: _train(tyro.cli(TrainOptions, args=with_files(sys.argv[1:])).checked()))


def main() -> None:
    """Entry of ``ibvit``."""
    run_command(
        lambda: app.cli(
            prog="ibvit",
            description="Vision transformers with an information bottleneck on every attention head.",
            args=with_files(sys.argv[1:]),
        )
    )


def _train(config: TrainConfig) -> None:
    from ibvit.training import train

    run_dir = train(config)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"results: {run_dir}")
        try:
            from ibvit.figures.training import draw_training
        except MissingExtraError as missing:
            print(f"no picture: {missing}")
        else:
            print(f"picture: {draw_training(run_dir)}")


@app.command(name="eval")
@without_none
def evaluate(
    run: Path,
    repeats: int = 10,
    noise: Literal["sample", "mean"] = "sample",
    seed: int = 0,
    data: str | None = None,
    loader: LoaderName | None = None,
    accept_changed_data: bool = False,
) -> None:
    """Validate a run's model: accuracy (mean and s.d. over noisy passes) and information.

    The newest weights of the run are taken; the result says of which step they are.

    Args:
        run: run folder.
        repeats: noisy passes over the validation set.
        noise: sample draws z as in training; mean sends μ.
        seed: of the noise.
        data: the folder of the data set, if it has moved (default: as in the run).
        loader: of its images (default: as in the run).
        accept_changed_data: validate on other files than the run's, of the same classes.
    """
    from ibvit.training.commands import evaluate_run

    print(
        evaluate_run(
            run,
            repeats=repeats,
            noise=noise,
            seed=seed,
            data=data,
            loader=loader,
            accept_changed_data=accept_changed_data,
        )
    )


@app.command(name="env")
def environment() -> None:
    """Show versions, the GPU, and which backends exist and why others do not."""
    from ibvit.training.commands import describe_environment

    print(describe_environment())


@app.command(name="train")
def train_command(options: tyro.conf.OmitArgPrefixes[TrainOptions]) -> None:
    """Train a model, as train.py does."""
    _train(options.checked())


@app.command
def record(
    run: tuple[Path, ...],
    heads: Literal["active", "all"] = "active",
    attention: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    passes: int = 10,
    seed: int = 0,
    accept_changed_data: bool = False,
) -> None:
    """Record what finished runs do with every validation image: the basis of figures and report.

    Args:
        run: run folders.
        heads: save mu and logvar of the active heads (over 0.01 nats on at least one patch), or of all.
        attention: also save attention maps of those heads.
        dtype: of mu, logvar, votes and attention.
        passes: noisy validation passes, for error bars on accuracy.
        seed: of the noise.
        accept_changed_data: record another validation set than the run's, of the same classes.
    """
    from ibvit.analysis.recorder import RecordOptions, write_records

    for folder in run:
        write_records(
            folder, RecordOptions(heads, attention, dtype, passes, seed), accept_changed_data=accept_changed_data
        )


@wraps(record)
def _former_record(**options: Any) -> None:
    record(**options)


_former_record.__doc__ = "The former name of record.\n" + (record.__doc__ or "").partition("\n")[2]
app.command(name="cache")(_former_record)


@app.command
@without_none
def nmi(
    a: tyro.conf.Positional[str],
    b: tyro.conf.Positional[str],
    samples: float | None = None,
    tolerance: float = 1e-3,
    method: Literal["auto", "mc", "stratified", "quadrature"] = "auto",
    seed: int = 0,
    impl: Literal["auto", "native", "triton", "torch"] = "auto",
) -> None:
    """Normalised mutual information of two heads (paper, Eq. 6).

    Args:
        a: RUN:block.head of a recorded run (runs/x:11.0), or a .npz or .safetensors file with mu and logvar, [M, d].
        b: the other, over the same M patches.
        samples: draws, such as 2e7 (default: as many as the tolerance needs).
        tolerance: standard error to stop at.
        method: auto integrates heads of one active dimension and samples others; mc is the paper's Eq. 4 to the letter.
        seed: of the sampling.
        impl: backend of the sums: native (CPU library), triton (GPU), or torch (plain torch).
    """
    import ibvit

    if samples is not None and not (isfinite(samples) and samples == int(samples)):
        raise ValueError(f"samples: expected a whole number, got {samples:g}")
    draws = None if samples is None else int(samples)
    first, second = _channels(a, b)
    estimate = ibvit.nmi(first, second, samples=draws, tolerance=tolerance, method=method, seed=seed, impl=impl)
    if isnan(estimate.value):
        raise ValueError(f"NMI of {a} and {b}: not a number, at least one of them carries too little information")
    print(f"NMI {estimate.value:.6f} ± {estimate.stderr:.1g} (standard error), bias at most {estimate.bias_bound:.1g}")
    print(f"{estimate.method}, {estimate.samples} samples, {estimate.seconds:.1f} s")


def _channels(*names: str) -> Iterator[tuple[Any, Any]]:
    """mu and logvar of files, or of recorded heads RUN:block.head; on the GPU if there is one."""
    import torch

    from ibvit.analysis.records import open_runs
    from ibvit.arguments import called
    from ibvit.information import load_channel

    heads = {name: name.rpartition(":") for name in names if ":" in name and not Path(name).exists()}
    runs = {run.run: run for run in open_runs({Path(folder) for folder, _, _ in heads.values()})} if heads else {}
    for name in names:
        if name in heads:
            folder, _, head = heads[name]
            run = runs[Path(folder)]
            if not run.kind.has_kl:
                raise ValueError(f"{name}: expected a run with bottlenecks, got attention={run.attention_kind}")
            run.block_and_head(head)  # a head that the model does not have is named as such
            arrays: Any = run.channel(head)
        else:
            with called({"path": name}):
                arrays = [torch.as_tensor(array) for array in load_channel(name)]
        mu, logvar = (array.cuda() if torch.cuda.is_available() else array for array in arrays)
        yield mu, logvar


@app.command
def sweep(
    betas: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0,),
    data: str = "digits",
    attention: tuple[EndName, ...] = (),
    out: Path = Path("runs"),
    jobs: int = 1,
    slurm: Literal["no", "print", "submit"] = "no",
    sbatch: tuple[str, ...] = (),
    train: TrainOptions = TrainOptions(),  # noqa: B008 -- frozen
) -> None:
    """Train the runs of a spectrum: trains what is missing, resumes what was interrupted, skips what is finished.

    Args:
        betas: one run with bottlenecks per value.
        seeds: all runs once per seed.
        data: as in train.py.
        attention: also runs at these ends of the spectrum.
        out: folder in which the run folders are created.
        jobs: runs at a time.
        slurm: print an sbatch script of an array job instead, or submit one (pip install submitit).
        sbatch: options of the array job, such as gres=gpu:8 time=24:00:00.
        train: options of all runs, such as --train.epochs 100.
    """
    from ibvit.training.sweep import launch

    common = replace(train.checked("train."), data=data)
    launch(betas, seeds, attention, common, out, jobs=jobs, slurm=slurm, sbatch=sbatch)


@app.command
def figure(name: tyro.conf.Positional[str], runs: tuple[Path, ...], out: Path = Path("figures")) -> None:
    """Draw a figure of the paper from recorded runs: PNG, PDF, and the results behind it (CSV, npz).

    Args:
        name: 1b, 1c, 2 to 12, or all.
        runs: run folders, recorded with `ibvit record --run DIR --attention`.
        out: folder for the figures.
    """
    from ibvit.figures.catalogue import make_figures

    make_figures(name, runs, out)


@app.command
def report(runs: tuple[Path, ...], out: Path = Path("report.html"), images: int = 12, samples: int = 1 << 14) -> None:
    """Write one HTML file, to be opened from disk, that explores recorded runs.

    Args:
        runs: run folders, recorded with `ibvit record --run DIR --attention`.
        out: the file.
        images: how many validation images to include.
        samples: draws of patches behind each NMI.
    """
    from ibvit.analysis.records import open_runs
    from ibvit.figures.report import write_report

    if images < 1:
        raise ValueError(f"images: expected at least 1, got {images}")
    path = write_report(open_runs(runs), out, images=images, samples=samples)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command
def data(command: DataCommand) -> None:
    """Prepare image folders: ImageNet-100, a check for broken files, decoding beforehand."""
    command.run()
