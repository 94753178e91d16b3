"""What the estimators return."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A quantity with what is known about its error.

    The truth lies within `bias_bound` (certain) plus a few `stderr` (statistical) of `value`.

    Example:
        >>> Estimate(math.log(2), 0.001, 0.0, 1000, "stratified", 0.1).bits
        1.0
    """

    value: float  # nats for a mutual information; a pure number for an NMI
    stderr: float  # standard error of the sampling; 0 where nothing was sampled
    bias_bound: float  # certified: dropped idle dimensions; and the resolution of a quadrature, estimated
    samples: int  # draws of x
    method: str  # "mc", "stratified", "quadrature"
    seconds: float  # wall-clock time

    @property
    def bits(self) -> float:
        """`value` in bits, for a value in nats."""
        return self.value / math.log(2)


class EstimateMatrix(NamedTuple):
    """NMI of many pairs of channels; every array is `[channels, others]`, entries as in `Estimate`."""

    value: np.ndarray
    stderr: np.ndarray
    bias_bound: np.ndarray
    samples: int  # draws of x, shared by all the pairs that were sampled
    method: str  # methods in use, joined by "+"
    seconds: float
