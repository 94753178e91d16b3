"""Augmentation plans carried out with DALI.

On a GPU the whole plan is one DALI graph (:mod:`ibvit.data.loaders.dali_graph`), from the encoded file or from decoded
pictures wherever they are. Without a GPU, DALI decodes the windows and torchvision does the rest, in threads:
DALI's CPU kernels for resizing and RandAugment are slower than those, and the pixels are the same.

A graph is run as a function of its inputs, one step at a time, by a thread of its own that works ahead of training.
It has no state, so a step that DALI cannot decode is simply run again in a new graph, with files that PIL has decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline
from torch import Tensor

from ibvit.data.files.bad_files import BadFile, nearest_readable
from ibvit.data.files.jpeg import plain_jpeg_size
from ibvit.data.files.tree import ImageFolder, Source
from ibvit.data.loaders.dali_graph import arguments, augment_graph, decode_graph, window_arguments
from ibvit.data.loaders.prefetch import prefetched
from ibvit.data.loaders.torchvision import cut, finish
from ibvit.data.plans.augment import Ints, normalised
from ibvit.data.plans.schedule import Schedule
from ibvit.data.types import Batch

logger = logging.getLogger(__name__)
_AHEAD = 2  # steps made before they are asked for
_PARTS = 4  # of a step's images for each worker: few, as a cached picture takes less time than handing it to a thread


def readable(folder: ImageFolder, index: int, use_pil: bool = False) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A file that DALI can be trusted with, and its (height, width): itself if it is a plain JPEG, else PIL's reading.

    Args:
        use_pil: let PIL read plain JPEGs too.

    Raises:
        BadImageError: PIL cannot read it.
    """
    data = folder.encoded(index)
    size = None if use_pil else plain_jpeg_size(data)
    if size is None:
        image = folder.decoded(index, data)
        size = image.height, image.width
        data = b"P6 %d %d 255\n" % image.size + image.tobytes()
    return np.frombuffer(data, dtype=np.uint8), size


class _Graph:
    """A DALI pipeline that is built again when a run has failed."""

    def __init__(self, build: Callable[[], Pipeline]) -> None:
        self._build, self._lock = build, Lock()
        self._pipeline: Pipeline | None = None

    def __call__(self, **inputs: Any) -> Any:
        with self._lock:
            if self._pipeline is None:
                self._pipeline = self._build()
            try:
                return self._pipeline.run(**inputs)[0]
            except RuntimeError:
                self._pipeline = None
                raise

    def drop(self) -> None:
        with self._lock:
            self._pipeline = None


class _Loaded(NamedTuple):
    position: int  # of the image that is shown, in the data set
    content: Any  # its file or its pixels
    size: tuple[int, int]  # height, width
    bad: list[BadFile]  # passed over on the way to it


class DaliLoader:
    """A :class:`ibvit.data.types.Loader` by DALI.

    Args:
        source: files, or decoded pictures (in memory, memory-mapped, or on the device).
        workers: threads.
        device: where batches go; a CUDA device also does the work.
    """

    def __init__(self, source: Source, schedule: Schedule, workers: int, device: torch.device) -> None:
        self._source, self._schedule, self._device = source, schedule, device
        self._labels = torch.tensor(source.labels)
        self._pool = ThreadPoolExecutor(max(1, workers), "ibvit-data")
        self._parts = _PARTS * max(1, workers)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        settings = {"batch_size": schedule.batch, "num_threads": max(1, workers)}
        if self._stream is None:
            self._graph = _Graph(partial(decode_graph, device_id=None, **settings))
        else:
            settings["device_id"] = self._stream.device_index
            side, ops = schedule.augmentation.image_size, schedule.num_ops
            self._graph = _Graph(partial(augment_graph, side, ops, "gpu", source.stored, **settings))

    def __len__(self) -> int:
        return len(self._schedule)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch, bad in prefetched(self._steps(epoch, start), _AHEAD):
            self._source.bad.replace(bad)
            if self._stream is not None:
                for tensor in (batch.images, batch.labels, batch.index):
                    tensor.record_stream(torch.cuda.current_stream(self._device))
            yield batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._graph.drop()

    def _steps(self, epoch: int, start: int) -> Iterator[tuple[Batch, list[BadFile]]]:
        """Made in the prefetching thread; the next step's files are read meanwhile."""
        next_futures = self._submit(epoch, start)
        for step in range(start, len(self)):
            futures, next_futures = next_futures, self._submit(epoch, step + 1)
            rows = self._schedule.rows(epoch, step)
            loaded = [item for future in futures for item in future.result()]
            try:
                images = self._render(epoch, rows, loaded)
            except RuntimeError as error:
                if self._source.stored != "encoded":
                    raise
                logger.warning(
                    "DALI failed on a batch, PIL decodes it instead: %s", str(error).strip().splitlines()[-1]
                )
                loaded = self._load(rows, use_pil=True)
                images = self._render(epoch, rows, loaded)
            index = torch.tensor([item.position for item in loaded])
            yield self._batch(images, index, torch.tensor(rows)), [bad for item in loaded for bad in item.bad]

    def _submit(self, epoch: int, step: int) -> list[Future[list[_Loaded]]]:
        if step >= len(self):
            return []
        parts = np.array_split(self._schedule.rows(epoch, step), self._parts)
        return [self._pool.submit(self._load, part) for part in parts]

    def _load(self, rows: Ints, use_pil: bool = False) -> list[_Loaded]:
        def load(index: int) -> tuple[Any, tuple[int, int]]:
            if isinstance(self._source, ImageFolder):
                return readable(self._source, index, use_pil)
            pixels = self._source.pixels(index)
            return pixels, (pixels.shape[0], pixels.shape[1])

        loaded = []
        for row in rows.tolist():
            index, (content, size), bad = nearest_readable(load, self._source.path, row, len(self._source))
            loaded.append(_Loaded(index, content, size, bad))
        return loaded

    def _render(self, epoch: int, rows: Ints, loaded: Sequence[_Loaded]) -> Tensor:
        """uint8 ``[b, side, side, 3]``, on the device that does the work."""
        plan = self._schedule.plan(epoch, rows, np.array([item.size for item in loaded]))
        side = self._schedule.augmentation.image_size
        contents = [item.content for item in loaded]
        if self._stream is not None:
            with torch.cuda.stream(self._stream):  # DALI takes pictures on the device from this thread's stream
                output = self._graph(images=contents, **arguments(plan, side))
                return torch.from_dlpack(output.as_tensor())
        if self._source.stored == "encoded":
            output = self._graph(images=contents, **window_arguments(plan))
            windows = [output.at(row) for row in range(len(rows))]
        else:
            windows = [cut(pixels, window) for pixels, window in zip(contents, plan.window, strict=True)]
        images = np.empty((len(rows), side, side, 3), dtype=np.uint8)

        def finish_row(row: int) -> None:
            images[row] = finish(windows[row], plan, row, side)

        list(self._pool.map(finish_row, range(len(rows))))
        return torch.from_numpy(images)

    def _batch(self, images: Tensor, index: Tensor, rows: Tensor) -> Batch:
        labels = self._labels[index]
        if self._stream is None:
            return Batch(normalised(images), labels, index, rows)
        with torch.cuda.stream(self._stream):
            batch = Batch(normalised(images), labels.to(self._device), index.to(self._device), rows)
        self._stream.synchronize()  # before DALI takes the memory of ``images`` back
        return batch
