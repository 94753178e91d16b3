"""What happens to every image, drawn before any pixel is touched: crops, flips and RandAugment as numbers.

The distributions are torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip`` and ``RandAugment`` (2 operations,
magnitude 9 of 31 bins). The random numbers are not torchvision's: every draw is a pure function of (seed, epoch, sample
index), so any loader resumes at any step without state, and torchvision and DALI carry out *the same* plan.

Layout. Philox4x32-10 (:func:`ibvit.ops.noise.philox4x32`) with::

    key      k0 = seed mod 2³²     k1 = (⌊seed / 2³²⌋ mod 2³²) xor "data"
    counter  c0 = quad             c1 = purpose (0 augmentation, 1 order)     c2 = sample     c3 = epoch

Words 0…19 are the ten attempts (area, aspect) of the crop, 20 and 21 its position, 22 the flip, 23…26 (operation,
sign) of the two RandAugment operations. A uniform is word·2⁻³², an integer below n is ⌊n·word·2⁻³²⌋.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ibvit.ops.noise import philox4x32

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, of values in [0, 1]
STD = (0.229, 0.224, 0.225)

OPERATIONS = (  # torchvision's order
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_SIGNED = slice(OPERATIONS.index("ShearX"), OPERATIONS.index("Posterize"))
_LAST_BIN = 30  # magnitudes are bins 0 … 30

_WORD = 0xFFFFFFFF
_DATA = int.from_bytes(b"data", "big")
_AUGMENTATION, _ORDER = 0, 1
_ATTEMPTS = 10  # of RandomResizedCrop, before it falls back to the central crop
_QUADS = 7
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)

Ints = NDArray[np.int64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Augmentation:
    """The augmentation's settings; the defaults are the paper's.

    Example:
        >>> Augmentation(224).resize_size, Augmentation(64).resize_size
        (256, 73)
    """

    image_size: int  # side of the square that the model sees, pixels
    num_ops: int = 2  # RandAugment operations for each training image, 0 to 2
    magnitude: int = 9  # RandAugment's bin, 0 to 30

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("image_size", self.image_size, 1, 1 << 14),
            ("num_ops", self.num_ops, 0, 2),
            ("magnitude", self.magnitude, 0, _LAST_BIN),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name}: expected a value in [{low}, {high}], got {value}")

    @property
    def resize_size(self) -> int:
        """Shorter side that validation images are resized to before the central crop."""
        return round(self.image_size * 256 / 224)


class AugmentationPlan(NamedTuple):
    """For each of b images: cut ``window``, resize to ``size``, cut the square at ``offset``, mirror, apply ``ops``."""

    window: Ints  # [b, 4] top, left, height, width in the stored image
    size: Ints  # [b, 2] height, width
    offset: Ints  # [b, 2] top, left
    flip: Bools  # [b]
    ops: Ints  # [b, num_ops], index into OPERATIONS
    magnitude: Floats  # [b, num_ops], in the operation's own unit, signed


def _words(seed: int, epoch: int, index: Ints, purpose: int, quads: int) -> Ints:
    """32-bit words, ``[b, 4·quads]``."""
    counter = (
        torch.arange(quads).view(1, quads),
        torch.tensor(purpose),
        torch.from_numpy(index).view(-1, 1) & _WORD,
        torch.tensor(epoch & _WORD),
    )
    words = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD ^ _DATA))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1).numpy()


def shuffled(seed: int, epoch: int, count: int) -> Ints:
    """The order of an epoch: a permutation of ``count`` sample indices.

    Example:
        >>> shuffled(seed=0, epoch=1, count=5).tolist()
        [4, 2, 0, 3, 1]
    """
    words = _words(seed, epoch, np.arange(count), _ORDER, quads=1)
    return np.argsort(words[:, 0] << 31 | words[:, 1] >> 1, kind="stable")


def _windows(uniform: Floats, sizes: Ints) -> Ints:
    """RandomResizedCrop's window from 22 uniforms per image: the first attempt that fits, else a central crop."""
    height, width = sizes[:, :1], sizes[:, 1:]
    attempts = uniform[:, : 2 * _ATTEMPTS].reshape(-1, _ATTEMPTS, 2)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * attempts[:, :, 0])
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = np.exp(log_low + (log_high - log_low) * attempts[:, :, 1])
    tall = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    wide = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    first = fits.argmax(axis=1)[:, None]
    tall, wide = (np.take_along_axis(x, first, axis=1) for x in (tall, wide))

    free = np.concatenate([height - tall, width - wide], axis=1)
    corner = np.floor(uniform[:, 2 * _ATTEMPTS : 2 * _ATTEMPTS + 2] * (free + 1)).astype(np.int64)
    window = np.concatenate([corner, tall, wide], axis=1)

    central_height = np.minimum(height, np.rint(width / _ASPECT[0]).astype(np.int64))
    central_width = np.minimum(width, np.rint(height * _ASPECT[1]).astype(np.int64))
    central = np.concatenate(
        [(height - central_height) // 2, (width - central_width) // 2, central_height, central_width], axis=1
    )
    return np.where(fits.any(axis=1, keepdims=True), window, central)


def magnitudes(augmentation: Augmentation) -> Floats:
    """Each operation's unsigned magnitude, in its own unit: slope, pixels, degrees, factor − 1, bits, threshold.

    Example:
        >>> dict(zip(OPERATIONS, magnitudes(Augmentation(224)).round(3).tolist()))["Posterize"]
        7.0
    """
    strength = augmentation.magnitude / _LAST_BIN
    pixels = float(int(150 / 331 * augmentation.image_size * strength))
    factor = 0.9 * strength
    geometric = [0.3 * strength, 0.3 * strength, pixels, pixels, 30 * strength]  # shears, translations, Rotate
    bits, threshold = round(8 - 4 * strength), 255 * (1 - strength)
    return np.array([0, *geometric, factor, factor, factor, factor, bits, threshold, 0, 0])


def train_plan(augmentation: Augmentation, seed: int, epoch: int, index: Ints, sizes: Ints) -> AugmentationPlan:
    """The augmentation of training images.

    Args:
        index: ``[b]`` position of each sample in the data set; with seed and epoch it decides every draw.
        sizes: ``[b, 2]`` height and width of the stored images, pixels.

    Example:
        >>> plan = train_plan(Augmentation(224), seed=0, epoch=3, index=np.array([7]), sizes=np.array([[375, 500]]))
        >>> plan.window.tolist(), plan.flip.tolist(), [OPERATIONS[op] for op in plan.ops[0]]
        ([[80, 262, 284, 216]], [False], ['TranslateX', 'ShearY'])
    """
    count, ops = len(index), augmentation.num_ops
    uniform = _words(seed, epoch, index, _AUGMENTATION, _QUADS) * 2.0**-32
    op = np.floor(uniform[:, [23, 25]] * len(OPERATIONS)).astype(np.int64)[:, :ops]
    signs = np.ones((2, len(OPERATIONS)))
    signs[1, _SIGNED] = -1
    negative = (uniform[:, [24, 26]] < 0.5).astype(np.int64)[:, :ops]
    return AugmentationPlan(
        window=_windows(uniform, sizes),
        size=np.full((count, 2), augmentation.image_size),
        offset=np.zeros((count, 2), dtype=np.int64),
        flip=uniform[:, 22] < 0.5,
        ops=op,
        magnitude=magnitudes(augmentation)[op] * signs[negative, op],
    )


def val_plan(augmentation: Augmentation, sizes: Ints) -> AugmentationPlan:
    """Validation: the shorter side resized to ``augmentation.resize_size``, then the central square.

    Example:
        >>> plan = val_plan(Augmentation(224), sizes=np.array([[375, 500]]))
        >>> plan.size.tolist(), plan.offset.tolist()
        ([[256, 341]], [[16, 58]])
    """
    count = len(sizes)
    shorter = sizes.min(axis=1, keepdims=True)
    size = augmentation.resize_size * sizes // shorter
    return AugmentationPlan(
        window=np.concatenate([np.zeros_like(sizes), sizes], axis=1),
        size=size,
        offset=np.rint((size - augmentation.image_size) / 2).astype(np.int64),
        flip=np.zeros(count, dtype=bool),
        ops=np.zeros((count, 0), dtype=np.int64),
        magnitude=np.zeros((count, 0)),
    )


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 ``[b, height, width, 3]`` → float32 ``[b, 3, height, width]`` with ImageNet's mean and deviation.

    Example:
        >>> normalised(torch.full((1, 2, 2, 3), 128, dtype=torch.uint8))[0, :, 0, 0]
        tensor([0.0741, 0.2052, 0.4265])
    """
    scale = images.new_tensor([1 / (255 * s) for s in STD], dtype=torch.float32).view(3, 1, 1)
    shift = images.new_tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], dtype=torch.float32).view(3, 1, 1)
    out = torch.empty((images.shape[0], 3, *images.shape[1:3]), device=images.device)
    return out.copy_(images.permute(0, 3, 1, 2)).mul_(scale).add_(shift)
