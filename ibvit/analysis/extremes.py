"""The patches on which a head spends most, by the sign of its message (paper, Figs. 4, 11 and 12)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ibvit.analysis.images import read_images
from ibvit.analysis.records import Records, RunIdentity, as_tensor
from ibvit.analysis.results import Result
from ibvit.models import kl as kl_accounting

TOP_SHARE = 0.001


@dataclass(frozen=True)
class Extremes(Result):
    """Patches sampled from the top share by KL of one head; negative messages first, then positive ones."""

    run: RunIdentity
    head: str
    latent: int  # the latent dimension that carries most, along which messages have a sign
    threshold: float  # nats: the patches sampled cost at least this much
    index: np.ndarray  # [patches], position of the image in the validation set
    patch: np.ndarray  # [patches], position in the image, row by row
    mu: np.ndarray  # [patches], mean of the message along `latent`
    kl: np.ndarray  # [patches], nats
    images: np.ndarray  # [patches, height, width, 3], uint8
    attention: np.ndarray  # [patches, rows, columns]: the patch's attention over the image, sums to one

    def columns(self) -> dict[str, Any]:
        return {"image": self.index, "patch": self.patch, "mu": self.mu, "kl, nats": self.kl}


def carrying_latent(records: Records, head: str) -> int:
    """The latent dimension of a head with the largest mean KL."""
    mu, logvar = records.latent(head)
    nats = kl_accounting.per_latent(as_tensor(mu), as_tensor(logvar))  # [images, patches, latents]
    return int(nats.mean(dim=(0, 1)).argmax())


def extremes(records: Records, head: str, *, count: int = 6, share: float = TOP_SHARE, seed: int = 0) -> Extremes:
    """Sample up to `count` patches of either sign from the top `share` of all validation patches by KL.

    On a small validation set the top share is widened to 4 · `count` patches, so that there is something to draw from.

    Raises:
        RecordsError: the head, or its attention maps, are not in the records.
    """
    block, position = records.block_and_head(head)
    kl = np.asarray(records.kl[:, block, position], dtype=np.float32)  # [images, patches]
    latent = carrying_latent(records, head)
    mu = np.asarray(records.latent(head)[0][:, :, latent], dtype=np.float32)
    attention = records.attention(head)

    top = min(kl.size, max(int(share * kl.size), 4 * count))
    order = np.argsort(-kl, axis=None, kind="stable")[:top]
    rng = np.random.default_rng(seed)
    indices: list[int] = []
    for sign in (-1, 1):
        candidates = order[np.sign(mu.ravel()[order]) == sign]
        sample = rng.choice(candidates, size=min(count, candidates.size), replace=False)
        indices += sorted(sample.tolist(), key=lambda index: -kl.ravel()[index])
    rows, patches = np.unravel_index(np.array(indices, dtype=np.int64), kl.shape)
    return Extremes(
        run=records.identity,
        head=head,
        latent=latent,
        threshold=float(kl.ravel()[order[-1]]),
        index=np.asarray(records.index[rows]),
        patch=patches,
        mu=mu[rows, patches],
        kl=kl[rows, patches],
        images=read_images(records, rows),
        attention=np.asarray(attention[rows, patches], dtype=np.float32).reshape(-1, *records.grid),
    )
