"""Inputs and float64 truths that the tests and the benchmarks share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ibvit.ops import BottleneckParams, Impl, bottleneck_write, noise_key

Array = NDArray[np.float64]
NO_PAIRS = torch.empty(0, 2, dtype=torch.long)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of channels and samples

NAMES = ("update", "kl", "y", *BottleneckParams._fields, "proj_weight", "proj_bias")  # of `gradients`


class Problem(NamedTuple):
    """Arguments of `bottleneck_write`, float64, initialised as the model's are."""

    y: Tensor
    params: BottleneckParams
    proj_weight: Tensor
    proj_bias: Tensor
    key: Tensor
    block: int

    def cast(self, dtype: torch.dtype, device: str = "cpu") -> Problem:
        """y in `dtype` over float32 parameters, as under autocast; float64 stays float64 throughout."""
        master = torch.float64 if dtype == torch.float64 else torch.float32
        params = BottleneckParams(*(p.to(device, master) for p in self.params))
        outer = (self.proj_weight.to(device, master), self.proj_bias.to(device, master), self.key.to(device))
        return Problem(self.y.to(device, dtype), params, *outer, self.block)


def make_problem(
    heads: int, width: int, columns: int, hidden: int, latent: int, batch: int, tokens: int, logvar: float = -1.0
) -> Problem:
    generator = torch.Generator().manual_seed(7)

    def linear(fan_in: int, *size: int) -> Tensor:
        uniform = torch.rand(*size, generator=generator, dtype=torch.float64)
        return (2 * uniform - 1) / math.sqrt(fan_in)

    params = BottleneckParams(
        linear(width, heads, width, hidden), linear(width, heads, hidden),
        linear(hidden, heads, hidden, 2 * latent), linear(hidden, heads, 2 * latent),
        linear(latent, heads, latent, hidden), linear(latent, heads, hidden),
        linear(hidden, heads, hidden, width), linear(hidden, heads, width),
    )  # fmt: skip
    params.b2[:, latent:] += logvar
    total = heads * width
    y = torch.randn(batch, tokens, total, generator=generator, dtype=torch.float64)
    # Beyond 32 bits, so that each counter word matters.
    key = noise_key(seed=123456789012345, step=2**32 + 77, first_sample=2**32 - 1)
    return Problem(y, params, linear(total, columns, total), linear(total, columns), key, block=11)


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def fenced(x: Tensor) -> Tensor:
    """x inside a larger buffer of NaN: what a kernel reads beyond the end shows."""
    buffer = torch.full((x.numel() + 4096,), float("nan"), dtype=x.dtype, device=x.device)
    return buffer.as_strided(x.shape, x.stride(), 2048).copy_(x)


def gradients(problem: Problem, impl: Impl) -> dict[str, Tensor]:
    """Outputs, and the gradients of a random linear function of them, by name. Nothing but the inputs may be read."""
    leaves = [fenced(t.detach()).requires_grad_() for t in (problem.y, *problem.params, *problem[2:4])]
    params = BottleneckParams(*leaves[1:9])
    update, kl = bottleneck_write(leaves[0], params, leaves[9], leaves[10], problem.key, problem.block, impl=impl)
    generator = torch.Generator().manual_seed(8)
    d_outputs = [torch.randn(out.shape, generator=generator).to(out) for out in (update, kl)]
    torch.autograd.backward([update, kl], d_outputs)
    return dict(zip(NAMES, (update.detach(), kl.detach(), *(leaf.grad for leaf in leaves)), strict=True))


def truth_of(problem: Problem, device: str) -> dict[str, Tensor]:
    """Outputs and gradients of the reference in float64."""
    return gradients(problem.cast(torch.float64, device), "reference")


def errors(problem: Problem, truth: dict[str, Tensor], dtype: torch.dtype, device: str, impl: Impl) -> dict[str, float]:
    """The rms error of an implementation in `dtype`, by name."""
    found = gradients(problem.cast(dtype, device), impl)
    return {name: rms(found[name] - truth[name]) for name in NAMES}


def channel(d: int, components: int, sigma: float, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """μ and log σ² of a channel, [components, d]; on the GPU where there is one."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    mu = spread * torch.randn(components, d, generator=generator, device=DEVICE)
    logvar = 2 * math.log(sigma) + 0.4 * torch.randn(components, d, generator=generator, device=DEVICE)
    return mu, logvar.clamp(-10, 10)


def draw(mu: Tensor, logvar: Tensor, samples: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """[S, d] samples of all components in turn, and the log-density of each sample's own, float64."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = torch.arange(samples, device=DEVICE) * len(mu) // samples
    u = mu[x] + torch.exp(logvar[x] / 2) * torch.randn(samples, mu.shape[1], generator=generator, device=DEVICE)
    rho = logvar[x].double()
    distance = (u.double() - mu[x].double()).square() * torch.exp(-rho)
    return u, -0.5 * (distance + rho + math.log(2 * math.pi)).sum(1)


def log_ratios(u: Tensor, mu: Tensor, logvar: Tensor, reference: Tensor) -> Tensor:
    """[S, M] float64, one dimension at a time."""
    ratios = -0.5 * (logvar.double() + math.log(2 * math.pi)).sum(1) - reference[:, None]
    for j in range(mu.shape[1]):
        distance = (u[:, j, None].double() - mu[:, j].double()).square()
        ratios -= 0.5 * distance * torch.exp(-logvar[:, j].double())
    return ratios


def log_densities(u: Array, mu: Array, logvar: Array) -> Array:
    """log N(u[s]; mu[i], exp(logvar[i])) as `[S, M]`, dimension by dimension."""
    u, mu, logvar = (a.astype(np.float64) for a in (u, mu, logvar))
    total = np.zeros((len(u), len(mu)))
    for j in range(mu.shape[1]):
        total += -0.5 * ((u[:, j, None] - mu[:, j]) ** 2 / np.exp(logvar[:, j]) + logvar[:, j] + math.log(2 * math.pi))
    return total


def log_sum(terms: Array) -> Array:
    """log Σ exp over the last axis."""
    largest = terms.max(-1, keepdims=True)
    return largest[..., 0] + np.log(np.exp(terms - largest).sum(-1))
