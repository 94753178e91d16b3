"""Operations: the noise, the reference that specifies the bottleneck, and the op that chooses an implementation."""

from ibvit.errors import UnavailableError
from ibvit.ops.api import Impl, bottleneck_write
from ibvit.ops.noise import evaluation_key, noise_key
from ibvit.ops.reference import BottleneckParams, BottleneckWrite, Posterior

__all__ = [
    "BottleneckParams",
    "BottleneckWrite",
    "Impl",
    "Posterior",
    "UnavailableError",
    "bottleneck_write",
    "evaluation_key",
    "noise_key",
]
