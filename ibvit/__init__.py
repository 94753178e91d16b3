"""ibvit: vision transformers whose attention is a measured, priced communication channel.

A variational information bottleneck sits on every attention head's write to the residual stream; one number, β, moves
the model from independent patches to full attention (Murphy 2026, arXiv 2602.04784).

    >>> import timm, torch, ibvit
    >>> model = timm.create_model("ibvit_tiny_patch16_224", num_classes=100)
    >>> logits, kl = model(torch.randn(2, 3, 224, 224), return_kl=True)
    >>> logits.shape, kl.shape  # kl in nats: image, block, head, patch
    (torch.Size([2, 100]), torch.Size([2, 12, 3, 196]))
"""

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
__version__ = "0.1.0"
