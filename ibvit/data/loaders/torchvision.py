"""Augmentation plans carried out by torchvision's functional operations, in worker processes.

Windows are resized as uint8 tensors (torchvision's antialiased bicubic: on photographs a few hundredths of a level from
PIL's in the mean, and three times as fast); RandAugment's operations are torchvision's on PIL images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ibvit.data.files.bad_files import BadFile, NoImageError, nearest_readable
from ibvit.data.files.images import Pixels
from ibvit.data.files.tree import Source
from ibvit.data.plans.augment import OPERATIONS, AugmentationPlan, Ints, normalised
from ibvit.data.plans.schedule import Schedule
from ibvit.data.types import Batch

_CHUNK = 64  # images decoded before their plan is drawn: enough to share its cost, few enough to hold


def sharpened(image: Pixels, factor: float) -> Pixels:
    """What torchvision's ``adjust_sharpness`` does to a PIL image, at half its cost: a third of RandAugment's time.

    The image less its outermost pixels is blended with a smooth one, kernel (1 1 1, 1 5 1, 1 1 1) / 13, rounded.
    """
    wide = image.astype(np.uint16)
    columns = wide[:-2] + wide[1:-1] + wide[2:]
    inside = wide[1:-1, 1:-1]
    smooth = (columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * inside + 6) // 13
    base = smooth.astype(np.float32)
    result = image.copy()
    result[1:-1, 1:-1] = (base + np.float32(factor) * (inside - base)).clip(0, 255)
    return result


def operate(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """One RandAugment operation of torchvision; its magnitude: :func:`ibvit.data.plans.augment.magnitudes`.

    Example:
        >>> operate(Image.new("RGB", (4, 4), (100, 0, 0)), "Brightness", 0.5).getpixel((0, 0))
        (150, 0, 0)
    """
    match name:
        case "ShearX" | "ShearY":
            degrees = float(np.degrees(np.arctan(magnitude)))
            shear = [degrees, 0.0] if name == "ShearX" else [0.0, degrees]
            return F.affine(image, 0.0, [0, 0], 1.0, shear, InterpolationMode.NEAREST, center=[0, 0])
        case "TranslateX" | "TranslateY":
            shift = [int(magnitude), 0] if name == "TranslateX" else [0, int(magnitude)]
            return F.affine(image, 0.0, shift, 1.0, [0.0, 0.0], InterpolationMode.NEAREST)
        case "Rotate":
            return F.rotate(image, magnitude, InterpolationMode.NEAREST)
        case "Brightness":
            return F.adjust_brightness(image, 1 + magnitude)
        case "Color":
            return F.adjust_saturation(image, 1 + magnitude)
        case "Contrast":
            return F.adjust_contrast(image, 1 + magnitude)
        case "Sharpness":
            return Image.fromarray(sharpened(np.asarray(image), 1 + magnitude))
        case "Posterize":
            return F.posterize(image, int(magnitude))
        case "Solarize":
            return F.solarize(image, magnitude)
        case "AutoContrast":
            return F.autocontrast(image)
        case "Equalize":
            return F.equalize(image)
    return image


def cut(image: Pixels, window: Ints) -> Pixels:
    """The window (top, left, height, width) of a picture, as an array of its own."""
    top, left, height, width = window
    return np.array(image[top : top + height, left : left + width])


def finish(window: Pixels, plan: AugmentationPlan, row: int, side: int) -> Pixels:
    """What row ``row`` of a plan does to its window, once cut: uint8 ``[side, side, 3]``."""
    image = torch.from_numpy(window).permute(2, 0, 1)
    image = F.resize(image, plan.size[row].tolist(), InterpolationMode.BICUBIC, antialias=True)
    image = F.crop(image, *plan.offset[row].tolist(), side, side)
    if plan.flip[row]:
        image = F.horizontal_flip(image)
    array = image.permute(1, 2, 0).numpy()
    ops = [(OPERATIONS[op], float(size)) for op, size in zip(plan.ops[row], plan.magnitude[row], strict=True) if op]
    if not ops:
        return array
    picture = Image.fromarray(array)
    for name, magnitude in ops:
        picture = operate(picture, name, magnitude)
    return np.asarray(picture)


# A batch: pixels, positions of the images shown, positions of the images asked for, bad files.
_StepItem = tuple[Tensor, Ints, Ints, list[BadFile]]


class _Steps(Dataset[_StepItem | NoImageError]):
    """Item (epoch, step): a rank's whole batch, so that one worker makes one batch.

    A folder without readable images comes back as an error: one that is raised in a worker arrives as its traceback.
    """

    def __init__(self, source: Source, schedule: Schedule) -> None:
        self.source, self.schedule = source, schedule

    def __getitem__(self, epoch_and_step: tuple[int, int]) -> _StepItem | NoImageError:
        try:
            return self._load_step(*epoch_and_step)
        except NoImageError as error:
            return error

    def _load_step(self, epoch: int, step: int) -> _StepItem:
        rows = self.schedule.rows(epoch, step)
        side = self.schedule.augmentation.image_size
        images = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        index = np.empty_like(rows)
        bad: list[BadFile] = []
        for first in range(0, len(rows), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            pictures = []
            for position, row in enumerate(rows[chunk], first):
                index[position], picture, passed = nearest_readable(
                    self.source.pixels, self.source.path, int(row), len(self.source)
                )
                pictures.append(picture)
                bad += passed
            sizes = np.array([picture.shape[:2] for picture in pictures])
            plan = self.schedule.plan(epoch, rows[chunk], sizes)
            for row, picture in enumerate(pictures):
                images[first + row] = finish(cut(picture, plan.window[row]), plan, row, side)
        return torch.from_numpy(images), index, rows, bad


class _StepSampler(Sampler[tuple[int, int]]):
    """Steps ``start``, ``start + 1``, … of an epoch; set before each pass."""

    def __init__(self, steps: int) -> None:
        self.epoch, self.start, self.steps = 0, 0, steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, step) for step in range(self.start, self.steps))


class TorchvisionLoader:
    """A :class:`~ibvit.data.types.Loader` by PIL, torchvision and ``DataLoader`` workers.

    Args:
        workers: worker processes; 0 works in this one.
        device: where batches go.
    """

    def __init__(self, source: Source, schedule: Schedule, workers: int, device: torch.device) -> None:
        self._labels, self._bad = torch.tensor(source.labels), source.bad
        self._sampler = _StepSampler(len(schedule))
        self._device = device
        self._loader: DataLoader[_StepItem | NoImageError] | None = DataLoader(
            _Steps(source, schedule),
            batch_size=None,
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return self._sampler.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self._loader is None:
            raise RuntimeError("loader: expected an open loader, this one was closed")
        self._sampler.epoch, self._sampler.start = epoch, start
        for item in self._loader:
            if isinstance(item, NoImageError):
                raise item
            images, positions, rows, bad = item
            self._bad.replace(bad)
            index = torch.as_tensor(positions)
            labels = self._labels[index]
            yield Batch(
                normalised(images.to(self._device, non_blocking=True)),
                labels.to(self._device, non_blocking=True),
                index.to(self._device, non_blocking=True),
                torch.as_tensor(rows).clone(),  # without workers it is a view of the schedule's array
            )

    def close(self) -> None:
        self._loader = None
