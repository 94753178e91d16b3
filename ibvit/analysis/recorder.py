"""`ibvit record`: write the records of a run (see `ibvit.analysis.records`).

Three stages, each resumable at a step. *Survey*: votes and KL of every head, so that the active heads are known.
*Latents*: the same pass with the same noise once more, and saves mu and logvar (and attention) of those heads.
*Passes*: further noisy passes, whose logits are saved, for error bars.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ibvit import ops
from ibvit.analysis.images import open_data
from ibvit.analysis.records import Records, RecordsError, as_tensor, sha256
from ibvit.analysis.writer import RecordsWriter
from ibvit.arguments import called
from ibvit.data.build import DataSet, DataSpec
from ibvit.data.identity import Identity
from ibvit.data.types import Batch
from ibvit.files import lock
from ibvit.models import kl as kl_accounting
from ibvit.models import load, run_with_cache
from ibvit.models.storage import fingerprint_of, read_facts
from ibvit.progress import Progress
from ibvit.run_folder import CONFIG, LOCK, MODEL, RECORDS
from ibvit.training.run import check_same_data, stored_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordOptions:
    """What `ibvit record` saves."""

    heads: Literal["active", "all"] = "active"
    """Save mu and logvar of the active heads (more than 0.01 nats on at least one patch), or of all."""
    attention: bool = False
    """Also save attention maps of those heads (of all heads where attention is full)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of mu, logvar, votes and attention. float16 takes half the space, but rounds mu near 4 by 0.002, which is a
    third of the smallest standard deviation that a head can send: use float32 to estimate information."""
    passes: int = 10
    """Noisy validation passes, for error bars on accuracy; one where nothing is random."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes: expected at least 1, got {self.passes}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed: expected at least 0 and less than 2^63, got {self.seed}")


def write_records(
    run_dir: str | Path, options: RecordOptions | None = None, *, accept_changed_data: bool = False
) -> Records:
    """Record what a run's newest weights do with every validation image; resumes where an interrupted call stopped.

    Pass k draws the noise of repeat k of `ibvit eval` with the same seed.

    Raises:
        RecordsError: the folder holds no run, or one without weights.
        ValueError: the validation set is not the run's, and `accept_changed_data` is not given.
    """
    run = Path(run_dir)
    for name in (CONFIG, MODEL):
        if not (run / name).is_file():
            raise RecordsError(f"{run} is not a run with weights: it has no {name}")
    stored = stored_config(run)
    data = open_data(DataSpec.of(stored))
    try:
        identity = data.identity(("val",))
        check_same_data(run, stored.data, identity, accept_changed_data)
        log.info("%s: weights of %s", run, _state(run))
        folder = run / RECORDS
        folder.mkdir(exist_ok=True)
        with lock(folder, LOCK, "run"):
            _Recorder(run, data, identity, options or RecordOptions()).record()
    finally:
        data.close()
    return Records.open(run)


def _state(run: Path) -> str:
    facts = read_facts(run / MODEL)
    if "step" not in facts:
        return f"{run / MODEL}, which does not say of which step"
    finished = "" if facts["epoch"] == facts["epochs"] else "; the run is not finished"
    return f"step {facts['step']}, {facts['epoch']} of {facts['epochs']} epochs{finished}"


class _Recorder:
    """One call of `write_records`."""

    def __init__(self, run: Path, data: DataSet, identity: Identity, options: RecordOptions) -> None:
        self.run, self.loader, self.images, self.options = run, data.val, data.sizes[1], options
        with called({"directory": "run"}):
            self.model = model = load(run).to("cuda" if torch.cuda.is_available() else "cpu")
        self.passes = options.passes if model.has_kl else 1
        self.index: np.ndarray = np.empty(0, dtype=np.int64)  # [images], the image that the survey saw in each row
        self.writer = RecordsWriter(
            run,
            {
                "weights_sha256": fingerprint_of(run / MODEL),
                "weights": read_facts(run / MODEL),
                "files_sha256": identity.sha256["val"],
                "options": asdict(options),
                "classes": list(data.classes),
                "model": {
                    "num_blocks": model.num_blocks,
                    "num_heads": model.num_heads,
                    "latent_dim": model.latent_dim,
                    "grid_size": list(model.grid_size),
                    "patch_size": list(model.patch_size),
                },
            },
        )

    @torch.no_grad()
    def record(self) -> None:
        if self.writer.meta["complete"]:
            log.info("%s: the records are complete already", self.run)
            return
        self._survey()
        self._latents()
        self._more_passes()
        self.writer.finish()

    def _batches(self, stage: str, repeat: int = 0) -> Iterator[tuple[slice, Batch]]:
        """The batches that `stage` has still to do, on the model's device, with their noise set up."""
        done, device = self.writer.progress(stage), self.model.noise_key.device
        total = len(self.loader)
        batches = self.loader.epoch(0, start=done) if done < total else ()
        with Progress(total, f"{self.run.name}: {stage}", "batches", done=done) as progress:
            for step, batch in zip(range(done, total), batches, strict=True):
                first = batch.first
                rows = slice(first, first + len(batch.index))
                if stage == "survey":
                    self.index[rows] = batch.index.cpu().numpy()
                elif not np.array_equal(self.index[rows], batch.index.cpu().numpy()):
                    raise RecordsError(
                        f"{self.run}: expected the images that the survey saw in rows {first} to {rows.stop - 1}, got "
                        f"others: a file broke or was mended meanwhile; delete {self.writer.folder} and record again"
                    )
                self.model.noise_key.copy_(ops.evaluation_key(self.options.seed, repeat, first))
                yield rows, batch._replace(images=batch.images.to(device))
                self.writer.commit(stage, step + 1)  # once the caller has written the rows
                progress.advance()

    def _survey(self) -> None:
        model, (blocks, heads, patches) = self.model, self.model.channels
        add = self.writer.add
        self.index, labels = add("index", (self.images,), "int64"), add("labels", (self.images,), "int64")
        logits = add("logits", (self.passes, self.images, model.num_classes), "float32")
        votes = add("patch_logits", (self.images, patches, model.num_classes), self.options.dtype)
        kl = add("kl", (self.images, blocks, heads, patches), "float32") if model.has_kl else None
        log.info("%s: votes and KL of %d images: %s", self.run, self.images, _size(self.writer))
        for rows, batch in self._batches("survey"):
            tokens, kl_of_batch = model.forward_features(batch.images)
            vote = model.head(model.head_drop(tokens)).float()
            labels[rows] = batch.labels.cpu().numpy()
            votes[rows], logits[0, rows] = vote.cpu().numpy(), vote.mean(dim=1).cpu().numpy()
            if kl is not None and kl_of_batch is not None:
                kl[rows] = kl_of_batch.cpu().numpy()
        identity = json.dumps([self.writer.meta["classes"], labels.tolist()])
        self.writer.describe(data_sha256=sha256(identity.encode()), heads=self._heads_to_record(kl))

    def _heads_to_record(self, kl: np.ndarray | None) -> list[str]:
        is_recorded = torch.ones(self.model.num_blocks, self.model.num_heads, dtype=torch.bool)
        if kl is None:
            is_recorded &= self.options.attention and bool(self.model.attentions)
        elif self.options.heads == "active":
            is_recorded = kl_accounting.active_heads(as_tensor(kl))
        return kl_accounting.head_names(is_recorded)

    def _latents(self) -> None:
        names = self.writer.meta["heads"]
        if not names:
            return
        model, patches = self.model, self.model.channels.tokens
        shapes = {"mu": model.latent_dim, "logvar": model.latent_dim} if model.has_kl else {}
        if self.options.attention:
            shapes["attention"] = patches
        hooks = {"mu": "hook_mu", "logvar": "hook_logvar", "attention": "hook_pattern"}
        arrays = {
            kind: self.writer.add(kind, (len(names), self.images, patches, last), self.options.dtype)
            for kind, last in shapes.items()
        }
        log.info("%s: %s of heads %s: %s in all", self.run, ", ".join(arrays), ", ".join(names), _size(self.writer))
        heads = [kl_accounting.parse_head(name, model.num_blocks, model.num_heads) for name in names]
        hook_names = [
            f"blocks.{block}.attn.{hooks[kind]}" for block in sorted({b for b, _ in heads}) for kind in arrays
        ]
        for rows, batch in self._batches("latents"):
            _, cache = run_with_cache(model, batch.images, hook_names)
            for kind, array in arrays.items():
                for k, (block, head) in enumerate(heads):
                    array[k, rows] = _array(cache[f"blocks.{block}.attn.{hooks[kind]}"][:, head])

    def _more_passes(self) -> None:
        logits = self.writer.add("logits", (self.passes, self.images, self.model.num_classes), "float32")
        for repeat in range(1, self.passes):
            for rows, batch in self._batches(f"pass {repeat}", repeat):
                logits[repeat, rows] = _array(self.model(batch.images))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _size(writer: RecordsWriter) -> str:
    specs = writer.meta["arrays"].values()
    size = sum(int(np.prod(spec["shape"])) * np.dtype(spec["dtype"]).itemsize for spec in specs)
    return f"{size / 1e6:,.1f} MB"
