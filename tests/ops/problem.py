"""The bottleneck op's results and gradients by name, and the error budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.problems import NAMES, Problem, errors, rms, truth_of
from ibvit import ops
from ibvit.ops import BottleneckParams


def prior(problem: Problem) -> Problem:
    """μ = 0 and ρ = 0, whatever y is: then z is the noise itself."""
    params = problem.params._replace(w2=torch.zeros_like(problem.params.w2), b2=torch.zeros_like(problem.params.b2))
    return problem._replace(params=params)


class Write(nn.Module):
    """The op as a module owns it."""

    def __init__(self, problem: Problem, impl: ops.Impl = "triton") -> None:
        super().__init__()
        self.params = nn.ParameterList(nn.Parameter(p.clone()) for p in (*problem.params, *problem[2:4]))
        self.block, self.impl = problem.block, impl

    def forward(self, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        *inner, proj_weight, proj_bias = list(self.params)  # torch.compile of 2.11 knows no slice of a ParameterList
        return ops.bottleneck_write(y, BottleneckParams(*inner), proj_weight, proj_bias, key, self.block, self.impl)

    def step(self, y: Tensor, key: Tensor) -> list[Tensor]:
        """Outputs, and the gradient of each parameter of a loss of both."""
        self.zero_grad()
        update, kl = self(y, key)
        (update.float().square().mean() + kl.mean()).backward()
        return [update.detach(), kl.detach(), *(p.grad for p in self.params)]


def reordered(problem: Problem, seed: int) -> Problem:
    """The same function of y and W1 with their D axis in another order: sums over it round differently."""
    heads, width, _ = problem.params.w1.shape
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    y = problem.y.unflatten(2, (heads, width))[..., order].flatten(2)
    return problem._replace(y=y, params=problem.params._replace(w1=problem.params.w1[:, order]))


def assert_within_budget(
    problem: Problem, dtype: torch.dtype, device: str = "cpu", impl: ops.Impl = "triton", orders: int = 1
) -> None:
    """Each output and gradient: error ≤ 2 × the plain implementation's in `dtype`, plus a few roundings of float32.

    Where a few elements rule the error, the plain one depends on the order in which the installed BLAS adds: `orders`
    says over how many orders to take its maximum.
    """
    truth = truth_of(problem, device)
    fused = errors(problem, truth, dtype, device, impl)
    plain = [errors(problem, truth, dtype, device, "reference")]
    for seed in range(1, orders):
        other = reordered(problem, seed)
        plain.append(errors(other, truth_of(other, device), dtype, device, "reference"))
    for name in NAMES:
        error, allowed = fused[name], 2 * max(single[name] for single in plain)
        rounding = 2**-22 * rms(truth[name])
        assert error <= allowed + rounding, f"{name}: rms error {error:.2e} > {allowed:.2e} + {rounding:.2e}"
