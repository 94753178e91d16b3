"""The bottleneck kernels, run by Triton's interpreter, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ibvit.ops import BottleneckParams, bottleneck_write, noise_key, reference
from ibvit.ops.noise import standard_normal
from ibvit_kernels import bottleneck
from tests.kernels import interpreter  # noqa: F401  (bfloat16 in the interpreter)
from tests.ops.problem import NAMES, Problem, assert_within_budget, gradients, make_problem, rms

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_bottleneck_gpu.py runs the kernels for real")

# heads, D, C, h, r, batch, tokens. The interpreter's tile is 16 rows.
SHAPES = {
    "vit_tiny, tile spans images, last tile ragged": (3, 64, 192, 64, 32, 2, 19),
    "h, r below 16 are padded; C not a multiple of 16": (2, 32, 72, 8, 8, 3, 5),
    "D = 128; C in two groups, the second ragged": (1, 128, 200, 16, 16, 1, 17),
    "one token an image, less than a tile": (2, 32, 32, 16, 8, 7, 1),
}
SMALL = SHAPES["h, r below 16 are padded; C not a multiple of 16"]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN: what a kernel forgets to write, or reads too early, shows."""

    def poisoned(make: Any) -> Any:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return allocate

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def fenced(x: Tensor) -> Tensor:
    """x inside a larger buffer of NaN: what a kernel reads beyond the end shows."""
    buffer = torch.full((x.numel() + 4096,), float("nan"), dtype=x.dtype)
    buffer[2048 : 2048 + x.numel()] = x.flatten()
    return buffer[2048 : 2048 + x.numel()].view(x.shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_outputs_and_every_gradient(shape, dtype):
    problem = make_problem(*shape)
    assert_within_budget(problem._replace(y=fenced(problem.y)), dtype)


def test_float16():
    assert_within_budget(make_problem(*SMALL), torch.float16)


@pytest.mark.parametrize("scale", [1e4, 1e-6], ids=["huge", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_extreme_inputs(scale, dtype):
    problem = make_problem(*SMALL)
    assert_within_budget(problem._replace(y=problem.y * scale), dtype)


def test_logvar_is_clamped_and_passes_no_gradient_outside():
    """ρ is its bias alone here: just inside and beyond ±10. (At ±10 itself torch 2.11 and 2.15 differ.)"""
    problem = make_problem(*SMALL)
    edges = torch.tensor([-12.0, -10.001, -9.999, 0.0, 9.999, 10.001, 11.0, 30.0], dtype=torch.float64)
    problem.params.w2[:, :, 8:] = 0
    problem.params.b2[:, 8:] = edges
    assert_within_budget(problem, torch.float32)
    grad = gradients(problem.cast(torch.float32), "triton")["b2"][:, 8:]
    assert torch.equal(grad != 0, ((edges > -10) & (edges < 10)).expand_as(grad))


def test_latents_are_those_of_the_reference():
    problem = make_problem(*SMALL).cast(torch.float32)
    params = (*problem.params, problem.proj_weight, problem.proj_bias)
    shape = bottleneck.shape_of(problem.params.w1, problem.params.w3, problem.proj_weight)
    packed = bottleneck.pack(shape, torch.float32, params)
    _, kl, latents = bottleneck.forward(shape, problem.y, packed, None, problem.key, problem.block, latents=True)
    posterior = reference.encode(problem.y, problem.params)
    torch.testing.assert_close(latents.mu, posterior.mu)
    torch.testing.assert_close(latents.logvar, posterior.logvar)
    torch.testing.assert_close(latents.z, reference.sample(posterior, problem.key, problem.block))
    torch.testing.assert_close(kl, reference.kl_to_prior(posterior))


def prior(problem: Problem) -> Problem:
    """μ = 0 and ρ = 0, whatever y is: then z is the noise itself."""
    params = problem.params._replace(w2=torch.zeros_like(problem.params.w2), b2=torch.zeros_like(problem.params.b2))
    return problem._replace(params=params)


def test_kl_is_exactly_zero_at_the_prior():
    result = gradients(prior(make_problem(*SMALL)).cast(torch.float32), "triton")
    assert torch.equal(result["kl"], torch.zeros_like(result["kl"]))


@pytest.mark.parametrize("latent", [8, 32, 128])
def test_noise_is_that_of_the_specification(latent):
    problem = prior(make_problem(2, 32, 32, 16, latent, 2, 9)).cast(torch.float32)
    params = (*problem.params, problem.proj_weight, problem.proj_bias)
    shape = bottleneck.shape_of(problem.params.w1, problem.params.w3, problem.proj_weight)
    packed = bottleneck.pack(shape, torch.float32, params)
    latents = bottleneck.forward(shape, problem.y, packed, None, problem.key, problem.block, latents=True)[2]
    expected = standard_normal(problem.key, problem.block, 2, 2, 9, latent)
    torch.testing.assert_close(latents.z, expected, atol=5e-6, rtol=0)


def test_micro_batches_draw_the_noise_of_the_whole_batch():
    y, params, *outer, _, block = make_problem(*SMALL).cast(torch.float32)
    whole = bottleneck_write(y, params, *outer, noise_key(5), block, impl="triton").update
    last = bottleneck_write(y[2:], params, *outer, noise_key(5, first_sample=2), block, impl="triton").update
    torch.testing.assert_close(whole[2:], last)


def test_residual_is_added_in_its_own_precision():
    problem = make_problem(*SMALL).cast(torch.bfloat16)
    residual = torch.randn(problem.y.shape[0], problem.y.shape[1], 72, requires_grad=True)
    with_it = bottleneck_write(*problem, impl="triton", residual=residual).update
    without = bottleneck_write(*problem, impl="triton").update
    assert with_it.dtype == torch.float32
    assert rms(with_it - residual - without.float()) <= 2**-8 * rms(without)
    with_it.sum().backward()
    assert torch.equal(residual.grad, torch.ones_like(residual))


def test_empty_batch():
    problem = make_problem(*SMALL)
    results = gradients(problem._replace(y=problem.y[:0]).cast(torch.float32), "triton")
    assert results["update"].shape == (0, 5, 72)
    assert results["kl"].shape == (0, 2, 5)
    for name in NAMES[3:]:
        assert not results[name].any(), name


def test_parameters_in_low_precision_get_gradients_of_their_own_dtype():
    y, params, *outer, key, block = make_problem(*SMALL).cast(torch.bfloat16)
    low = [p.bfloat16().requires_grad_() for p in (*params, *outer)]
    bottleneck_write(y, BottleneckParams(*low[:8]), *low[8:], key, block, impl="triton").update.sum().backward()
    assert {p.grad.dtype for p in low} == {torch.bfloat16}
