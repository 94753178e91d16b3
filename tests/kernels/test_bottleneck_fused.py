"""The fused bottlenecks, Triton's in its interpreter and the CPU library's, against the float64 reference."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import NAMES, Problem, gradients, make_problem
from ibvit.ops import BottleneckParams, bottleneck_write, noise_key, reference
from ibvit.ops.noise import standard_normal
from ibvit_kernels import library
from ibvit_kernels.bottleneck import native
from tests.needs import needs_library, needs_triton
from tests.ops.problem import assert_within_budget, prior

on_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="test_bottleneck_gpu.py runs the kernels for real")

NATIVE = library.instruction_sets() if library.why_absent() is None else []
# heads, D, C, h, r, batch, tokens. The interpreter's tile is 16 rows, the library's 32.
SHAPES = {
    "vit_tiny, tile spans images, last tile ragged": (3, 64, 192, 64, 32, 2, 19),
    "h, r below 16 are padded; C not a multiple of 16": (2, 32, 72, 8, 8, 3, 5),
    "D = 128; C in two groups, the second ragged": (1, 128, 200, 16, 16, 1, 17),
    "one token an image, less than a tile": (2, 32, 32, 16, 8, 7, 1),
}
ODD = {  # that only the library takes
    "nothing divides anything; r not a multiple of 4": (3, 20, 45, 24, 6, 3, 37),
    "the least of all": (1, 1, 1, 1, 1, 1, 1),
    "more tokens than a byte counts": (1, 16, 16, 16, 16, 1, 300),
}
SMALL = SHAPES["h, r below 16 are padded; C not a multiple of 16"]


def run_on(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The op calls the library without naming an instruction set; here its calls name this one."""
    for name in ("pack", "forward", "backward"):
        bound = functools.partial(getattr(native, name), instruction_set=instruction_set)
        monkeypatch.setattr(native, name, bound)


@pytest.fixture(params=[pytest.param("triton", marks=[on_gpu, needs_triton]), *(f"native {name}" for name in NATIVE)])
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    impl, _, instruction_set = request.param.partition(" ")
    if instruction_set:
        run_on(instruction_set, monkeypatch)
    return impl


@pytest.fixture(params=NATIVE)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    run_on(request.param, monkeypatch)
    return request.param


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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_every_gradient(shape, impl):
    assert_within_budget(make_problem(*shape), torch.float32, impl=impl)


@on_gpu
@needs_triton
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_every_gradient_in_bfloat16(shape):
    assert_within_budget(make_problem(*shape), torch.bfloat16)


@needs_library
@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
def test_any_size(shape, instruction_set):
    assert_within_budget(make_problem(*shape), torch.float32, impl="native")


@on_gpu
@needs_triton
def test_float16():
    assert_within_budget(make_problem(*SMALL), torch.float16)


@pytest.mark.parametrize("scale", [1e4, 1e-6], ids=["huge", "tiny"])
def test_extreme_inputs(scale, impl):
    problem = make_problem(*SMALL)
    problem = problem._replace(y=problem.y * scale)
    # Of huge inputs, a few that meet the bend of GELU rule the error: 26-fold between orders of summation.
    assert_within_budget(problem, torch.float32, impl=impl, orders=8 if scale > 1 else 1)
    if impl == "triton":
        assert_within_budget(problem, torch.bfloat16)


@pytest.mark.parametrize("name", NAMES[2:])
def test_nan_is_not_hidden(name, impl):
    """A parameter or input that is NaN shows in the update, so that training stops."""
    problem = make_problem(*SMALL).cast(torch.float32)
    dict(zip(NAMES[2:], (problem.y, *problem.params, *problem[2:4]), strict=True))[name].view(-1)[0] = float("nan")
    assert bottleneck_write(*problem, impl=impl).update.isnan().any()


def test_nan_in_the_log_variance_is_not_clamped_away(impl):
    problem = make_problem(*SMALL).cast(torch.float32)
    problem.params.b2[:, 8:] = float("nan")
    update, kl = bottleneck_write(*problem, impl=impl)
    assert update.isnan().all()
    assert kl.isnan().all()


def test_logvar_is_clamped_and_passes_no_gradient_outside(impl):
    """ρ is its bias alone here: just inside and beyond ±10. (At ±10 itself torch 2.11 and 2.15 differ.)"""
    problem = make_problem(*SMALL)
    edges = torch.tensor([-12.0, -10.001, -9.999, 0.0, 9.999, 10.001, 11.0, 30.0], dtype=torch.float64)
    problem.params.w2[:, :, 8:] = 0
    problem.params.b2[:, 8:] = edges
    assert_within_budget(problem, torch.float32, impl=impl)
    grad = gradients(problem.cast(torch.float32), impl)["b2"][:, 8:]
    assert torch.equal(grad != 0, ((edges > -10) & (edges < 10)).expand_as(grad))


def test_kl_is_exactly_zero_at_the_prior(impl):
    result = gradients(prior(make_problem(*SMALL)).cast(torch.float32), impl)
    assert torch.equal(result["kl"], torch.zeros_like(result["kl"]))


def with_latents_as_update(problem: Problem, first: int, count: int) -> Problem:
    """The problem with a decoder that writes latents first … first + count of its only head, whatever the encoder is.

    Identities for maps, and z moved far into the linear part of GELU.
    """
    _, width, hidden = problem.params.w1.shape
    latent = problem.params.w3.shape[1]
    far, chosen = torch.full((1, hidden), 12.0), torch.zeros(1, latent, hidden)
    chosen[0, first : first + count, :count] = torch.eye(count)
    params = problem.params._replace(
        w3=chosen, b3=far, w4=torch.eye(hidden, width)[None], b4=-far.new_full((1, width), 12.0)
    )
    return problem._replace(params=params, proj_weight=torch.eye(count, width), proj_bias=torch.zeros(count))


def latents(problem: Problem, impl: str) -> Tensor:
    """z of the only head, as the update shows it, ``[B, N, r]``; as many at once as the hidden layer is wide."""
    latent, at_once = problem.params.w3.shape[1], min(problem.params.w3.shape[1:])
    parts = [with_latents_as_update(problem, first, at_once) for first in range(0, latent, at_once)]
    return torch.cat([bottleneck_write(*part, impl=impl).update for part in parts], dim=-1)


@pytest.mark.parametrize("latent", [8, 32, 128])
def test_noise_is_that_of_the_specification(latent, impl):
    """With the prior for a posterior, z is ε."""
    width = max(32, min(latent, 64))
    problem = prior(make_problem(1, width, width, min(latent, 64), latent, 2, 9)).cast(torch.float32)
    problem = problem._replace(key=noise_key(seed=-3, step=2**32 + 5, first_sample=2**32 - 1))
    expected = standard_normal(problem.key, problem.block, 2, 1, 9, latent)[:, 0]
    torch.testing.assert_close(latents(problem, impl), expected, atol=5e-6, rtol=0)


@needs_library
def test_noise_of_the_library_where_latents_are_no_multiple_of_four(instruction_set):
    problem = prior(make_problem(1, 7, 7, 7, 7, 2, 9)).cast(torch.float32)
    expected = standard_normal(problem.key, problem.block, 2, 1, 9, 7)[:, 0]
    torch.testing.assert_close(latents(problem, "native"), expected, atol=5e-6, rtol=0)


def test_latents_are_those_of_the_reference(impl):
    """Under two keys: z = μ + exp(ρ/2) ε shows μ and ρ apart."""
    problem = make_problem(1, 32, 32, 8, 8, 3, 5).cast(torch.float32)
    posterior = reference.encode(problem.y, problem.params)
    for key in (problem.key, problem.key + 1):
        expected = reference.sample(posterior, key, problem.block)[:, 0]
        torch.testing.assert_close(latents(problem._replace(key=key), impl), expected, atol=5e-6, rtol=0)
    kl = bottleneck_write(*problem, impl=impl).kl
    torch.testing.assert_close(kl, reference.kl_to_prior(posterior))


def test_micro_batches_draw_the_noise_of_the_whole_batch(impl):
    y, params, *outer, _, block = make_problem(*SMALL).cast(torch.float32)
    whole = bottleneck_write(y, params, *outer, noise_key(5), block, impl=impl).update
    last = bottleneck_write(y[2:], params, *outer, noise_key(5, first_sample=2), block, impl=impl).update
    torch.testing.assert_close(whole[2:], last)


@needs_library
def test_unknown_instruction_set():
    shape = native.Shape(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="instruction_set: expected one of"):
        native.call("pack", "mmx", shape)


@needs_library
def test_library_repeats_bitwise_whatever_the_threads():
    """Enough tokens for more parts than there are threads."""
    problem = make_problem(2, 32, 40, 16, 8, 150, 21).cast(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(gradients(problem, "native"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name in NAMES:
            assert torch.equal(results[0][name], other[name]), name


def test_parameters_in_low_precision_get_gradients_of_their_own_dtype(impl):
    y, params, *outer, key, block = make_problem(*SMALL).cast(torch.bfloat16 if impl == "triton" else torch.float32)
    low = [p.bfloat16().requires_grad_() for p in (*params, *outer)]
    bottleneck_write(y, BottleneckParams(*low[:8]), *low[8:], key, block, impl=impl).update.sum().backward()
    assert {p.grad.dtype for p in low} == {torch.bfloat16}
