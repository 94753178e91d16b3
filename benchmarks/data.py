"""Images per second of every way to feed a model, and what that does to a training step.

Loaders take turns in one process, round by round, so that what else the machine does hits all of them. "plain" is
torchvision's ordinary recipe: ImageFolder, transforms.v2, DataLoader. Images are linked until an epoch is long enough:
those of ``--data DIR``, any folder of JPEGs; at toy size a few generated ones.
"""

from __future__ import annotations

import argparse
import atexit
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import ibvit
from benchmarks.recording import Benchmark, Case, Row, cores
from benchmarks.timing import GPU, milliseconds, spread
from ibvit.data.files.jpeg import plain_jpeg_size
from ibvit.data.loaders.torchvision import cut, finish
from ibvit.data.plans.augment import MEAN, STD, Augmentation, normalised, train_plan
from ibvit.data.sets.folder import folder_loaders

DEVICE = torch.device("cuda:0" if GPU else "cpu")
SIDE = 224
BATCH = 256 if GPU else 64
MODEL_BATCH, MODEL_STEPS = (256, 40) if GPU else (4, 2)
CACHE = "gpu" if GPU else "ram"
BETTER = {"ratio_to_plain": "higher", "ratio_to_resident": "lower"}


class Epochs(NamedTuple):
    """What is measured: DIR/train and DIR/val of two classes, and how often."""

    tree: Path
    rounds: int


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder of JPEGs; --full needs it")


def benchmark(full: bool, data: Path | None) -> Benchmark:
    if full and data is None:
        raise SystemExit("error: --full needs --data DIR, a folder of JPEGs")
    images = (50 if GPU else 5) * BATCH if full else 2 * BATCH
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    epochs = Epochs(Path(folder.name), rounds=3 if full else 1)
    link(epochs.tree, found_jpegs(data) if data else generated_jpegs(epochs.tree), images)
    loading = [
        Case(f"{count} cores, num_ops {ops}", partial(images_per_second, epochs, count, ops))
        for count in sorted({1, len(cores())})
        for ops in (2, 0)
    ]
    return Benchmark(
        f"{'JPEGs of a folder' if data else 'generated JPEGs'} at {SIDE} px, batch {BATCH}, {images} images per epoch",
        [*loading, Case("stages", partial(stages, epochs)), Case("training step", partial(training_step, epochs))],
        BETTER,
    )


def found_jpegs(data: Path) -> list[Path]:
    return sorted(path.resolve() for path in data.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))


def generated_jpegs(folder: Path) -> list[Path]:
    files = [folder / f"{at}.jpg" for at in range(16)]
    for at, path in enumerate(files):
        coarse = np.random.default_rng(at).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.BICUBIC).save(path, quality=90)
    return files


def link(tree: Path, files: list[Path], images: int) -> None:
    for split, count in (("train", images), ("val", len(files))):
        for at in range(count):
            folder = tree / split / str(at % 2)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{at:06}.jpg").symlink_to(files[at % len(files)])


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """This process and those that it starts on some cores only."""
    before, threads = cores(), torch.get_num_threads()
    os.sched_setaffinity(0, before[:count])
    torch.set_num_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


class Plain:
    """torchvision's ordinary recipe."""

    def __init__(self, root: Path, num_ops: int, workers: int) -> None:
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIDE, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                *([v2.RandAugment(num_ops)] if num_ops else []),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        self._loader = DataLoader(
            ImageFolder(str(root / "train"), transform), BATCH, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=True, pin_memory=GPU,
        )  # fmt: skip

    def epoch(self, epoch: int) -> Iterator[Any]:
        for images, labels in self._loader:
            yield images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)

    def close(self) -> None:
        del self._loader


def ours(tree: Path, loader: str, cache: str, batch: int, workers: int, **options: Any) -> Any:
    return folder_loaders(
        tree, image_size=SIDE, global_batch=batch, eval_batch=batch, workers=workers, loader=loader, cache=cache,
        device=DEVICE, **options,
    ).train  # fmt: skip


def images_per_second(epochs: Epochs, count: int, num_ops: int) -> list[Row]:
    load = os.getloadavg()[0]  # the last minute's: other work's, and that of the case before

    def rate(batches: Iterable[Any]) -> float:
        start, images = time.perf_counter(), 0
        for batch in batches:
            images += len(batch[0])
        if GPU:
            torch.cuda.synchronize()
        return images / (time.perf_counter() - start)

    with on_cores(count):
        loaders: dict[str, Any] = {"plain": Plain(epochs.tree, num_ops, count)}
        for loader in ("torchvision", "dali"):
            for name, cache in ((loader, "off"), (f"{loader}, cached", CACHE)):
                loaders[name] = ours(epochs.tree, loader, cache, BATCH, count, num_ops=num_ops)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        try:
            for loader in loaders.values():  # starts workers, fills caches
                rate(loader.epoch(0))
            for turn in range(1, epochs.rounds + 1):
                for name, loader in loaders.items():
                    rates[name].append(rate(loader.epoch(turn)))
        finally:
            for loader in loaders.values():
                loader.close()
    return [
        {
            "part": "loading", "cores": count, "rand_augment": num_ops > 0, "loader": name,
            **spread(values, "images_per_s"),
            "ratio_to_plain": statistics.median(own / p for own, p in zip(values, rates["plain"], strict=True)),
            "load": load,
        }
        for name, values in rates.items()
    ]  # fmt: skip


def stages(epochs: Epochs) -> list[Row]:
    """Where an image's time goes on the CPU, one thread: processor time."""
    with on_cores(1):
        return _stages(epochs)


def _stages(epochs: Epochs) -> list[Row]:
    from ibvit.data.loaders.dali_graph import decode_graph, window_arguments

    files = sorted((epochs.tree / "train").rglob("*.jpg"))[:BATCH]
    encoded = [data for data in (file.read_bytes() for file in files) if plain_jpeg_size(data)]
    buffers = [np.frombuffer(data, dtype=np.uint8) for data in encoded]
    pictures = [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    count = len(pictures)
    plans = {ops: train_plan(Augmentation(SIDE, ops), 0, 0, np.arange(count), sizes) for ops in (0, 2)}
    graph = decode_graph(batch_size=count, num_threads=1, device_id=None)
    batch = torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8)

    def windows() -> list[np.ndarray]:
        return [cut(picture, window) for picture, window in zip(pictures, plans[0].window, strict=True)]

    def finished(ops: int) -> list[Any]:
        return [finish(ready[row], plans[ops], row, SIDE) for row in range(count)]

    ready = windows()
    works: dict[str, Callable[[], Any]] = {
        "plan": lambda: train_plan(Augmentation(SIDE), 0, 0, np.arange(count), sizes),
        "decode, PIL": lambda: [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded],
        "decode window, DALI": lambda: graph.run(images=buffers, **window_arguments(plans[0])),
        "cut from cache": windows,
        "resize and flip": lambda: finished(0),
        "resize, flip and RandAugment": lambda: finished(2),
        "normalise": lambda: normalised(batch),
    }
    rows = []
    for stage, work in works.items():
        work()
        times = []
        for _ in range(2 * epochs.rounds + 1):
            start = time.process_time()
            work()
            times.append(1e3 * (time.process_time() - start) / count)
        rows.append({"part": "stage", "stage": stage, **spread(times, "ms_per_image")})
    return rows


def training_step(epochs: Epochs) -> list[Row]:
    """The number that matters: a training step fed by a loader over one on a batch that is already there."""
    load = os.getloadavg()[0]
    model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=2).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            logits, kl = model(images, return_kl=True)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels) + kl.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    images = torch.randn(MODEL_BATCH, 3, SIDE, SIDE, device=DEVICE)
    resident = images, torch.zeros(MODEL_BATCH, dtype=int, device=DEVICE)

    def milliseconds_per_step(batches: Iterator[Any]) -> float:
        def steps() -> None:
            for _ in range(MODEL_STEPS):
                step(*next(batches)[:2])

        step(*next(batches)[:2])
        return milliseconds(steps) / MODEL_STEPS

    loaders = {
        f"{loader}, {cache}": ours(epochs.tree, loader, cache, MODEL_BATCH, len(cores()))
        for loader, cache in (("torchvision", "off"), ("dali", "off"), ("dali", CACHE))
    }
    times: dict[str, list[float]] = {name: [] for name in ("resident", *loaders)}
    try:
        milliseconds_per_step(iter(lambda: resident, None))  # the first steps allocate
        for turn in range(epochs.rounds):
            times["resident"].append(milliseconds_per_step(iter(lambda: resident, None)))
            for name, loader in loaders.items():
                stream = loader.epoch(turn)
                times[name].append(milliseconds_per_step(stream))
                stream.close()
    finally:
        for loader in loaders.values():
            loader.close()
    return [
        {
            "part": "training step", "batch": MODEL_BATCH, "loader": name, **spread(values, "ms"),
            "ratio_to_resident": statistics.median(a / b for a, b in zip(values, times["resident"], strict=True)),
            "load": load,
        }
        for name, values in times.items()
    ]  # fmt: skip
