"""Images per second of every way to feed a model, and what that does to a training step.

    python -m pytest -s benchmarks/test_data.py                     # generated JPEGs: does it run?
    IBVIT_DATA=DIR python -m pytest -s benchmarks/test_data.py      # any folder of JPEGs

Loaders take turns in one process, round by round, so that what else the machine does hits all of them; figures are
medians of rounds. "plain" is torchvision's ordinary recipe: ImageFolder, transforms.v2, DataLoader. Images are linked
until an epoch is long enough. With IBVIT_DATA, each test writes its part of results/<machine>-data.json.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import ibvit
from benchmarks.recording import processor
from ibvit.data.augment import MEAN, STD, Augmentation, normalised, train_plan
from ibvit.data.folder import folder_loaders
from ibvit.data.jpeg import plain_jpeg_size
from ibvit.data.torchvision import cut, finish

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

DATA = os.environ.get("IBVIT_DATA")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if CUDA else "cpu")
SIDE = 224
BATCH = 256 if CUDA else 64
IMAGES = (50 * BATCH if CUDA else 5 * BATCH) if DATA else 2 * BATCH  # an epoch
ROUNDS = 3 if DATA else 1
CORES = sorted(os.sched_getaffinity(0))
MODEL_BATCH, MODEL_STEPS = (256, 40) if CUDA else (4, 2)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/train and DIR/val of two classes, linked to the images."""
    root = tmp_path_factory.mktemp("data")
    if DATA:
        files = sorted(path for path in Path(DATA).rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    else:
        files = [root / f"{at}.jpg" for at in range(16)]
        for at, path in enumerate(files):
            coarse = np.random.default_rng(at).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((500, 375), Image.BICUBIC).save(path, quality=90)
    for split, count in (("train", IMAGES), ("val", len(files))):
        for at in range(count):
            folder = root / split / str(at % 2)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{at:06}.jpg").symlink_to(files[at % len(files)].resolve())
    return root


@pytest.fixture
def record() -> Iterator[dict[str, Any]]:
    """Filled by a test and written when it is done, beside what others have found on this machine."""
    path = Path(__file__).parent / "results" / f"{machine().lower().replace(' ', '-').replace(',', '')}-data.json"
    about: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "pillow", "nvidia-dali-cuda130")},
        "python": platform.python_version(),
        "batch": BATCH,
        "images_an_epoch": IMAGES,
        "rounds": ROUNDS,
    }
    known = json.loads(path.read_text()) if DATA and path.exists() else {}
    result = about | {key: value for key, value in known.items() if about.items() <= known.items()}
    yield result
    if DATA:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> str:
    """The processor and how much of it there is."""
    if CUDA:
        return f"{torch.cuda.get_device_name(0)}, {len(CORES)} cores"
    return f"{processor()}, {len(CORES)} cores"


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
            ImageFolder(str(root / "train"), transform),
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=CUDA,
        )

    def epoch(self, epoch: int) -> Iterator[Any]:
        for images, labels in self._loader:
            yield images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)

    def close(self) -> None:
        del self._loader


def contestants(root: Path, num_ops: int, workers: int) -> dict[str, Any]:
    """Name → loader; every one makes batches of BATCH on DEVICE."""

    def ours(loader: str, cache: str) -> Any:
        return folder_loaders(
            root,
            image_size=SIDE,
            global_batch=BATCH,
            eval_batch=BATCH,
            workers=workers,
            loader=loader,
            cache=cache,
            device=DEVICE,
            num_ops=num_ops,
        ).train

    return {
        "plain": Plain(root, num_ops, workers),
        "torchvision": ours("torchvision", "off"),
        "torchvision, cached": ours("torchvision", "ram"),
        "dali": ours("dali", "off"),
        "dali, cached": ours("dali", "gpu" if CUDA else "ram"),
    }


def rate(batches: Iterable[Any]) -> float:
    """Images a second."""
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch[0])
    if CUDA:
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


@pytest.mark.parametrize("num_ops", [2, 0], ids=["RandAugment", "no RandAugment"])
@pytest.mark.parametrize("cores", sorted({1, len(CORES)}))
def test_images_per_second(tree: Path, record: dict[str, Any], cores: int, num_ops: int) -> None:
    load = os.getloadavg()[0]  # the last minute's, other work's and that of the test before
    os.sched_setaffinity(0, CORES[:cores])
    torch.set_num_threads(cores)
    loaders = contestants(tree, num_ops, workers=cores)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    try:
        for name, loader in loaders.items():  # starts workers, fills caches
            first = rate(loader.epoch(0))
            print(f"{name}: first epoch {first:.0f} images/s")
        for turn in range(1, ROUNDS + 1):
            for name, loader in loaders.items():
                rates[name].append(rate(loader.epoch(turn)))
    finally:
        for loader in loaders.values():
            loader.close()
        os.sched_setaffinity(0, CORES)
    relative = {
        name: statistics.median(own / plain for own, plain in zip(values, rates["plain"], strict=True))
        for name, values in rates.items()
    }
    key = f"{cores} cores, {'RandAugment' if num_ops else 'no RandAugment'}"
    record.setdefault("images_per_second", {})[key] = {"load": load} | {
        name: {"median": statistics.median(values), "rounds": values, "over_plain": relative[name]}
        for name, values in rates.items()
    }
    for name, values in rates.items():
        print(f"{key}: {name}: {statistics.median(values):.0f} images/s, {relative[name]:.2f} x plain")


def test_stages(tree: Path, record: dict[str, Any]) -> None:
    """Where an image's time goes on the CPU, one thread, in milliseconds of processor time."""
    from ibvit.data.dali_graph import decode_graph, window_arguments

    torch.set_num_threads(1)
    files = sorted((tree / "train").rglob("*.jpg"))[:BATCH]
    encoded = [data for data in (file.read_bytes() for file in files) if plain_jpeg_size(data)]
    buffers = [np.frombuffer(data, dtype=np.uint8) for data in encoded]
    pictures = [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    count = len(pictures)
    plans = {ops: train_plan(Augmentation(SIDE, ops), 0, 0, np.arange(count), sizes) for ops in (0, 2)}
    graph = decode_graph(batch_size=count, num_threads=1, device_id=None)
    batch = torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8)
    windows = [cut(picture, window) for picture, window in zip(pictures, plans[0].window, strict=True)]

    def cost(work: Callable[[], Any]) -> float:
        work()
        times = []
        for _ in range(2 * ROUNDS + 1):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return 1e3 * statistics.median(times) / count

    finished = {
        ops: cost(lambda ops=ops: [finish(windows[row], plans[ops], row, SIDE) for row in range(count)])
        for ops in plans
    }
    stages = {
        "plan": cost(lambda: train_plan(Augmentation(SIDE), 0, 0, np.arange(count), sizes)),
        "decode, PIL": cost(lambda: [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]),
        "decode window, DALI": cost(lambda: graph.run(images=buffers, **window_arguments(plans[0]))),
        "cut from cache": cost(
            lambda: [cut(picture, window) for picture, window in zip(pictures, plans[0].window, strict=True)]
        ),
        "resize and flip": finished[0],
        "RandAugment": finished[2] - finished[0],
        "normalise": cost(lambda: normalised(batch)),
    }
    record["stages_ms_an_image"] = stages
    for name, milliseconds in stages.items():
        print(f"{name}: {milliseconds:.3f} ms an image")


def test_training_step(tree: Path, record: dict[str, Any]) -> None:
    """The number that matters: a training step fed by a loader over one on a batch that is already there."""
    load = os.getloadavg()[0]
    torch.set_num_threads(len(CORES))
    model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=2).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            logits, kl = model(images, return_kl=True)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels) + kl.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    resident = (
        torch.randn(MODEL_BATCH, 3, SIDE, SIDE, device=DEVICE),
        torch.zeros(MODEL_BATCH, dtype=int, device=DEVICE),
    )

    def seconds(batches: Iterator[Any]) -> float:
        step(*next(batches)[:2])
        if CUDA:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(MODEL_STEPS):
            step(*next(batches)[:2])
        if CUDA:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / MODEL_STEPS

    loaders = {
        f"{loader}, {cache}": folder_loaders(
            tree,
            image_size=SIDE,
            global_batch=MODEL_BATCH,
            eval_batch=MODEL_BATCH,
            workers=len(CORES),
            loader=loader,
            cache=cache,
            device=DEVICE,
        ).train
        for loader, cache in (("torchvision", "off"), ("dali", "off"), ("dali", "gpu" if CUDA else "ram"))
    }
    ratios: dict[str, list[float]] = {name: [] for name in loaders}
    seconds(iter(lambda: resident, None))  # the first steps allocate
    resident_times = []
    for turn in range(ROUNDS):
        alone = seconds(iter(lambda: resident, None))
        resident_times.append(alone)
        for name, loader in loaders.items():
            stream = loader.epoch(turn)
            ratios[name].append(seconds(stream) / alone)
            stream.close()
    for loader in loaders.values():
        loader.close()
    record["step_time_over_resident"] = {
        "model": f"vit_tiny_patch16_224, ib, {SIDE} pixels, {'bf16' if CUDA else 'float32'}",
        "batch": MODEL_BATCH,
        "threads": len(CORES),
        "load": load,
        "resident_ms": 1e3 * statistics.median(resident_times),
        **{name: {"median": statistics.median(values), "rounds": values} for name, values in ratios.items()},
    }
    for name, values in ratios.items():
        print(f"step with {name}: {statistics.median(values):.3f} x resident")
