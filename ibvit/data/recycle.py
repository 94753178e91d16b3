"""CPU memory for batches, used again as soon as no tensor refers to it.

The system gives a large block back when it is freed, and clears it page by page when it is asked for again: for a batch
of float images that costs more than filling it.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import defaultdict
from math import prod

import torch
from torch import Tensor

_free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)  # by size in bytes


def recycled(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised float32 tensor.

    Example:
        >>> first = recycled((2, 3)).fill_(7)
        >>> view = first[1:]
        >>> del first
        >>> _ = recycled((2, 3)).fill_(0)  # other memory: ``view`` still needs the first
        >>> view
        tensor([[7., 7., 7.]])
    """
    size = 4 * prod(shape)
    if not size:
        return torch.empty(shape)
    try:
        memory = _free[size].pop()
    except IndexError:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    lease = (ctypes.c_char * size).from_buffer(memory)  # lives as long as the tensor's storage
    weakref.finalize(lease, _free[size].append, memory)
    return torch.frombuffer(lease, dtype=torch.float32).view(shape)
