"""Pictures in a GPU's memory."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ibvit.data.cache.pack import Pack, decoded_bytes, offsets
from ibvit.data.files.images import BadImageError
from ibvit.data.files.tree import ImageFolder, Stored
from ibvit.data.plans.augment import Ints


class DeviceArena:
    """Pictures on a GPU, in one allocation; pixels are views of it.

    Args:
        source: where a picture comes from when it is first asked for.
        sizes: int64 ``[n, 2]`` height and width.
    """

    stored: ClassVar[Stored] = "device"

    def __init__(self, source: ImageFolder | Pack, sizes: Ints, device: torch.device) -> None:
        self._source, self._sizes, self.labels, self.bad = source, sizes, source.labels, source.bad
        self._offsets = offsets(sizes)
        self._decoded = np.zeros(len(sizes), dtype=bool)
        self._arena = torch.empty(decoded_bytes(sizes), dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self._source)

    def path(self, index: int) -> str:
        return self._source.path(index)

    def pixels(self, index: int) -> Tensor:
        """uint8 ``[height, width, 3]`` on the device; raises :class:`~ibvit.data.files.images.BadImageError`."""
        height, width = self._sizes[index].tolist()
        stored = self._arena[self._offsets[index] : self._offsets[index + 1]].view(height, width, 3)
        if not self._decoded[index]:
            decoded = self._source.pixels(index)
            if decoded.shape != tuple(stored.shape):
                raise BadImageError("changed since it was measured, or broken then")
            with torch.cuda.stream(self._stream):  # a stream of its own: the copy waits for its end, not for training's
                stored.copy_(torch.from_numpy(np.array(decoded)))  # of its own: a pack may be read-only
            self._decoded[index] = True
        return stored
