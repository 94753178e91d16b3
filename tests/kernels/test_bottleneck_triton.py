"""The noise of Triton's kernels, run by its interpreter, is that of the specification."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from ibvit.ops.noise import standard_normal
from ibvit_kernels.bottleneck import arithmetic
from tests.kernels import interpreter  # noqa: F401  (products as tensor cores compute them)
from tests.ops.problem import make_problem

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_bottleneck_gpu.py runs the kernels for real")


@triton.jit
def noise_kernel(out, key, block, tokens, ROWS: tl.constexpr, LATENT: tl.constexpr, LP: tl.constexpr):
    """ε of one head (the second axis of the grid) for ROWS tokens of all images."""
    row = tl.arange(0, ROWS)
    head = tl.program_id(0)
    sample = tl.load(key + 2) + row // tokens
    eps = arithmetic.standard_normal(tl.load(key), tl.load(key + 1), sample, row % tokens, block, head, ROWS, LP)
    latent = arithmetic.latent_of_column(LP)
    offset = (head * ROWS + row)[:, None] * LATENT + latent
    tl.store(out + offset, eps, mask=(latent < LATENT)[None, :])


@pytest.mark.parametrize("latent", [8, 32, 128])
def test_noise_is_that_of_the_specification(latent: int) -> None:
    problem = make_problem(2, 32, 32, 16, latent, 2, 8)
    out = torch.full((2, 16, latent), float("nan"))
    noise_kernel[(2,)](out, problem.key, problem.block, 8, ROWS=16, LATENT=latent, LP=max(latent, 16))
    expected: Tensor = standard_normal(problem.key, problem.block, 2, 2, 8, latent)  # [B, H, N, r]
    torch.testing.assert_close(out.view(2, 2, 8, latent).transpose(0, 1), expected, atol=5e-6, rtol=0)
