"""From a configuration to a finished run folder."""

from __future__ import annotations

import ctypes
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ibvit.arguments import called
from ibvit.config import RunConfig, TrainConfig
from ibvit.data.build import DataSpec, build_data
from ibvit.data.sets.recipes import apply_recipe
from ibvit.files import InUseError, lock, remove_abandoned
from ibvit.models import VisionTransformer, create_model
from ibvit.models.sources import read_source
from ibvit.models.storage import read_facts
from ibvit.models.weights import load_source
from ibvit.run_folder import CHECKPOINTS, CONFIG, LOCK, MODEL
from ibvit.training.checkpoint import checkpoints, first_usable
from ibvit.training.distributed import Processes
from ibvit.training.metrics import MetricsWriter
from ibvit.training.run import both_betas, check_same_data, check_same_run, model_arguments, write_config
from ibvit.training.trackers import tracker_entry
from ibvit.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Train, or resume a run that was interrupted, and return its run folder.

    The folder holds ``config.json``, ``metrics.jsonl``, ``checkpoints/`` and, at the end, ``model.safetensors``, which
    :func:`ibvit.load` reads. Under torchrun every process calls this; together they train one model.

    Raises:
        ValueError: an option, the data or the run folder is not what it should be.
        CheckpointError: the checkpoint to resume from cannot be read, or a new one cannot be written.
        Interrupted: a signal came; the run is saved and can resume.
        NonFiniteLossError: the loss became infinite or NaN.
        InUseError: another process trains in the folder.
        MissingExtraError: a package that an option needs is not installed.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "run"
        >>> run_dir = train(TrainConfig(data="digits", attention="none", out=out, max_steps=1, device="cpu"))
        >>> sorted(path.name for path in run_dir.iterdir())
        ['.lock', 'checkpoints', 'config.json', 'metrics.jsonl', 'model.safetensors']
    """
    run, recipe = apply_recipe(config)
    run_dir = run.out
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"out: expected a folder, {run_dir} is a file")
    is_new = not (run_dir / CONFIG).exists()
    if is_new:
        run.check()
    if run.track != "none":
        tracker_entry(run.track)  # a package that is missing is found before anything is written
    with ExitStack() as stack:
        processes = stack.enter_context(Processes.from_environment(run.device))
        is_locked = processes.is_main and run_dir.exists()
        if is_locked:
            stack.enter_context(lock(run_dir, LOCK, "out"))
            for folder in (run_dir, run_dir / CHECKPOINTS):
                remove_abandoned(folder)
        paths = _checkpoints(run)
        make_deterministic(run.seed)
        if processes.device.type == "cpu":
            keep_freed_memory()
        data = build_data(
            DataSpec.of(run), rank=processes.rank, world_size=processes.world_size, device=processes.device
        )
        stack.callback(data.close)
        identity = data.identity(("train", "val")) if processes.is_main else None
        if identity is not None and not is_new:
            check_same_data(run_dir, run.data, identity, run.accept_changed_data)
        arguments = model_arguments(run, recipe, len(data.classes))
        with called({"img_size": "image_size", "name": "model"}):
            model = create_model(**arguments, impl=run.impl, pretrained=False if paths else run.pretrained or False)
        if run.init_from is not None and not paths:
            load_source(model, read_source(run.init_from, "init_from"))
        model = model.to(processes.device)
        if is_new:
            check_patches(run.image_size, model)
        trainer = Trainer(model, data, run, processes)
        if (resumed := first_usable(paths, trainer.load_state_dict)) is not None:
            log.info("resuming from %s", resumed[0])
        writer = None
        if identity is not None:
            details: dict[str, Any] = {
                "architecture": arguments,
                "channels": model.channels._asdict(),
                **identity.as_dict(),
                "world_size": processes.world_size,
                **both_betas(run, model.channels),
            }
            if not is_locked:
                _claim(run_dir, stack)
            write_config(run_dir, run, details)
            writer = MetricsWriter(run_dir, run.track)
            stack.callback(writer.close)
            _announce(trainer, details)
        trainer.run(writer)
        if processes.is_main and not _is_exported(run_dir / MODEL, trainer.position.step):
            trainer.export()
        processes.barrier()
    return run_dir


def _claim(run_dir: Path, stack: ExitStack) -> None:
    """Make the folder of a new run, and lock it: not before, as an error until here leaves no folder behind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock(run_dir, LOCK, "out"))
    if (run_dir / CONFIG).exists():
        raise InUseError(f"out: {run_dir} was made by another process meanwhile; the same command resumes its run")


def _is_exported(model: Path, step: int) -> bool:
    """Whether the weights are those of a step: a process killed after a checkpoint leaves those of the one before."""
    try:
        return read_facts(model).get("step") == step
    except (FileNotFoundError, ValueError):
        return False


def check_patches(image_size: int, model: VisionTransformer) -> None:
    """Refuse an image that patches do not cover."""
    size, _ = model.patch_embed.patch_size
    if image_size % size:
        raise ValueError(
            f"image_size: expected a multiple of the patch size {size} (else the last pixels are cut off), "
            f"got {image_size}"
        )


def _checkpoints(config: RunConfig) -> list[Path]:
    """The checkpoints from which the run may resume, newest first; none of a new run.

    Raises:
        ValueError: the folder holds a run of other options, or one that this run would overwrite.
    """
    run_dir, folder = config.out, config.out / CHECKPOINTS
    has_run, own = (run_dir / CONFIG).exists(), checkpoints(folder)
    if own and not has_run:
        raise ValueError(f"out: {run_dir} holds checkpoints of a run but no {CONFIG}; give another --out")
    if not own and (run_dir / MODEL).exists() and config.resume in ("auto", "none"):
        raise ValueError(f"out: {run_dir} holds weights of a run but no checkpoint to resume from; give another --out")
    if has_run and config.resume == "none":
        raise ValueError(f"out: {run_dir} holds a run already; resume it (--resume auto) or give another --out")
    if has_run:
        check_same_run(run_dir, config)
    if config.resume in ("auto", "none"):
        return own
    path = Path(config.resume)
    if has_run and path.resolve().parent != folder.resolve():
        raise ValueError(f"resume: {path} is not a checkpoint of the run that {run_dir} holds; give another --out")
    return [path]


def make_deterministic(seed: int) -> None:
    """Make runs reproducible: nondeterministic operators are avoided where possible and raise otherwise.

    A warning is not enough: attention's backward pass keeps its atomics then. The environment variable
    CUBLAS_WORKSPACE_CONFIG, which cuBLAS needs for the same, is set when ibvit is imported: torch reads it only once.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # else each new tensor is first filled with NaN
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the whole process.

    Every step allocates the same blocks, and the system clears each new page: this avoids half of the page faults and
    about 5 % of a step of digits or repetition (one thread of a two-core AMD EPYC).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)  # bytes; the most that it takes
        libc.mallopt(m_trim_threshold, 1 << 30)


def _announce(trainer: Trainer, details: dict[str, Any]) -> None:
    config, model = trainer.config, trainer.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info(
        "%s: %s attention, %d blocks of %d heads, %d patches, %s parameters",
        config.model, config.attention, model.num_blocks, model.num_heads, model.channels.tokens, f"{parameters:,}",
    )  # fmt: skip
    if model.has_kl:
        log.info(
            "β = %g on the KL's %s: %g on its mean is %g on its sum (Eq. 3)",
            config.beta, config.kl_reduction, details["beta_mean"], details["beta_sum"],
        )  # fmt: skip
    log.info(
        "%s: %d training and %d validation images of %d classes; %d steps per epoch; %s, %d process(es)",
        config.data, *trainer.data.sizes, len(trainer.data.classes), trainer.steps_per_epoch, trainer.device,
        trainer.processes.world_size,
    )  # fmt: skip
    unused = trainer.data.sizes[0] - trainer.steps_per_epoch * config.batch_size
    if unused:
        log.info(
            "each epoch leaves out %d training images, which would not fill a batch of %d", unused, config.batch_size
        )
