"""What the report shows, measured from runs and packed small: numbers as JSON, maps as quantised base64."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from ibvit.analysis.copypaste import copy_paste
from ibvit.analysis.divergence import probabilities, select_images, softmax
from ibvit.analysis.extremes import Extremes, extremes
from ibvit.analysis.heads import heads, mean_active_heads, strongest_heads
from ibvit.analysis.images import read_images
from ibvit.analysis.records import Records
from ibvit.analysis.similarity import SAMPLES, Similarity, similarity
from ibvit.analysis.spectrum import spectrum
from ibvit.analysis.voting import vote_ranks
from ibvit.figures import style

DETAILED_HEADS = 4
"""Heads of each run, the strongest first, that get patches, attention, copy-paste response and neighbours."""
PROBE_IMAGES = 256
NEIGHBOURS = 6
TOP_CLASSES = 5
LARGEST_PICTURE = 128


def pack(values: np.ndarray, highest: float) -> dict[str, Any]:
    """Values from 0 to `highest` as 16-bit steps; the page multiplies by `scale`."""
    steps = np.round(np.clip(values / max(highest, 1e-30), 0, 1) * 65535).astype("<u2")
    return {"shape": list(values.shape), "scale": highest / 65535, "u16": base64.b64encode(steps.tobytes()).decode()}


def pack_rows(values: np.ndarray) -> dict[str, Any]:
    """Each row of the last axis relative to its largest value, as bytes."""
    steps = np.round(values / np.maximum(values.max(axis=-1, keepdims=True), 1e-30) * 255).astype(np.uint8)
    return {"shape": list(values.shape), "scale": 1 / 255, "u8": base64.b64encode(steps.tobytes()).decode()}


def data_url(image: np.ndarray) -> str:
    """An image, uint8 [height, width, 3], as a data: URL; small ones exactly, larger ones as JPEG."""
    picture = Image.fromarray(image)
    lossless = max(picture.size) <= 64
    picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=82)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rounded(values: np.ndarray, digits: int = 4) -> list[Any]:
    return [float(f"{value:.{digits}g}") for value in np.ravel(values)]


def _palette(name: str) -> list[str]:
    return [to_hex(color) for color in mpl.colormaps[name](np.linspace(0, 1, 64))]


class _Pictures(dict[str, str]):
    """Pictures by their position in the validation set, each stored once."""

    def add(self, index: np.ndarray, images: np.ndarray) -> None:
        for position, image in zip(index, images, strict=True):
            self.setdefault(str(position), data_url(image))


def _patches(result: Extremes, chosen: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "image": int(result.index[k]),
            "patch": int(result.patch[k]),
            "mu": float(f"{result.mu[k]:.3g}"),
            "kl": float(f"{result.kl[k]:.3g}"),
            "attention": pack_rows(result.attention[k].ravel()),
        }
        for k in np.flatnonzero(chosen)
    ]


def _neighbours(likeness: Similarity | None, run: str, head: str) -> list[dict[str, Any]]:
    own = [] if likeness is None else [k for k in likeness.of_run(run) if likeness.heads[k] == head]
    if likeness is None or not own:
        return []  # the similarity of a head that sends little is not known
    here = own[0]
    is_known = np.isfinite(likeness.nmi[here])
    nearest = [k for k in np.argsort(-likeness.nmi[here], kind="stable") if k != here and is_known[k]][:NEIGHBOURS]
    return [
        {
            "run": likeness.runs[k]["name"],
            "head": likeness.heads[k],
            "nmi": float(likeness.nmi[here, k]),
            "stderr": float(likeness.stderr[here, k]),
        }
        for k in nearest
    ]


def _head_details(records: Records, likeness: Similarity | None, pictures: _Pictures) -> dict[str, Any]:
    names = strongest_heads(records)[:DETAILED_HEADS]
    if not names:
        return {}
    probe = copy_paste(records, names, images=PROBE_IMAGES, examples=0)
    details = {}
    for k, head in enumerate(names):
        patches = extremes(records, head, count=4)
        pictures.add(patches.index, patches.images)
        details[head] = {
            "threshold": patches.threshold,
            "negative": _patches(patches, patches.mu < 0),
            "positive": _patches(patches, patches.mu > 0),
            "copies": probe.copies.tolist(),
            "mu0": _rounded(probe.mu_0[k], 3),
            "shift": [_rounded(shift, 3) for shift in probe.shift[k]],
            "nearest": _neighbours(likeness, records.identity["name"], head),
        }
    return details


def _firing(records: Records) -> dict[str, Any]:
    result = heads(records)
    blocks, per_block = result.active.shape
    return {
        "blocks": blocks,
        "heads": per_block,
        "nats": _rounded(result.nats[::2]),
        "survival": {
            f"{block}.{head}": _rounded(result.survival[block, head, ::2])
            for block, head in zip(*np.nonzero(result.active), strict=True)
        },
        "mean": {f"{b}.{h}": float(f"{result.mean_kl[b, h]:.3g}") for b in range(blocks) for h in range(per_block)},
        "latents": {f"{b}.{h}": int(result.active_latents[b, h]) for b in range(blocks) for h in range(per_block)},
    }


def _image(records: Records, row: int) -> dict[str, Any]:
    votes = np.asarray(records.patch_logits[row], dtype=np.float32)  # [patches, classes]
    share = softmax(votes)
    top = np.argsort(-share, axis=1)[:, :TOP_CLASSES]
    whole = probabilities(records)[row]
    best = np.argsort(-whole)[:TOP_CLASSES]
    entry: dict[str, Any] = {
        "predicted": [[int(c), float(f"{whole[c]:.3g}")] for c in best],
        "ranks": vote_ranks(votes[None])[0].tolist(),
        "classes": top.tolist(),
        "probabilities": pack(np.take_along_axis(share, top, axis=1), 1.0),
    }
    if records.beta is not None:
        names = strongest_heads(records)
        nats = np.array([records.kl[(row, *records.block_and_head(name))] for name in names]).reshape(len(names), -1)
        entry["kl"] = {"heads": names, "nats": pack(nats, float(nats.max(initial=0.0)))}
        strongest = names[:DETAILED_HEADS]
        entry["attention"] = {
            name: pack_rows(np.asarray(records.attention(name)[row], np.float32)) for name in strongest
        }
    return entry


def report_data(runs: Sequence[Records], *, images: int = 12, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Everything that the page shows, as one JSON document; runs in the order of `open_runs`.

    Args:
        images: how many validation images the image view offers, drawn at random.
        samples: draws behind each NMI.

    Raises:
        RecordsError: a run was recorded without attention maps.
    """
    first, measured = runs[0], spectrum(runs)
    rows = select_images(runs, images, seed=seed)
    pictures = _Pictures()
    pictures.add(first.index[rows], read_images(first, rows))
    active_runs = [run for run in runs if mean_active_heads(run)]
    likeness = similarity(active_runs, most=DETAILED_HEADS, samples=samples, seed=seed) if active_runs else None
    entries = []
    for k, run in enumerate(runs):
        entry: dict[str, Any] = {
            **run.identity,
            "color": style.color(run.identity),
            "hasKl": run.kind.has_kl,
            "nats": None if np.isinf(measured.nats_per_patch[k]) else float(measured.nats_per_patch[k]),
            "accuracy": float(measured.accuracy[k]),
            "accuracyStd": float(measured.accuracy_std[k]),
            "active": int(measured.active_heads[k]),
            "mean_active": int(measured.mean_active_heads[k]),
            "images": [_image(run, row) for row in rows],
        }
        if run.beta is not None:
            entry["firing"] = _firing(run)
            entry["details"] = _head_details(run, likeness, pictures)
        entries.append(entry)
    slope, error = measured.slope()
    return {
        "data": Path(first.config["data"]).name,
        "slope": None if np.isnan(slope) else [slope, None if np.isnan(error) else error],
        "grid": list(first.grid),
        "classes": first.classes,
        "palettes": {"nats": _palette(style.NATS), "attention": _palette(style.ATTENTION)},
        "votes": [to_hex(style.VOTES(k)) for k in range(4)],
        "images": [{"index": int(first.index[row]), "label": int(first.labels[row])} for row in rows],
        "pictures": pictures,
        "runs": entries,
    }
