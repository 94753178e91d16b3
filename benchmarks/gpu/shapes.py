"""What the prepared run launches, as data: models, tiles, channels. gpu-prepare compiles the same."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ibvit_kernels.bottleneck.tiles import Shape, Tile

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Model(NamedTuple):
    """The bottlenecks of one block, and how many tokens they are checked on."""

    shape: Shape
    batch: int
    tokens: int


VIT_TINY = Shape(heads=3, width=64, columns=192, hidden=64, latent=32)
MODELS = {
    "vit_tiny": Model(VIT_TINY, 64, 196),
    "vit_small": Model(Shape(6, 64, 384, 64, 32), 8, 196),
    "vit_base": Model(Shape(12, 64, 768, 64, 32), 4, 196),
    "vit_large": Model(Shape(16, 64, 1024, 64, 32), 2, 196),
    "odd sizes": Model(Shape(5, 32, 200, 16, 8), 3, 37),
    "widest": Model(Shape(2, 128, 256, 128, 128), 2, 50),
}
CHECKED = (
    ("vit_tiny", "bf16"), ("vit_tiny", "fp16"), ("vit_tiny", "fp32"), ("vit_small", "bf16"), ("vit_base", "bf16"),
    ("vit_large", "bf16"), ("odd sizes", "bf16"), ("odd sizes", "fp32"), ("widest", "bf16"),
)  # fmt: skip
DIGITS = Shape(2, 32, 64, 16, 8)  # the small model of the part that resumes, float32
FORWARD_TILES = (Tile(128, 8, 2), Tile(128, 8, 1), Tile(64, 4, 1), Tile(64, 4, 2))  # the first is what is used
BACKWARD_TILES = (Tile(128, 8, 1), Tile(64, 4, 1))  # 64 rows: less staging, but posterior+merged spills
# dimensions, σ, spread of the means: little information, and much
CHANNELS = (
    (1, 1.0, 0.2),
    (2, 1.0, 0.2),
    (8, 1.0, 0.2),
    (32, 1.0, 0.2),
    (64, 1.0, 0.1),
    (2, 0.05, 1.0),
    (64, 0.05, 1.0),
)
FORMS = ("direct", "gemm", "screen")
FORM_DIMENSIONS = (1, 2, 8, 32, 64)
NMI_DIMENSIONS = 3


def timed(dry: bool) -> tuple[Shape, torch.dtype]:
    """The model whose layers are timed, and the type of its activations; the interpreter is slow, and has no bf16."""
    return (DIGITS, torch.float32) if dry else (VIT_TINY, torch.bfloat16)
