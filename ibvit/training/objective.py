"""What training minimises: cross-entropy + β·K (paper, Eq. 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ibvit.models import VisionTransformer
from ibvit.models.kl import Reduction, penalty


class Loss(NamedTuple):
    """Means over the images of a batch."""

    total: Tensor  # cross-entropy + β·K, the only one with a gradient
    ce: Tensor  # nats
    kl: Tensor  # K, a scalar: the model's kl [B, L, H, N] after the reduction, nats; 0 without bottlenecks


class Objective(nn.Module):
    """A model with its loss, so that one compiled graph, or one DDP forward pass, holds both.

    Args:
        reduction: of the KL, see :func:`ibvit.models.kl.penalty`.
        amp: autocast the model to this dtype.

    Example:
        >>> from ibvit import create_model, ops
        >>> model = create_model("vit_tiny_patch16_224", attention="ib", num_classes=10, depth=1)
        >>> images, labels = torch.randn(2, 3, 224, 224), torch.tensor([3, 7])
        >>> loss = Objective(model, "mean")(images, labels, ops.noise_key(0), torch.tensor(0.5))
        >>> torch.allclose(loss.total, loss.ce + 0.5 * loss.kl)
        True
    """

    def __init__(self, model: VisionTransformer, reduction: Reduction, amp: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.reduction, self.amp = model, reduction, amp

    def forward(self, images: Tensor, labels: Tensor, key: Tensor, beta: Tensor) -> Loss:
        """Loss of images ``[B, 3, height, width]`` with labels ``[B]``; β as a tensor: a graph must not keep it."""
        with torch.autocast(images.device.type, self.amp, enabled=self.amp is not None):
            if self.model.has_kl:
                logits, kl = self.model(images, return_kl=True, key=key)
                reduced_kl = penalty(kl, self.reduction)
            else:
                logits = self.model(images)
                reduced_kl = torch.zeros_like(beta)
        ce = F.cross_entropy(logits.float(), labels)
        return Loss(ce + beta * reduced_kl, ce.detach(), reduced_kl.detach())
