"""Does a head respond to repetition? A patch is copied to other positions of its image (paper, Fig. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ibvit
from ibvit.analysis.extremes import carrying_latent
from ibvit.analysis.images import normalised_images, to_uint8
from ibvit.analysis.records import Records, RunIdentity
from ibvit.analysis.results import Result

COPIES = (4, 16, 64)


def draw_positions(patches: np.ndarray, copies: int, num_patches: int, rng: np.random.Generator) -> np.ndarray:
    """For each patch, `copies` different positions in the same image, never the patch's own: [images, copies].

    Raises:
        ValueError: there are fewer than `copies` other positions.
    """
    if not 0 < copies < num_patches:
        raise ValueError(f"copies: expected 1 to {num_patches - 1} for a grid of {num_patches} patches, got {copies}")
    others = rng.permuted(np.tile(np.arange(num_patches - 1), (len(patches), 1)), axis=1)[:, :copies]
    return others + (others >= patches[:, None])


def paste(images: Tensor, patches: Tensor, positions: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Copy patch `patches[b]` of image b to all of `positions[b]`.

    images [B, 3, height, width], patches [B], positions [B, copies], patch_size (height, width) in pixels.
    """
    batch, channels, height, width = images.shape
    tall, wide = patch_size
    rows, columns = height // tall, width // wide
    tiles = images.reshape(batch, channels, rows, tall, columns, wide).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(batch, rows * columns, channels, tall, wide).clone()
    picture = torch.arange(batch, device=images.device)
    tiles[picture[:, None], positions] = tiles[picture, patches][:, None]
    return tiles.reshape(batch, rows, columns, channels, tall, wide).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


@dataclass(frozen=True)
class CopyPaste(Result):
    """Response of some heads of one run to copies of a patch, observed at the patch itself.

    μ is the mean of the message along each head's strongest latent. A few images are saved as examples.
    """

    run: RunIdentity
    heads: list[str]
    latents: list[int]
    copies: np.ndarray  # [amounts], number of copies
    mu_0: np.ndarray  # [heads, images]
    mu_aug: np.ndarray  # [heads, amounts, images]
    patch: np.ndarray  # [images]
    index: np.ndarray  # [images], position in the validation set
    example_images: np.ndarray  # [examples, 1 + amounts, height, width, 3], uint8; the untouched image first
    example_places: np.ndarray  # [examples, amounts, rows, columns], bool: where the copies lie
    example_attention: np.ndarray  # [heads, examples, 1 + amounts, rows, columns]: the patch's attention

    @property
    def shift(self) -> np.ndarray:
        """μ_aug − μ_0, [heads, amounts, images]."""
        return self.mu_aug - self.mu_0[:, None]

    def effect(self) -> np.ndarray:
        """Mean shift over the standard deviation of μ_0, [heads, amounts]."""
        return self.shift.mean(axis=2) / self.mu_0.std(axis=1)[:, None]

    def columns(self) -> dict[str, Any]:
        heads, amounts, images = self.mu_aug.shape
        return {
            "head": np.repeat(self.heads, amounts),
            "copies": np.tile(self.copies, heads),
            "mean shift of mu": self.shift.mean(axis=2).ravel(),
            "standard error": (self.shift.std(axis=2, ddof=1) / np.sqrt(images)).ravel(),
            "share of images shifted the common way": self._agreement().ravel(),
            "mean shift over standard deviation of mu_0": self.effect().ravel(),
        }

    def _agreement(self) -> np.ndarray:
        way = np.sign(self.shift.mean(axis=2, keepdims=True))
        return (np.sign(self.shift) == way).mean(axis=2)


@torch.no_grad()
def copy_paste(
    records: Records,
    heads: Sequence[str],
    *,
    images: int = 1024,
    copies: Sequence[int] | None = None,
    examples: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> CopyPaste:
    """Run the probe with the run's model, for a random patch of each of `images` random validation images.

    Both passes of an image draw the same noise, so that a shift of μ comes from the copies alone.

    Args:
        copies: numbers of copies; by default those of 4, 16 and 64 for which the grid has room.

    Raises:
        ValueError: more copies than other patches.
    """
    rng = np.random.default_rng(seed)
    grid = records.grid
    num_patches = grid[0] * grid[1]
    amounts = [amount for amount in COPIES if amount < num_patches] if copies is None else list(copies)
    rows = np.sort(rng.choice(len(records.index), size=min(images, len(records.index)), replace=False))
    patches = rng.integers(num_patches, size=len(rows))
    positions = [draw_positions(patches, amount, num_patches, rng) for amount in amounts]

    model = ibvit.load(records.run)
    latents = [carrying_latent(records, head) for head in heads]
    hooks = [f"blocks.{head.split('.')[0]}.attn.hook_{kind}" for head in heads for kind in ("mu", "pattern")]
    mu = np.empty((len(heads), 1 + len(amounts), len(rows)), dtype=np.float32)
    attention = np.empty((len(heads), min(examples, len(rows)), 1 + len(amounts), *grid), dtype=np.float32)
    example_images: list[list[np.ndarray]] = []

    for start in range(0, len(rows), batch_size):
        part = slice(start, min(start + batch_size, len(rows)))
        base = normalised_images(records, rows[part])
        patch = torch.from_numpy(patches[part])
        example_rows = range(part.start, min(part.stop, attention.shape[1]))
        variants = [base] + [
            paste(base, patch, torch.from_numpy(position[part]), model.patch_size) for position in positions
        ]
        example_images += [[to_uint8(records, variant[k - part.start]) for variant in variants] for k in example_rows]
        for amount, variant in enumerate(variants):
            with ibvit.noise(model, seed=seed):
                _, cache = ibvit.run_with_cache(model, variant, names=list(dict.fromkeys(hooks)))
            for k, (head, latent) in enumerate(zip(heads, latents, strict=True)):
                block, index = records.block_and_head(head)
                picture = torch.arange(len(base))
                mu[k, amount, part] = cache[f"blocks.{block}.attn.hook_mu"][picture, index, patch, latent].float().cpu()
                pattern = cache[f"blocks.{block}.attn.hook_pattern"][picture, index, patch].float().cpu()
                for row in example_rows:
                    attention[k, row, amount] = pattern[row - part.start].reshape(grid)

    marked = np.zeros((attention.shape[1], len(amounts), num_patches), dtype=bool)
    for amount, position in enumerate(positions):
        np.put_along_axis(marked[:, amount], position[: len(marked)], True, axis=1)
    return CopyPaste(
        run=records.identity,
        heads=list(heads),
        latents=latents,
        copies=np.array(amounts),
        mu_0=mu[:, 0],
        mu_aug=mu[:, 1:],
        patch=patches,
        index=np.asarray(records.index[rows]),
        example_images=np.array(example_images),
        example_places=marked.reshape(*marked.shape[:2], *grid),
        example_attention=attention,
    )
