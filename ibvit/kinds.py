"""The kinds of attention that a model can have, in the order of the spectrum, and what each can do."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

KindName = Literal["ib", "full", "none"]
EndName = Literal["none", "full"]  # the ends of the spectrum, in its order: kinds without a KL


class Kind(NamedTuple):
    """A kind of attention.

    Attributes:
        has_attention: whether patches exchange anything.
        has_kl: whether heads write through bottlenecks: then the model has a KL, latents and noise, and a run has a β.
        label: of a run in figures; None: its β.
        order: sort key along the spectrum; None: −β.
        nats: information per patch that figures assume; None: what was measured.
        palette: position in the palette, 0 to 1; None: by β.
    """

    has_attention: bool
    has_kl: bool
    label: str | None = None
    order: float | None = None
    nats: float | None = None
    palette: float | None = None


KINDS: dict[KindName, Kind] = {
    "none": Kind(False, False, label="no attention", order=-math.inf, nats=0.0, palette=0.0),
    "ib": Kind(True, True),
    "full": Kind(True, False, label="full attention", order=math.inf, nats=math.inf, palette=1.0),
}
ENDS = get_args(EndName)
