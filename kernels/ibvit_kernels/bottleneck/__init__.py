"""Sizes of one block's bottlenecks, whatever computes them. Needs neither Triton nor a GPU."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor


class Sizes(NamedTuple):
    """One block's sizes."""

    heads: int  # H
    width: int  # D
    columns: int  # C
    hidden: int  # h
    latent: int  # r

    @classmethod
    def of(cls, w1: Tensor, w3: Tensor, proj_weight: Tensor) -> Self:
        """Kernels are called for these sizes as numbers, so symbolic ones become numbers."""
        heads, width, hidden = w1.shape
        return cls(*(int(size) for size in (heads, width, proj_weight.shape[0], hidden, w3.shape[1])))
