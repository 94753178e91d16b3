"""Validation: accuracy and information of a model, over repeated, seeded noise."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ibvit import ops
from ibvit.data.types import Loader
from ibvit.models import VisionTransformer, use_mean
from ibvit.models.kl import KLMeter, KLSummary, bits
from ibvit.training.distributed import Processes


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent, cross-entropy in nats, means over repeats; KL in nats (None without bottlenecks)."""

    top1: float
    top1_std: float  # over repeats; 0 for one
    top5: float
    ce: float
    images: int
    repeats: int
    kl: KLSummary | None

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON; information also in bits."""
        values = {name: value for name, value in asdict(self).items() if name != "kl"}
        if self.kl is not None:
            values |= self.kl._asdict() | {"bits_per_image": bits(self.kl.nats_per_image)}
        return values


@torch.no_grad()
def evaluate(
    model: VisionTransformer,
    loader: Loader,
    processes: Processes,
    *,
    repeats: int = 1,
    noise: Literal["sample", "mean"] = "sample",
    seed: int = 0,
    amp: torch.dtype | None = None,
) -> Evaluation:
    """Pass over a validation set ``repeats`` times, each with its own noise; the same call gives the same numbers.

    Args:
        noise: "sample" draws z as in training; "mean" sends μ (then one pass is enough).
        seed: seeds the noise together with the repeat and the image's position in the data set.
        amp: autocast to this dtype.
    """
    was_training = model.training
    model.eval()
    has_noise = model.has_kl and noise == "sample"
    passes = []
    meter = KLMeter()
    with torch.autocast(processes.device.type, amp, enabled=amp is not None):
        for repeat in range(repeats if has_noise else 1):
            if has_noise or not model.has_kl:
                passes.append(_one_pass(model, loader, processes, seed, repeat, meter))
            else:
                with use_mean(model):
                    passes.append(_one_pass(model, loader, processes, seed, repeat, meter))
    model.train(was_training)

    images = int(passes[0][3])
    if images == 0:
        raise ValueError("loader: expected at least one validation image, got none")
    kl = None
    if model.has_kl:
        meter.reduce(images * len(passes), processes.sum, processes.max)
        kl = meter.summary()
    top1 = [100 * single[0] / images for single in passes]
    return Evaluation(
        top1=statistics.fmean(top1),
        top1_std=statistics.stdev(top1) if len(top1) > 1 else 0.0,
        top5=statistics.fmean(100 * single[1] / images for single in passes),
        ce=statistics.fmean(single[2] / images for single in passes),
        images=images,
        repeats=len(passes),
        kl=kl,
    )


def _one_pass(
    model: VisionTransformer, loader: Loader, processes: Processes, seed: int, repeat: int, meter: KLMeter
) -> list[float]:
    """Sums over all ranks: images whose class is ranked first, among the first five; cross-entropy; images."""
    device = processes.device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in loader.epoch(0):
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        if model.has_kl:
            key = ops.evaluation_key(seed, repeat, batch.first, device)
            logits, kl = model(images, return_kl=True, key=key)
            meter.update(kl)
        else:
            logits = model(images)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        ce = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums += torch.stack([ranked[:, 0].sum(), ranked.sum(), ce, ce.new_tensor(len(labels))]).double()
    return processes.sum(sums).tolist()
