"""What identifies a data set, whatever the name of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Identity(NamedTuple):
    """What distinguishes data sets.

    Attributes:
        classes: by label.
        images: per split, "train" and "val".
        sha256: per split: of files (:func:`ibvit.data.files.fingerprint.fingerprint`), or of a definition.
    """

    classes: tuple[str, ...]
    images: dict[str, int]
    sha256: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """As a run's config.json and its checkpoints hold it."""
        return {"classes": list(self.classes), "images": self.images, "data_sha256": self.sha256}

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """What differs from a stored identity, in words; what an earlier edition did not store is not compared.

        Example:
            >>> now = Identity(("cat", "dog"), {"train": 9, "val": 4}, {"train": "a", "val": "b"})
            >>> now.differences({"classes": ["cat", "dog"], "images": {"train": 10, "val": 4}})
            ['train: 9 images now, 10 then']
        """
        differing = _classes(self.classes, stored["classes"]) if "classes" in stored else []
        images, digests = stored.get("images", {}), stored.get("data_sha256", {})
        for split in self.images:
            if split in images and images[split] != self.images[split]:
                differing.append(f"{split}: {self.images[split]} images now, {images[split]} then")
            elif split in digests and digests[split] != self.sha256[split]:
                differing.append(f"{split}: other files (names, sizes or times of change)")
        return differing


def _classes(now: Sequence[str], then: Sequence[str]) -> list[str]:
    if list(now) == list(then):
        return []
    new, gone = sorted(set(now) - set(then)), sorted(set(then) - set(now))
    if not new and not gone:
        return ["classes: in another order"]
    return [f"classes: {_some(new)} now, {_some(gone)} then"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "fewer"
