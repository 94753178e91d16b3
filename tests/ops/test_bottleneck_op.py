"""The op: validation, choice of implementation, and PyTorch's machinery around the (interpreted) kernels."""

from __future__ import annotations

import logging
import time
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.problems import NAMES, Problem, gradients, make_problem
from ibvit.config import TrainConfig
from ibvit.ops import api, bottleneck_write
from ibvit.ops.contracts import Parameters
from ibvit_kernels import library
from tests.needs import needs_library, needs_triton
from tests.ops.problem import Write

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_bottleneck_gpu.py runs the kernels for real")


@pytest.fixture
def problem() -> Problem:
    """The least that the kernels take."""
    return make_problem(heads=1, width=32, columns=16, hidden=8, latent=8, batch=1, tokens=3).cast(torch.float32)


FUSED = [pytest.param("triton", marks=needs_triton), pytest.param("native", marks=needs_library)]


@pytest.fixture(params=FUSED)
def impl(request):
    return request.param


WRONG = {
    "y": lambda p: p._replace(y=p.y[0]),
    "y: expected a last axis": lambda p: p._replace(y=p.y[..., :-1]),
    "params.b2": lambda p: p._replace(params=p.params._replace(b2=p.params.b2[:, 1:])),
    "params.w4": lambda p: p._replace(params=p.params._replace(w4=p.params.w4.mT)),
    "params.w1": lambda p: p._replace(params=p.params._replace(w1=p.params.w1[0])),
    "proj_bias": lambda p: p._replace(proj_bias=p.proj_bias[1:]),
    "proj_weight: expected y's device": lambda p: p._replace(proj_weight=p.proj_weight.to("meta")),
    "key": lambda p: p._replace(key=p.key[:2]),
    "block": lambda p: p._replace(block=4096),
    "params: expected 1 to 1024 latents r, got 1028": lambda _: make_problem(1, 8, 8, 8, 1028, 1, 1),
}


@pytest.mark.parametrize(("message", "spoil"), WRONG.items(), ids=WRONG)
def test_wrong_arguments_are_named(problem, message, spoil):
    with pytest.raises(ValueError, match=message):
        bottleneck_write(*spoil(problem), impl="reference")


WRONG_TYPES = {
    "y: expected float32.*, got int64": lambda p: p._replace(y=p.y.long()),
    r"params.w2: expected float32.*, got int32": lambda p: p._replace(params=p.params._replace(w2=p.params.w2.int())),
    "proj_weight: expected float32.*, got complex64": lambda p: p._replace(proj_weight=p.proj_weight.to(torch.cfloat)),
    "proj_bias: expected a dense tensor, got a sparse_coo tensor": lambda p: p._replace(
        proj_bias=p.proj_bias.to_sparse()
    ),
    "params: expected BottleneckParams, got None": lambda p: p._replace(params=None),
    "key: expected int64, got int32": lambda p: p._replace(key=p.key.int()),
    "block: expected a whole number, got 1.5": lambda p: p._replace(block=1.5),
}


@pytest.mark.parametrize(("message", "spoil"), WRONG_TYPES.items(), ids=WRONG_TYPES)
def test_arguments_of_wrong_types_are_named(problem, message, spoil):
    for impl in ("reference", "auto"):
        with torch.autocast("cpu", torch.bfloat16, enabled=impl == "auto"), pytest.raises(TypeError, match=message):
            bottleneck_write(*spoil(problem), impl=impl)


@pytest.fixture
def fresh_choice():
    """Forget what was decided, before and after."""
    api._decide.cache_clear()
    yield
    api._decide.cache_clear()


@needs_library
def test_auto_chooses_the_library_on_a_cpu_and_logs_it_once(problem, fresh_choice, caplog):
    with caplog.at_level(logging.INFO, logger="ibvit.ops.api"):
        for _ in range(2):
            bottleneck_write(*problem)
    assert [record.getMessage() for record in caplog.records] == ["bottleneck: impl=auto chose native"]


def test_auto_chooses_the_reference_where_there_is_no_library(problem, fresh_choice, caplog, monkeypatch):
    monkeypatch.setattr(library, "why_absent", lambda: "it was not built")
    with caplog.at_level(logging.INFO, logger="ibvit.ops.api"):
        bottleneck_write(*problem)
    expected = "bottleneck: impl=auto chose reference (native: it was not built)"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_auto_computes_double_precision_by_the_reference():
    problem = make_problem(heads=1, width=4, columns=4, hidden=4, latent=4, batch=1, tokens=2)
    assert torch.equal(bottleneck_write(*problem).update, bottleneck_write(*problem, impl="reference").update)


def test_explicit_library_raises_and_says_why(problem, fresh_choice, monkeypatch):
    monkeypatch.setattr(library, "why_absent", lambda: None)
    with pytest.raises(RuntimeError, match=r"impl='native' is not available: .*float32, got torch.bfloat16"):
        bottleneck_write(*problem.cast(torch.bfloat16), impl="native")
    monkeypatch.setattr(library, "why_absent", lambda: "it was not built")
    with pytest.raises(RuntimeError, match="impl='native' is not available: it was not built"):
        bottleneck_write(*problem, impl="native")


def test_explicit_triton_raises_and_says_why(problem, fresh_choice, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="impl='triton' is not available: the kernels need a CUDA device"):
        bottleneck_write(*problem, impl="triton")


@needs_triton
def test_explicit_triton_names_the_size_it_has_no_kernel_for():
    odd = make_problem(heads=1, width=48, columns=16, hidden=8, latent=8, batch=1, tokens=3).cast(torch.float32)
    with pytest.raises(RuntimeError, match="head width D: expected one of"):
        bottleneck_write(*odd, impl="triton")
    assert bottleneck_write(*odd, impl="auto").update.shape == (1, 3, 16)
    wide = make_problem(heads=1, width=32, columns=16, hidden=128, latent=64, batch=1, tokens=1).cast(torch.float32)
    with pytest.raises(RuntimeError, match="h = 128 with latent r = 64 in float32"):
        bottleneck_write(*wide, impl="triton")


def test_an_old_triton_is_named(problem, fresh_choice, monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(triton, "__version__", "3.2.0")
    with pytest.raises(RuntimeError, match=r"the kernels need triton 3\.6 or newer, got 3\.2\.0"):
        bottleneck_write(*problem, impl="triton")


def test_unknown_implementation(problem):
    with pytest.raises(ValueError, match="impl: expected one of auto, triton, native, reference, got 'cuda'"):
        bottleneck_write(*problem, impl="cuda")


def test_the_table_of_backends_is_what_impl_may_be():
    assert get_args(api.Impl) == ("auto", *api.BACKENDS, "reference")
    assert get_type_hints(TrainConfig)["impl"] == api.Impl


def test_opcheck(problem, impl):
    """Schema, fake tensors, autograd registration and AOT dispatch agree with the implementation."""
    fused = api.BACKENDS[impl].op
    tensors = [t.requires_grad_() for t in (problem.y, *problem.params, *problem[2:4])]
    torch.library.opcheck(fused.forward, (*tensors, problem.key, problem.block))
    with torch.no_grad():
        _, _, *packed = fused.forward(*tensors, problem.key, problem.block)
        d_outputs = torch.randn(1, 3, 16), torch.randn(1, 1, 3)
    torch.library.opcheck(
        fused.backward,
        (*d_outputs, *(t.detach() for t in tensors), *packed, problem.key, problem.block),
    )


@pytest.mark.filterwarnings("ignore:Input .* requires gradient and is not a double precision")
@pytest.mark.parametrize("names", [None, ("y", "b2")], ids=["all inputs, random directions", "every coordinate"])
def test_finite_differences(problem, names, impl):
    """Central differences of the whole op, kernel arithmetic in float32; y of one token where all coordinates count."""
    if names:
        problem = problem._replace(y=problem.y[:, :1].clone())
    inputs = [problem.y, *problem.params, *problem[2:4]]
    for name, tensor in zip(NAMES[2:], inputs, strict=True):
        tensor.requires_grad_(names is None or name in names)

    def write(y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        fused = api.BACKENDS[impl].op
        return fused.write(y, Parameters(*params), problem.key, problem.block)

    assert torch.autograd.gradcheck(write, inputs, eps=1e-2, atol=5e-3, rtol=2e-2, fast_mode=names is None)


def test_second_derivative_is_refused(problem, impl):
    y = problem.y.requires_grad_()
    update = bottleneck_write(*problem._replace(y=y), impl=impl).update
    (grad,) = torch.autograd.grad(update.sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_unused_outputs(problem, impl):
    """Only the update, or only the KL, goes into the loss."""
    for kept in range(2):
        leaf = problem.y.clone().requires_grad_()
        fused, plain = (
            torch.autograd.grad(bottleneck_write(*problem._replace(y=leaf), impl=one)[kept].sum(), leaf)[0]
            for one in (impl, "reference")
        )
        torch.testing.assert_close(fused, plain)


def test_compiles_into_one_graph(problem, impl):
    write = Write(problem, impl)
    compiled = torch.compile(write, fullgraph=True, backend="aot_eager")
    for key in (problem.key, problem.key + 1):  # the key is data: no recompilation, other noise
        results = []
        for run in (write, compiled):
            write.zero_grad()
            update, kl = run(problem.y, key)
            (update.sum() + kl.sum()).backward()
            results.append([update, kl, *(p.grad for p in write.params)])
        for eager, traced in zip(*results, strict=True):
            assert torch.equal(eager, traced)
    assert not torch.equal(write(problem.y, problem.key)[0], write(problem.y, problem.key + 1)[0])


def test_compiles_with_the_choice_left_open(problem, fresh_choice):
    compiled = torch.compile(bottleneck_write, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*problem).update, bottleneck_write(*problem).update)


def test_checkpointing_draws_the_same_noise(problem, impl):
    write = Write(problem, impl)
    plain = write.step(problem.y, problem.key)
    forward = write.forward
    write.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)
    for one, other in zip(plain, write.step(problem.y, problem.key), strict=True):
        assert torch.equal(one, other)


@needs_triton
def test_autocast_and_grad_scaler(problem):
    """Under autocast the op computes in low precision; masters and their gradients stay float32."""
    write = Write(problem)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(write.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        update, kl = write(problem.y, problem.key)
    assert (update.dtype, kl.dtype) == (torch.bfloat16, torch.float32)
    before = write.params[0].detach().clone()
    scaler.scale(update.float().square().mean() + kl.mean()).backward()
    assert {p.grad.dtype for p in write.params} == {torch.float32}
    scaler.step(optimizer)
    assert not torch.equal(before, write.params[0])


def _rank(rank: int, folder: str) -> None:
    """One of two processes: its image of the batch, with its own noise; the averaged gradients go to a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    try:
        problem = _two_images()
        write = nn.parallel.DistributedDataParallel(Write(problem))
        update, kl = write(problem.y[rank : rank + 1], problem.key + torch.tensor([0, 0, rank]))
        (update.square().mean() + kl.mean()).backward()
        torch.save([p.grad for p in write.parameters()], f"{folder}/{rank}.pt")
    finally:
        time.sleep(0.1)  # as ibvit.training.distributed does: gloo of torch 2.6 may deadlock
        torch.distributed.destroy_process_group()


def _two_images() -> Problem:
    return make_problem(heads=1, width=32, columns=16, hidden=8, latent=8, batch=2, tokens=3).cast(torch.float32)


@needs_triton
def test_distributed_data_parallel(tmp_path):
    """Two processes, an image each, have the gradients of one process with both."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    problem = _two_images()
    alone = Write(problem).step(problem.y, problem.key)[2:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for one, first, second in zip(alone, *ranks, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, one)


def test_non_contiguous_inputs(problem, impl):
    """Attention may leave its output, and anyone the parameters and the key, in any layout."""

    def turned(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT

    strided = problem._replace(
        y=turned(problem.y),
        params=problem.params._replace(w2=turned(problem.params.w2), w4=turned(problem.params.w4)),
        proj_weight=turned(problem.proj_weight),
        key=torch.stack([problem.key, problem.key + 1], 1)[:, 0],
    )
    assert not any(x.is_contiguous() for x in (strided.y, strided.params.w4, strided.proj_weight, strided.key))
    results = gradients(problem, impl), gradients(strided, impl)
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@needs_library
def test_library_whatever_the_default_dtype(problem):
    expected = bottleneck_write(*problem, impl="native").update
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(bottleneck_write(*problem, impl="native").update, expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no images", "no tokens"])
@pytest.mark.parametrize("impl", [*FUSED, "reference"])
def test_empty_input(problem, shape, impl):
    results = gradients(problem._replace(y=torch.empty(*shape, 32)), impl)
    assert results["update"].shape == (*shape, 16)
    assert results["kl"].shape == (shape[0], 1, shape[1])
    for name in NAMES[3:]:
        assert not results[name].any(), name
