"""What was done with the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

BLOCK = re.compile(r"blocks\.(\d{1,6})\.", re.ASCII)


class Loaded(NamedTuple):
    """What was done with every tensor of a checkpoint; ``str()`` gives it in one line.

    Attributes:
        source: where the weights come from.
        taken: tensors of the model that are the source's, unchanged or changed.
        changed: what was resampled or renamed, and how.
        left_out: tensors of the source that the model does not have.
        new: tensors of the model that the source does not have; they keep their initialisation.
    """

    source: str
    taken: tuple[str, ...]
    changed: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} of {len(self.taken) + len(self.new)} tensors from {self.source}"]
        parts += [f"changed: {', '.join(self.changed)}"] if self.changed else []
        parts += [f"left out: {_summary(self.left_out)}"] if self.left_out else []
        parts += [f"new: {_summary(self.new)}"] if self.new else []
        return "; ".join(parts)


def _summary(names: Iterable[str]) -> str:
    """Names, those of all blocks taken together."""
    return ", ".join(dict.fromkeys(BLOCK.sub("blocks.*.", name) for name in names))
