"""The records of a run: what a model did with every validation image, as memory-mapped arrays.

`ibvit record --run DIR` writes DIR/records/ (see `ibvit.analysis.recorder`). Every analysis reads it through
`open_runs`.

    records.json      schema, data set, model, noise seed, saved heads, arrays with dtype, axes and unit, progress
    index.npy         [images]                    which image was shown: its own place in the validation set, or that
                                                  of its neighbour where its file was broken
    labels.npy        [images]                    true class
    logits.npy        [passes, images, classes]   one noisy validation pass each; the arrays below belong to pass 0
    patch_logits.npy  [images, patches, classes]  patch votes; their mean over patches is logits[0]
    kl.npy            [images, blocks, heads, patches]   nats
    mu.npy, logvar.npy  [saved heads, images, patches, latents]
    attention.npy     [saved heads, images, queries, keys]   on request
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ibvit import run_folder
from ibvit.config import told_apart, wrong_type
from ibvit.kinds import KINDS, Kind, KindName
from ibvit.models import kl as kl_accounting
from ibvit.models.storage import fingerprint_of

SCHEMA = "ibvit-records/1"

_verified: set[tuple[str, int, int]] = set()  # arrays whose checksum this process has compared

AXES = {
    "index": "image",
    "labels": "image",
    "logits": "pass image class",
    "patch_logits": "image patch class",
    "kl": "image block head patch",
    "mu": "head image patch latent",
    "logvar": "head image patch latent",
    "attention": "head image query key",
}
UNITS = {"kl": "nats"}


class RunIdentity(TypedDict):
    """A run as results name it: its folder's name, its place in the spectrum in words, and what fixes that place."""

    name: str
    label: str
    attention: KindName
    beta: float | None
    seed: int
    weights_sha256: str
    data_sha256: str


class RecordsError(ValueError):
    """A run folder whose records cannot be read; the message says what to do."""


def sha256(data: bytes) -> str:
    """Hexadecimal digest by which runs, weights and data sets are told apart."""
    return hashlib.sha256(data).hexdigest()


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def as_tensor(array: np.ndarray) -> Tensor:
    """A records array as float32 tensor, for `ibvit.models.kl`; shares memory with a float32 array."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def record_command(run: Path, options: Mapping[str, Any]) -> str:
    """The command that records a run, with `ibvit.analysis.recorder.RecordOptions` as they were given.

    >>> record_command(Path("runs/x"), {"heads": "active", "attention": True})
    'ibvit record --run runs/x --attention'
    """
    words = [f"ibvit record --run {run}"]
    words += ["--attention"] if options.get("attention") else []
    words += ["--heads all"] if options.get("heads") == "all" else []
    return " ".join(words)


_PARTS = {"arrays": dict, "progress": dict, "complete": bool}
_PARTS_IN_THE_END = {"weights_sha256": str, "data_sha256": str, "classes": list, "heads": list, "model": dict}


def read_meta(path: Path, otherwise: str) -> dict[str, Any]:
    """``records.json``; parts that a reader of this schema takes are there and of their type.

    Args:
        otherwise: what the error says if there is no such file.

    Raises:
        RecordsError: there is none, or it is damaged.
    """
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordsError(otherwise) from None
    except (ValueError, RecursionError) as error:
        raise RecordsError(f"{path} is damaged ({error})") from None
    if not isinstance(meta, dict):
        raise RecordsError(f"{path} is damaged (expected an object, got a {type(meta).__name__})")
    if meta.get("schema") == SCHEMA:
        parts = _PARTS | (_PARTS_IN_THE_END if meta.get("complete") is True else {})
        wrong = [name for name, kind in parts.items() if not isinstance(meta.get(name), kind)]
        wrong += [name for name in ("options", "weights") if not isinstance(meta.get(name, {}), dict)]
        for name, spec in meta["arrays"].items() if not wrong else ():
            if not isinstance(spec, dict) or not {"shape", "dtype"} <= set(spec):
                wrong.append(f"arrays.{name}")
        if wrong:
            raise RecordsError(f"{path} is damaged (its part {wrong[0]} is missing or not what it should be)")
    return meta


def _are_the_weights(path: Path, digest: str) -> bool:
    """Whether a file holds the weights of records; those of the first edition have the digest of the file itself."""
    return fingerprint_of(path) == digest or sha256(path.read_bytes()) == digest


@dataclass(frozen=True)
class Records:
    """The records of one run, read lazily. Open them with `Records.open` or, for several runs, `open_runs`."""

    run: Path
    config: Mapping[str, Any]
    meta: Mapping[str, Any]
    apart: str = ""
    """What tells the run apart from those beside it that have the same β or kind of attention."""

    @classmethod
    def open(cls, run_dir: str | Path) -> "Records":
        """Open the records in a run folder.

        Raises:
            RecordsError: not a run folder, no records, unfinished ones, a missing file, or records of other weights.
        """
        run = Path(run_dir)
        try:
            config = run_folder.read_config(run)
        except FileNotFoundError as error:
            raise RecordsError(f"{run} is not a run folder: it has no {run_folder.CONFIG}") from error
        except ValueError as error:
            raise RecordsError(str(error)) from error
        missing = f"{run} has no records: run `ibvit record --run {run}`"
        meta = read_meta(run / run_folder.RECORDS / "records.json", missing)
        options = meta.get("options")
        again = f"run `{record_command(run, options if isinstance(options, dict) else {})}`"
        if meta.get("schema") != SCHEMA:
            raise RecordsError(f"{run}/records has schema {meta.get('schema')!r}, expected {SCHEMA!r}: {again}")
        if not meta["complete"]:
            raise RecordsError(f"{run}/records is unfinished: {again} to resume where it stopped")
        if problem := wrong_type(config, needed=("attention", "beta", "seed", "data")):
            raise RecordsError(f"{run / run_folder.CONFIG}: {problem}")
        weights = run / run_folder.MODEL
        if weights.is_file() and not _are_the_weights(weights, meta["weights_sha256"]):
            step = meta.get("weights", {}).get("step")
            of = "" if step is None else f" (they are of step {step})"
            raise RecordsError(f"{run}/records belongs to other weights than model.safetensors{of}: {again}")
        records = cls(run, config, meta)
        for name in meta["arrays"]:
            records.array(name)
        return records

    def array(self, name: str) -> np.ndarray:
        """The memory-mapped array `name`; axes and units as in the module's documentation."""
        spec = self.meta["arrays"].get(name)
        if spec is None:
            option = " --attention" if name == "attention" else ""
            raise RecordsError(f"{self.run}/records holds no {name}: run `ibvit record --run {self.run}{option}`")
        path = self.run / run_folder.RECORDS / f"{name}.npy"
        if not path.is_file():
            again = record_command(self.run, self.meta.get("options", {}))
            raise RecordsError(f"{path} is missing: run `{again}` to record it again")
        try:
            array = np.load(path, mmap_mode="c")  # copy on write: torch takes no read-only arrays
        except (ValueError, EOFError) as error:
            raise RecordsError(
                f"{path} is damaged ({error}): delete {path.parent} and run `ibvit record` again"
            ) from None
        if list(array.shape) != spec["shape"] or str(array.dtype) != spec["dtype"]:
            raise RecordsError(
                f"{path} holds {array.dtype} {list(array.shape)}, expected {spec['dtype']} {spec['shape']}: "
                f"delete {path.parent} and run `ibvit record` again"
            )
        if "crc32" in spec and (state := (str(path), path.stat().st_mtime_ns, spec["crc32"])) not in _verified:
            if checksum(array) != spec["crc32"]:
                raise RecordsError(
                    f"{path} is damaged: its checksum differs; delete {path.parent} and run `ibvit record` again"
                )
            _verified.add(state)
        return array

    @property
    def attention_kind(self) -> KindName:
        """ "ib", "full" or "none"."""
        return self.config["attention"]

    @property
    def kind(self) -> Kind:
        """What a model of this run can do."""
        return KINDS[self.attention_kind]

    @property
    def beta(self) -> float | None:
        """β of a bottleneck run; None for `full` and `none`."""
        return float(self.config["beta"]) if self.kind.has_kl else None

    @property
    def seed(self) -> int:
        """Training seed."""
        return int(self.config["seed"])

    @property
    def label(self) -> str:
        """The run's place in the spectrum, as figures print it; runs that differ in their seed alone have the same."""
        label = self.kind.label or f"β = {self.config['beta']:g}"
        return f"{label}, {self.apart}" if self.apart else label

    @property
    def identity(self) -> RunIdentity:
        """Who this run is, for results and figures."""
        return {
            "name": self.run.resolve().name,
            "label": self.label,
            "attention": self.attention_kind,
            "beta": self.beta,
            "seed": self.seed,
            "weights_sha256": self.meta["weights_sha256"],
            "data_sha256": self.meta["data_sha256"],
        }

    @property
    def order(self) -> tuple[float, int]:
        """Sort key along the spectrum: no attention, β from large to small, full attention."""
        order = self.kind.order
        return (-float(self.config["beta"]) if order is None else order), self.seed

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.meta["model"]["grid_size"]
        return rows, columns

    @property
    def classes(self) -> list[str]:
        """Class names, by label."""
        return self.meta["classes"]

    @property
    def heads(self) -> list[str]:
        """Names of the heads whose mu, logvar (and attention) are saved, in order."""
        return self.meta["heads"]

    @cached_property
    def kl(self) -> np.ndarray:
        """[images, blocks, heads, patches], nats."""
        return self.array("kl")

    @cached_property
    def labels(self) -> np.ndarray:
        """[images], true classes."""
        return self.array("labels")

    @cached_property
    def index(self) -> np.ndarray:
        """[images], positions in the validation set."""
        return self.array("index")

    @cached_property
    def logits(self) -> np.ndarray:
        """[passes, images, classes]."""
        return self.array("logits")

    @cached_property
    def patch_logits(self) -> np.ndarray:
        """[images, patches, classes]."""
        return self.array("patch_logits")

    @cached_property
    def active(self) -> np.ndarray:
        """Which heads spend more than 10⁻² nats on at least one patch, [blocks, heads], bool."""
        return kl_accounting.active_heads(as_tensor(self.kl)).numpy()

    def block_and_head(self, head: str) -> tuple[int, int]:
        """ "11.0" → (11, 0)."""
        return kl_accounting.parse_head(head, *self.kl.shape[1:3])

    def _of_head(self, name: str, head: str) -> np.ndarray:
        array = self.array(name)
        if head not in self.heads:
            saved = ", ".join(self.heads) or "none"
            raise RecordsError(
                f"head {head!r} is not in {self.run}/records (saved: {saved}); "
                f"run `ibvit record --run {self.run} --heads all` for every head"
            )
        return array[self.heads.index(head)]

    def latent(self, head: str) -> tuple[np.ndarray, np.ndarray]:
        """mu and logvar of a head, [images, patches, latents] each."""
        return self._of_head("mu", head), self._of_head("logvar", head)

    def channel(self, head: str) -> tuple[Tensor, Tensor]:
        """mu and logvar of a head, [images · patches, latents] each: a channel of :mod:`ibvit.information`."""
        mu, logvar = self.latent(head)
        return as_tensor(mu).flatten(0, 1), as_tensor(logvar).flatten(0, 1)

    def attention(self, head: str) -> np.ndarray:
        """Attention maps of a head, [images, queries, keys]."""
        return self._of_head("attention", head)


def open_runs(run_dirs: Iterable[str | Path]) -> list[Records]:
    """Open the records of several runs, sorted along the spectrum: no attention, β from large to small, full.

    Raises:
        RecordsError: as `Records.open`; a run given twice; or the runs saw different validation sets.
    """
    runs = sorted((Records.open(run_dir) for run_dir in run_dirs), key=lambda records: records.order)
    if not runs:
        raise RecordsError("runs: expected at least one run folder, got none")
    twice = {str(run.run) for run in runs if [other.run.resolve() for other in runs].count(run.run.resolve()) > 1}
    if twice:
        raise RecordsError(f"runs: given more than once: {', '.join(sorted(twice))}")
    first = runs[0]
    for run in runs[1:]:
        if run.meta["data_sha256"] != first.meta["data_sha256"]:
            raise RecordsError(
                f"runs of different data sets cannot be compared: {first.run} was recorded on "
                f"{first.config['data']} ({len(first.labels)} images), {run.run} on "
                f"{run.config['data']} ({len(run.labels)} images)"
            )
    return _told_apart(runs)


def _told_apart(runs: list[Records]) -> list[Records]:
    groups: dict[str, list[Records]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    apart = {
        run.run: text
        for group in groups.values()
        for run, text in zip(group, told_apart([run.config for run in group]), strict=True)
    }
    return sorted(
        (replace(run, apart=apart[run.run]) for run in runs), key=lambda run: (run.order[0], run.apart, run.seed)
    )
