"""What one training step has to do, counted from its traced graph: launches, bytes, FLOP, and the time they ask for.

Forward and backward pass of ViT-Tiny (224 px, bf16 autocast, batch 256) are traced on fake tensors. *Eager*: each
operator that is not a view is a launch, reads its inputs and writes its outputs. *Fused*: the graph is decomposed as
torch.compile does it; elementwise operators and row reductions that feed each other share one launch, unless a matrix
product, attention, a sum over tokens or a kernel of ours lies between them; a sum over tokens recomputes what
nobody else needs in memory, and so does the backward pass with what is elementwise. That is about the best a fusing
compiler can do, not what one does. A launch takes the longer of its bytes at the copy bandwidth and its FLOP at the
GEMM rate of an H200, both as measured elsewhere. The optimiser is counted beside: one pass over weights, gradients and
two moments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import flop_registry

import ibvit
from benchmarks.h200 import COPY_BANDWIDTH, MULTIPROCESSORS, TENSOR_FLOPS
from benchmarks.recording import Benchmark, Case, Row
from ibvit.ops import api
from ibvit.training.objective import Objective
from ibvit_kernels.bottleneck.tiles import Shape, backward_launches, gradient_sizes, splits

EAGER_LAUNCH = 5e-6  # seconds of host time, the usual order of one eager operator
LAUNCHES = {"bottleneck_forward": 2, "bottleneck_backward": 4}  # pack, forward; backward twice, sum of parts, unmerge
ARCHITECTURE = 90  # an H200's
OPTIMIZER_BYTES = 28  # read p, g, m, v and write p, m, v, float32
VARIANTS = {
    "full": {"attention": "full"},
    "ib, reference": {"attention": "ib", "impl": "reference"},
    "ib, fused": {"attention": "ib", "impl": "triton"},
}

VIEWS = {
    "view", "_unsafe_view", "transpose", "t", "permute", "expand", "unsqueeze", "squeeze", "select", "slice", "alias",
    "detach", "unbind", "split", "split_with_sizes", "as_strided", "reshape",
}  # fmt: skip
ELEMENTWISE, SUM = "elementwise and row reductions", "sum over tokens or images"
EXTERN = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}


def trace(attention: str, batch: int, *, fuse: bool, depth: int = 12, impl: str = "auto") -> fx.Graph:
    """Forward and backward pass as one graph of ATen operators."""
    model = ibvit.create_model("vit_tiny_patch16_224", attention=attention, num_classes=100, impl=impl, depth=depth)
    objective = Objective(model, "mean", torch.bfloat16)
    names = [name for name, _ in objective.named_parameters()]

    def step(images: Tensor, labels: Tensor, key: Tensor, beta: Tensor, *params: Tensor) -> Any:
        named = dict(zip(names, params, strict=True))
        loss = torch.func.functional_call(objective, named, (images, labels, key, beta))
        return torch.autograd.grad(loss.total, params)

    # Traced on CPU tensors: autocast gives the same dtypes there, and attention is one operator likewise.
    triton = api.BACKENDS["triton"]._replace(why_not=lambda device: None)
    with mock.patch.dict(api.BACKENDS, triton=triton), FakeTensorMode():
        params = [torch.empty(p.shape).requires_grad_() for p in objective.parameters()]
        images, labels = torch.empty(batch, 3, 224, 224), torch.empty(batch, dtype=torch.int64)
        key, beta = torch.empty(3, dtype=torch.int64), torch.empty(())
        api._decide.cache_clear()
        table = core_aten_decompositions() | get_decompositions([torch.ops.aten.native_layer_norm])
        table = {op: rule for op, rule in table.items() if fuse and "attention" not in op.__name__}
        graph = make_fx(step, decomposition_table=table)(images, labels, key, beta, *params).graph
        api._decide.cache_clear()
    graph.eliminate_dead_code()
    return graph


@dataclass
class Launch:
    """One kernel (or a few that always go together)."""

    name: str
    bytes: float
    flops: float
    count: int = 1

    @property
    def seconds(self) -> float:
        return max(self.bytes / COPY_BANDWIDTH, self.flops / TENSOR_FLOPS)


def eager_launches(graph: fx.Graph) -> list[Launch]:
    """Every operator by itself."""
    return [_launch(kind(node), [node]) for node in graph.nodes if is_kernel(node)]


def fused_launches(graph: fx.Graph) -> list[Launch]:
    """Operators merged wherever nothing that is its own kernel lies between them."""
    kernels = [node for node in graph.nodes if is_kernel(node)]
    depth = _depths(kernels)
    group = {node: node for node in kernels if is_fusible(node)}

    def root(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    for node in group:
        for source in producers(node):
            if source in group and depth[source] == depth[node]:
                group[root(source)] = root(node)
    sums = [node for node in kernels if kind(node) == SUM]
    alone = [node for node in kernels if node not in group and node not in sums]
    members = defaultdict(list)
    for node in group:
        members[root(node)].append(node)
    kept = {node for nodes in members.values() for node in nodes if _leaves(node, {*nodes, *sums})}
    # Sums that read the same things share a launch.
    chains: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in sums:
        chain = _recomputed(node, set(group) - kept)
        read = frozenset(source for part in chain for source, _ in inputs(part) if source not in chain)
        chains[read, str(node.args[1:])] += chain
    return [
        *(_launch(kind(node), [node]) for node in alone),
        *(_launch(ELEMENTWISE, nodes, kept) for nodes in members.values() if kept.intersection(nodes)),
        *(_launch(SUM, chain, set(sums)) for chain in chains.values()),
    ]


def _depths(kernels: list[fx.Node]) -> dict[fx.Node, int]:
    """How many launches that cannot be merged come before each kernel; what is cheap waits until it is needed."""
    depth: dict[fx.Node, int] = {}
    users: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in kernels:
        sources = list(producers(node))
        depth[node] = max((depth[source] for source in sources), default=0) + (not is_fusible(node))
        for source in sources:
            users[source].append(node)
    for node in reversed(kernels):
        waits = is_fusible(node) and not is_reduction(node)
        if waits and users[node] and all(is_fusible(user) or kind(user) == SUM for user in users[node]):
            depth[node] = min(depth[user] - (not is_fusible(user)) for user in users[node])
    return depth


def _recomputed(node: fx.Node, free: set[fx.Node]) -> list[fx.Node]:
    """A sum and the elementwise operators before it that are not kept in memory."""
    chain, waiting = [], [node]
    while waiting:
        part = waiting.pop()
        if part not in chain:
            chain.append(part)
            waiting += [source for source in producers(part) if source in free and not is_reduction(source)]
    return chain


def name_of(node: fx.Node) -> str:
    """The operator's name without overload, "" for what is not an operator."""
    return node.target.__name__.split(".")[0] if isinstance(node.target, torch._ops.OpOverload) else ""


def is_kernel(node: fx.Node) -> bool:
    return bool(name_of(node)) and name_of(node) not in VIEWS


def is_fusible(node: fx.Node) -> bool:
    """Elementwise, or a reduction along the last axis."""
    name = name_of(node)
    if name in EXTERN or "attention" in name or name.startswith("bottleneck"):
        return False
    if not is_reduction(node):
        return True
    dims = node.args[1] if len(node.args) > 1 else None
    if not isinstance(dims, (list, tuple)):
        return False
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    return all(int(dim) % rank == rank - 1 for dim in dims)  # type: ignore[arg-type]


def is_reduction(node: fx.Node) -> bool:
    return name_of(node) in ("sum", "mean", "var_mean", "amax")


def kind(node: fx.Node) -> str:
    name = name_of(node)
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return "matrix product"
    if "attention" in name:
        return "attention"
    if name.startswith("bottleneck"):
        return "fused bottleneck"
    if name.startswith("convolution"):
        return "patch embedding"
    return ELEMENTWISE if is_fusible(node) else SUM


def producers(node: fx.Node) -> Iterator[fx.Node]:
    """The kernels whose results a node reads, through views and tuples."""
    for source in node.all_input_nodes:
        if is_kernel(source):
            yield source
        else:
            yield from producers(source)


def inputs(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """What a node reads: the tensor's origin, and bytes (a view reads no more than it shows, nor than there is)."""

    def origin(source: fx.Node) -> tuple[fx.Node, int]:
        size = nbytes(source)
        while not is_kernel(source) and source.op != "placeholder" and source.all_input_nodes:
            source = source.all_input_nodes[0]
            size = min(size, nbytes(source))
        return source, size

    for source in node.all_input_nodes:
        yield origin(source)


def nbytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    parts = value if isinstance(value, (list, tuple)) else [value]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))


def flops(node: fx.Node) -> float:
    """FLOP of products and attention by torch's own count; of our kernels by their definition."""
    name = name_of(node)
    if name.startswith("bottleneck"):
        y = node.args[0 if name == "bottleneck_forward" else 2].meta["val"]  # type: ignore[union-attr]
        first = 1 if name == "bottleneck_forward" else 3
        w1, w2, w3, w4 = (node.args[first + 2 * at].meta["val"] for at in range(4))  # type: ignore[union-attr]
        encoder = sum(weight.numel() for weight in (w1, w2, w3))
        merged = w4.shape[0] * w4.shape[1] * y.shape[-1]
        rows = y.shape[0] * y.shape[1]
        return 2.0 * rows * (encoder + merged if name == "bottleneck_forward" else 3 * encoder + 2 * merged)
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _attention_flops(node.args[0].meta["val"], 2)  # type: ignore[union-attr]
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return _attention_flops(node.args[1].meta["val"], 5)  # type: ignore[union-attr]
    count = flop_registry.get(node.target.overloadpacket)  # type: ignore[union-attr]
    if count is None:
        return 0.0
    args = fx.node.map_arg(node.args, lambda source: source.meta["val"])
    return float(count(*args, **node.kwargs, out_val=node.meta["val"]))  # type: ignore[misc]


def _attention_flops(query: Tensor, products: int) -> float:
    batch, heads, tokens, width = query.shape
    return 2.0 * products * batch * heads * tokens * tokens * width


def _launch(name: str, nodes: list[fx.Node], kept: set[fx.Node] | None = None) -> Launch:
    """One launch for all nodes; of them those in ``kept`` (default: all) are written to memory."""
    inside = set(nodes)
    read = {source: size for node in nodes for source, size in inputs(node) if source not in inside}
    written = sum(nbytes(node) for node in inside if kept is None or node in kept)
    count = LAUNCHES.get(name_of(nodes[0]), 1)
    parts = sum(map(_partial_gradients, nodes))
    return Launch(name, sum(read.values()) + written + parts, sum(map(flops, nodes)), count)


def _partial_gradients(node: fx.Node) -> float:
    """Bytes of the parts of the weight gradients, which our backward kernel's programs write and a sum reads."""
    if name_of(node) != "bottleneck_backward":
        return 0.0
    y, w1, w3, proj_weight = (node.args[at].meta["val"] for at in (2, 3, 7, 11))  # type: ignore[union-attr]
    heads, width, hidden = w1.shape
    shape = Shape(heads, width, proj_weight.shape[0], hidden, w3.shape[1])
    step = min(launch.tile.rows for launch in backward_launches(ARCHITECTURE, shape, y.element_size()))
    programs = splits(shape, y.shape[0] * y.shape[1], step, MULTIPROCESSORS)
    return 2.0 * programs * sum(gradient_sizes(shape)) * 4


def _leaves(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether anything outside needs the node's result."""
    return any(
        _leaves(user, inside) if user.op == "call_function" and not is_kernel(user) else user not in inside
        for user in node.users
    )


def benchmark(full: bool) -> Benchmark:
    batch, depth = (256, 12) if full else (2, 2)
    return Benchmark(
        f"one step of ViT-Tiny with {depth} blocks, 224 px, bf16 autocast, batch {batch}: counted launches, and the "
        "time of an H200 that their bytes and FLOP ask for",
        [
            *(Case(variant, partial(count, variant, batch, depth)) for variant in VARIANTS),
            Case("optimizer", partial(optimizer, batch)),
        ],
        measured=False,
    )


def count(variant: str, batch: int, depth: int) -> list[Row]:
    """Eager and fused: totals, and what each kind of launch contributes."""
    options: dict[str, Any] = VARIANTS[variant]
    rows: list[Row] = []
    for how, launches_of in (("eager", eager_launches), ("fused", fused_launches)):
        launches, fewer = (
            launches_of(trace(batch=batch, fuse=how == "fused", depth=blocks, **options))
            for blocks in (depth, depth - 1)
        )
        about = {"variant": variant, "how": how, "batch": batch}
        total = summary(launches)
        total |= {
            "gflop_per_image": 1e3 * total["tflop"] / batch,
            "images_per_s": 1e3 * batch / total["ms"],
            "gb_per_block": total["gb"] - summary(fewer)["gb"],
        }
        if how == "eager":
            total["host_ms"] = 1e3 * total["launches"] * EAGER_LAUNCH
        rows.append(about | {"kind": "all"} | total)
        for name in dict.fromkeys(launch.name for launch in launches):
            rows.append(about | {"kind": name} | summary([launch for launch in launches if launch.name == name]))
    return rows


def summary(launches: list[Launch]) -> Row:
    """Totals, and the time they ask for."""
    return {
        "launches": sum(launch.count for launch in launches),
        "gb": sum(launch.bytes for launch in launches) / 1e9,
        "tflop": sum(launch.flops for launch in launches) / 1e12,
        "ms": 1e3 * sum(launch.seconds for launch in launches),
    }


def optimizer(batch: int) -> list[Row]:
    model = ibvit.create_model("vit_tiny_patch16_224", attention="ib", num_classes=100)
    moved = float(OPTIMIZER_BYTES * sum(p.numel() for p in model.parameters()))
    about = {"variant": "ib", "how": "fused", "batch": batch, "kind": "optimizer"}
    return [about | {"gb": moved / 1e9, "ms": 1e3 * moved / COPY_BANDWIDTH}]
