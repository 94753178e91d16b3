"""The bottleneck kernels on a GPU, at the models' shapes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.problems import NAMES, Problem, gradients, make_problem
from ibvit.ops import bottleneck_write
from tests.ops.problem import Write, assert_within_budget

pytestmark = pytest.mark.gpu

# heads, D, C, h, r, batch, tokens
MODELS = {
    "vit_tiny": (3, 64, 192, 64, 32, 64, 196),
    "vit_small": (6, 64, 384, 64, 32, 8, 196),
    "vit_base": (12, 64, 768, 64, 32, 4, 196),
    "vit_large": (16, 64, 1024, 64, 32, 2, 196),
    "odd sizes": (5, 32, 200, 16, 8, 3, 37),
    "widest": (2, 128, 256, 128, 128, 2, 50),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OTHER_DTYPES = ("vit_tiny", "vit_small", "odd sizes")  # models that are also checked in float16 and float32


CASES = [(name, dtype) for name in MODELS for dtype in DTYPES if dtype == "bfloat16" or name in OTHER_DTYPES]


def compile_kernels(case: tuple[str, str]) -> None:
    """One small forward and backward pass; the kernels are those of any batch, and Triton keeps them on disk."""
    name, dtype = case
    heads, width, columns, hidden, latent, *_ = MODELS[name]
    with contextlib.suppress(Exception):  # a case that does not compile fails in its own test
        gradients(make_problem(heads, width, columns, hidden, latent, 1, 5).cast(DTYPES[dtype], "cuda"), "triton")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Triton compiles one kernel after the other, for seconds each: processes share that."""
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_kernels, CASES))


@pytest.fixture
def vit_tiny() -> Problem:
    return make_problem(*MODELS["vit_tiny"]).cast(torch.bfloat16, "cuda")


@pytest.mark.parametrize(("model", "dtype"), CASES, ids="-".join)
def test_outputs_and_every_gradient(model, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert_within_budget(make_problem(*MODELS[model]), DTYPES[dtype], "cuda")


def test_thirty_runs_are_bitwise_equal(vit_tiny):
    first = gradients(vit_tiny, "triton")
    for _ in range(29):
        again = gradients(vit_tiny, "triton")
        for name in NAMES:
            assert torch.equal(first[name], again[name]), name


def test_auto_is_the_kernels(vit_tiny):
    assert torch.equal(bottleneck_write(*vit_tiny).update, bottleneck_write(*vit_tiny, impl="triton").update)


@pytest.mark.parametrize("backend", ["inductor", "cudagraphs"])
def test_compiles_into_one_graph(vit_tiny, backend):
    write = Write(vit_tiny)
    eager = write.step(vit_tiny.y, vit_tiny.key)
    eager = [t.clone() for t in eager]
    write.forward = torch.compile(write.forward, fullgraph=True, backend=backend)
    for _ in range(3):
        for one, other in zip(eager, write.step(vit_tiny.y, vit_tiny.key), strict=True):
            torch.testing.assert_close(one, other)


def test_graph_replays_draw_fresh_noise(vit_tiny):
    write, key = Write(vit_tiny), vit_tiny.key.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        write.step(vit_tiny.y, key)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = write.step(vit_tiny.y, key)
    replays = []
    for step in range(3):
        key[1] = step
        graph.replay()
        replays.append([t.clone() for t in captured])
    for step, replayed in enumerate(replays):
        key[1] = step
        for one, other in zip(replayed, write.step(vit_tiny.y, key), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(replays[0][0], replays[1][0])


def test_checkpointing_draws_the_same_noise(vit_tiny):
    write = Write(vit_tiny)
    plain = [t.clone() for t in write.step(vit_tiny.y, vit_tiny.key)]
    forward = write.forward
    write.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)
    for one, other in zip(plain, write.step(vit_tiny.y, vit_tiny.key), strict=True):
        assert torch.equal(one, other)


def test_autocast_and_grad_scaler(vit_tiny):
    write = Write(vit_tiny)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    optimizer = torch.optim.SGD(write.parameters(), lr=0.1)
    with torch.autocast("cuda", dtype=torch.float16):
        update, kl = write(vit_tiny.y.float(), vit_tiny.key)
    assert (update.dtype, kl.dtype) == (torch.float16, torch.float32)
    before = write.params[0].detach().clone()
    scaler.scale(update.float().square().mean() + kl.mean()).backward()
    scaler.step(optimizer)
    assert not torch.equal(before, write.params[0])


def test_addresses_beyond_32_bits():
    """More than 2³¹ elements of y: the last image comes out as it does alone."""
    shape = MODELS["vit_tiny"]
    tokens, total = shape[6], shape[2]
    batch = 2**31 // (tokens * total) + 2
    if torch.cuda.get_device_properties(0).total_memory < 6 * 2 * batch * tokens * total:
        pytest.skip("needs about 26 GB of GPU memory")
    one = make_problem(*shape[:5], batch=1, tokens=tokens).cast(torch.bfloat16, "cuda")
    many = one._replace(y=one.y.expand(batch, -1, -1).contiguous())
    alone = bottleneck_write(*one._replace(key=one.key + torch.tensor([0, 0, batch - 1], device="cuda"))).update
    assert torch.equal(bottleneck_write(*many).update[-1:], alone)
