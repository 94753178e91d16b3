"""Run folders with constructed records: 24 images of 4 × 4 patches, 2 blocks of 2 heads, 3 latents, 5 classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ibvit.analysis.records import checksum, sha256
from ibvit.analysis.writer import RecordsWriter

IMAGES, GRID, BLOCKS, HEADS, LATENTS, CLASSES = 24, (4, 4), 2, 2, 3, 5
PATCHES = GRID[0] * GRID[1]


def write_run(
    folder: Path,
    attention: str,
    *,
    beta: float = 1.0,
    seed: int = 0,
    active: dict[str, float] | None = None,
    passes: int = 3,
    data: str = "constructed",
    votes: np.ndarray | None = None,
    complete: bool = True,
) -> Path:
    """Write a run folder with records.

    Each head in `active` spends its nats on patch 5 of every even image and nothing elsewhere; there its message is
    μ = ±√(2·nats) in latent 1 (variance one), positive in images divisible by four. Attention of every query is
    spread evenly, except that patch 5 looks at patch 10 alone.
    """
    folder.mkdir(parents=True)
    config = {"architecture": {}, "attention": attention, "beta": beta, "seed": seed, "data": data}
    (folder / "config.json").write_text(json.dumps(config))
    active = (active or {}) if attention == "ib" else {}
    labels = np.arange(IMAGES) % CLASSES
    meta = {
        "weights_sha256": sha256(b""),
        "classes": [f"class {k}" for k in range(CLASSES)],
        "model": {"grid_size": list(GRID), "num_blocks": BLOCKS, "num_heads": HEADS, "latent_dim": LATENTS},
    }
    writer = RecordsWriter(folder, meta)
    writer.describe(data_sha256=sha256(data.encode()), heads=list(active))
    writer.add("index", (IMAGES,), "int64")[:] = np.arange(IMAGES)
    writer.add("labels", (IMAGES,), "int64")[:] = labels
    rng = np.random.default_rng(seed)
    if votes is None:
        votes = rng.normal(size=(IMAGES, PATCHES, CLASSES)) + 3 * (labels[:, None] == np.arange(CLASSES))[:, None]
    writer.add("patch_logits", votes.shape, "float32")[:] = votes
    writer.add("logits", (passes, IMAGES, CLASSES), "float32")[:] = votes.mean(axis=1)
    if attention == "ib":
        kl = writer.add("kl", (IMAGES, BLOCKS, HEADS, PATCHES), "float32")
        shape = (len(active), IMAGES, PATCHES)
        mu = writer.add("mu", (*shape, LATENTS), "float32")
        writer.add("logvar", (*shape, LATENTS), "float32")
        pattern = writer.add("attention", (*shape, PATCHES), "float32")
        pattern[:] = 1 / PATCHES
        pattern[:, :, 5] = np.eye(PATCHES)[10]
        for k, (head, nats) in enumerate(active.items()):
            block, position = map(int, head.split("."))
            kl[::2, block, position, 5] = nats
            mu[k, ::2, 5, 1] = -np.sqrt(2 * nats)
            mu[k, ::4, 5, 1] = np.sqrt(2 * nats)
    writer.commit("all", IMAGES)
    if complete:
        writer.finish()
    return folder


def write_spectrum(folder: Path) -> list[Path]:
    """Five runs: none, β = 10 (seeds 0 and 1: the same message in another head), β = 1 (two heads), full."""
    return [
        write_run(folder / "none", "none"),
        write_run(folder / "beta10", "ib", beta=10.0, active={"1.0": 0.5}),
        write_run(folder / "beta10-seed1", "ib", beta=10.0, seed=1, active={"1.1": 0.5}),
        write_run(folder / "beta1", "ib", beta=1.0, active={"0.1": 1.0, "1.0": 2.0}),
        write_run(folder / "full", "full"),
    ]


@contextmanager
def changed(folder: Path, name: str) -> Iterator[np.ndarray]:
    """An array of recorded values to change, and the checksum that goes with it."""
    array = np.load(folder / "records" / f"{name}.npy", mmap_mode="r+")
    yield array
    array.flush()
    path = folder / "records" / "records.json"
    meta = json.loads(path.read_text())
    meta["arrays"][name]["crc32"] = checksum(array)
    path.write_text(json.dumps(meta))
