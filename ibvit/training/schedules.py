"""Learning rate and β as pure functions of the optimiser step (counted from 0)."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, peak: float, floor: float) -> float:
    """Linear warm-up to ``peak``, then a cosine to ``floor`` at the last step (paper, App. A).

    Example:
        >>> [learning_rate(s, total_steps=5, warmup_steps=2, peak=1.0, floor=0.0) for s in (0, 1, 4)]
        [0.5, 1.0, 0.0]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / span)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def beta(step: int, *, warmup_steps: int, target: float) -> float:
    """Linear ramp from 0 over ``warmup_steps``, then ``target``; no ramp gives the paper's fixed β.

    Example:
        >>> [beta(s, warmup_steps=4, target=1.0) for s in (0, 2, 4, 9)]
        [0.0, 0.5, 1.0, 1.0]
    """
    return target * min(1.0, step / warmup_steps) if warmup_steps else target
