"""ibvit: vision transformers whose attention is a measured, priced communication channel.

A variational information bottleneck sits on every attention head's write to the residual stream; one number, β, moves
the model from independent patches to full attention (Murphy 2026, arXiv 2602.04784).

    >>> import timm, torch, ibvit
    >>> model = timm.create_model("ibvit_tiny_patch16_224", num_classes=100)
    >>> logits, kl = model(torch.randn(2, 3, 224, 224), return_kl=True)
    >>> logits.shape, kl.shape  # kl in nats: image, block, head, patch
    (torch.Size([2, 100]), torch.Size([2, 12, 3, 196]))

Names are imported when they are first used, so that the command line answers before torch is loaded. Importing ibvit
sets the environment variable CUBLAS_WORKSPACE_CONFIG unless it is set already: torch reads it once, at the first
product on a GPU, and reproducible training needs it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from ibvit.registration import register_with_timm

if TYPE_CHECKING:
    from ibvit import analysis as analysis
    from ibvit import config as config
    from ibvit import data as data
    from ibvit import figures as figures
    from ibvit import information as information
    from ibvit import models as models
    from ibvit import ops as ops
    from ibvit import training as training
    from ibvit.information import Estimate, mutual_information, nmi, nmi_matrix
    from ibvit.models import (
        VisionTransformer,
        create_model,
        load,
        noise,
        replace,
        run_with_cache,
        silence,
        use_mean,
    )

__all__ = [
    "Estimate",
    "VisionTransformer",
    "create_model",
    "load",
    "mutual_information",
    "nmi",
    "nmi_matrix",
    "noise",
    "replace",
    "run_with_cache",
    "silence",
    "use_mean",
]
__version__ = "0.2.0"

_MODULES = ("analysis", "config", "data", "figures", "information", "models", "ops", "training")
_INFORMATION = ("Estimate", "mutual_information", "nmi", "nmi_matrix")

if not TYPE_CHECKING:  # a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f"ibvit.{name}")
        if name not in __all__:
            raise AttributeError(f"module 'ibvit' has no attribute {name!r}")
        home = import_module("ibvit.information" if name in _INFORMATION else "ibvit.models")
        globals()[name] = value = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
register_with_timm()
