"""Counter-based Gaussian noise: ε is a pure function of where it is used.

Every ε that a bottleneck adds is addressed by (seed, step, block, head, sample, token, latent). The address goes
through Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and Box–Muller, so the
reference, the Triton kernels and their recomputing backward, any world size and any micro-batching draw the same ε.

Layout. A *noise key* is an int64 tensor ``[seed, step, first_sample]`` that lives on the model's device: a replayed
CUDA graph reads the new values. For (block, head, sample b, token, latent j)::

    key      k0 = seed mod 2³²        k1 = ⌊seed / 2³²⌋ mod 2³²
    counter  c0 = block·2²⁰ + head·2⁸ + ⌊j / 4⌋     c1 = token
             c2 = (first_sample + b) mod 2³²         c3 = step mod 2³²

The four output words w0…w3 give the normals of latents 4q … 4q+3. With u = w·2⁻³² in float32::

    R = √(−2 ln(u0 + 2⁻³³))    ε[4q] = R cos(2π u1)    ε[4q+1] = R sin(2π u1)

and likewise (w2, w3) for 4q+2, 4q+3. Hence block, head < 4096, latents ≤ 1024, |ε| ≤ 6.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ibvit import arguments

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
MAX_BLOCKS = MAX_HEADS = 1 << 12
MAX_LATENTS = 1 << 10
EVALUATION_STEP = 1 << 31
"""Noise steps from here on belong to evaluation; no training step reaches them."""


def noise_key(seed: int, step: int = 0, first_sample: int = 0, device: torch.device | str | None = None) -> Tensor:
    """The key of one forward pass: int64 ``[3]`` = (seed, step, global index of the batch's first sample).

    Raises:
        TypeError, ValueError: not a whole number of 64 bits, a step or sample below 0, or no such device here.

    Example:
        >>> noise_key(7, step=3)
        tensor([7, 3, 0])
    """
    words = [
        arguments.whole("seed", seed, *arguments.INT64),
        arguments.whole("step", step, 0),
        arguments.whole("first_sample", first_sample, 0),
    ]
    try:
        return torch.tensor(words, dtype=torch.int64, device=device)
    except Exception as error:  # torch has many for the ways not to have a device
        raise ValueError(f"device: expected a device that torch has here, got {arguments.shown(device)}") from error


def check_key(key: Tensor, device: torch.device) -> None:
    """Refuse what is no noise key on this device.

    Raises:
        TypeError, ValueError: names ``key``.
    """
    arguments.tensor("key", key, (torch.int64,))
    if key.shape != (3,) or key.device != device:
        raise ValueError(
            f"key: expected [3] = (seed, step, first sample) on {device}, got {list(key.shape)} on {key.device}"
        )


def evaluation_key(
    seed: int, repeat: int = 0, first_sample: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """The key of a batch in pass ``repeat`` over a validation set: equal for whoever passes over it again.

    Example:
        >>> evaluation_key(7, repeat=1, first_sample=64).tolist() == [7, EVALUATION_STEP + 1, 64]
        True
    """
    return noise_key(
        seed, EVALUATION_STEP + arguments.whole("repeat", repeat, 0, EVALUATION_STEP - 1), first_sample, device
    )


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words (held in int64) for a 128-bit counter and a 64-bit key.

    Args:
        counter: four int64 tensors with values in [0, 2³²), broadcast against each other.
        key: two values in [0, 2³²), tensors or ints.

    Example (known answer of Random123's ``kat_vectors``):
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [f"{int(w):08x}" for w in philox4x32([zero] * 4, [0, 0])]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    schedule = [_round_keys(word, weyl, c0.device) for word, weyl in zip(key, _WEYL, strict=True)]
    for k0, k1 in zip(*schedule, strict=True):
        # A product of 32-bit words wraps in int64. Its high half is masked, which undoes the sign extension; its low
        # half is only ever combined with xor before it is masked in turn, so it may carry the high bits along.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) ^ (c1 ^ k0)).bitwise_and_(_WORD), product1
        c2, c3 = ((product0 >> 32) ^ (c3 ^ k1)).bitwise_and_(_WORD), product0
    return c0, c1 & _WORD, c2, c3 & _WORD


def _round_keys(word: Tensor | int, weyl: int, device: torch.device) -> tuple[Tensor, ...]:
    """Key word of each round."""
    return ((word + weyl * torch.arange(_ROUNDS, device=device)) & _WORD).unbind()


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    u = radius_word.to(torch.float32) * 2.0**-32 + 2.0**-33
    angle = angle_word.to(torch.float32) * 2.0**-32 * (2 * math.pi)
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * torch.cos(angle), radius * torch.sin(angle)


def standard_normal(key: Tensor, block: int, batch: int, heads: int, tokens: int, latents: int) -> Tensor:
    """ε of one block's heads, float32 ``[batch, heads, tokens, latents]`` on the key's device.

    Args:
        key: int64 ``[3]``, see :func:`noise_key`.
        block: index of the transformer block.

    Raises:
        ValueError: a size is beyond what the counter addresses.

    Example:
        >>> eps = standard_normal(noise_key(0), block=0, batch=2, heads=3, tokens=4, latents=8)
        >>> later = standard_normal(noise_key(0, first_sample=1), block=0, batch=1, heads=3, tokens=4, latents=8)
        >>> torch.equal(eps[1:], later)
        True
    """
    limits = (("block", block, MAX_BLOCKS - 1), ("heads", heads, MAX_HEADS), ("latents", latents, MAX_LATENTS))
    for name, value, limit in limits:
        if not 0 <= value <= limit:
            raise ValueError(f"{name}: expected a value in [0, {limit}], got {value}")

    def index(size: int, axis: int) -> Tensor:
        shape = [1, 1, 1, 1]
        shape[axis] = size
        return torch.arange(size, dtype=torch.int64, device=key.device).view(shape)

    # Heads come first in memory, as in the reference's products; images come first in the result.
    seed, step, first_sample = key.unbind()
    quads = -(-latents // 4)
    c0 = (block << 20) + (index(heads, 0) << 8) + index(quads, 3)
    sample = (first_sample + index(batch, 1)) & _WORD
    words = philox4x32((c0, index(tokens, 2), sample, step & _WORD), (seed & _WORD, (seed >> 32) & _WORD))
    normals = _box_muller(words[0], words[1]) + _box_muller(words[2], words[3])
    return torch.stack(normals, dim=-1).flatten(-2)[..., :latents].transpose(0, 1)
