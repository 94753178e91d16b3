"""What Triton's kernels write beside the op's results, run by its interpreter: the latents."""

from __future__ import annotations

import pytest
import torch

from ibvit.ops import reference
from ibvit.ops.noise import standard_normal
from ibvit_kernels.bottleneck import host
from tests.kernels import interpreter  # noqa: F401  (products as tensor cores compute them)
from tests.ops.problem import make_problem, prior

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_bottleneck_gpu.py runs the kernels for real")


def test_latents_are_those_of_the_reference():
    problem = make_problem(2, 32, 72, 8, 8, 3, 5).cast(torch.float32)
    params = (*problem.params, problem.proj_weight, problem.proj_bias)
    shape = host.shape_of(problem.params.w1, problem.params.w3, problem.proj_weight)
    packed = host.pack(shape, torch.float32, params)
    _, kl, latents = host.forward(shape, problem.y, packed, None, problem.key, problem.block, latents=True)
    posterior = reference.encode(problem.y, problem.params)
    torch.testing.assert_close(latents.mu, posterior.mu)
    torch.testing.assert_close(latents.logvar, posterior.logvar)
    torch.testing.assert_close(latents.z, reference.sample(posterior, problem.key, problem.block))
    torch.testing.assert_close(kl, reference.kl_to_prior(posterior))


@pytest.mark.parametrize("latent", [8, 32, 128])
def test_noise_is_that_of_the_specification(latent):
    problem = prior(make_problem(2, 32, 32, 16, latent, 2, 9)).cast(torch.float32)
    params = (*problem.params, problem.proj_weight, problem.proj_bias)
    shape = host.shape_of(problem.params.w1, problem.params.w3, problem.proj_weight)
    packed = host.pack(shape, torch.float32, params)
    latents = host.forward(shape, problem.y, packed, None, problem.key, problem.block, latents=True)[2]
    expected = standard_normal(problem.key, problem.block, 2, 2, 9, latent)
    torch.testing.assert_close(latents.z, expected, atol=5e-6, rtol=0)
