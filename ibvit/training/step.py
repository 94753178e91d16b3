"""One optimiser step, as it runs on the device: plain, compiled, or replayed as a CUDA graph.

The host never waits for the device in here. Learning rate, β, noise key, and the sums that training reports live on the
device; callers read them when they need them.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ibvit import ops
from ibvit.config import RunConfig
from ibvit.data.types import Batch
from ibvit.models import VisionTransformer
from ibvit.training.distributed import Processes
from ibvit.training.objective import Objective
from ibvit.training.optimizer import build_optimizer

_GRAPH_WARMUP = 11  # steps before the capture: DDP settles its buckets and timing events in the first ten


class TrainStep:
    """Forward pass, backward pass and update on this process's share of a global batch.

    Attributes:
        sums: float64 ``[3]``: cross-entropy, K and number of the steps since they were last set to zero.
        bad_step: int64: the first step whose loss was not finite; −1 if there was none.
        amp: the autocast dtype, None for float32 throughout.
    """

    def __init__(self, model: VisionTransformer, config: RunConfig, processes: Processes) -> None:
        self.device = processes.device
        if config.cuda_graph and self.device.type != "cuda":
            raise ValueError(f"cuda_graph: expected a CUDA device, got {self.device}")
        self.amp = amp_dtype(config.amp, self.device)
        self.graph = _Graph(self) if config.cuda_graph else None
        with nullcontext() if self.graph is None else torch.cuda.stream(self.graph.stream):
            self.net = _wrap(Objective(model, config.kl_reduction, self.amp), config, processes)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.optimizer = build_optimizer(model, config.lr, config.weight_decay)
        self.beta = torch.zeros((), device=self.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        share = config.batch_size // processes.world_size
        micro = share // config.accumulate
        first_samples = [processes.rank * share + part * micro for part in range(config.accumulate)]
        self.keys = [ops.noise_key(config.seed, 0, sample, self.device) for sample in first_samples]

    def __call__(self, batch: Batch, lr: float, beta: float) -> None:
        self.beta.fill_(beta)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        tensors = [_ready_to_copy(tensor, self.device) for tensor in (batch.images, batch.labels)]
        if self.graph is None:
            self.run(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))
        else:
            self.graph(*tensors)

    def run(self, images: Tensor, labels: Tensor) -> None:
        """The device's part: nothing in here depends on a number that the host would have to read."""
        micro_batches = zip(images.chunk(len(self.keys)), labels.chunk(len(self.keys)), self.keys, strict=True)
        for number, (micro_images, micro_labels, key) in enumerate(micro_batches, start=1):
            is_last = number == len(self.keys)  # only then DDP averages the gradients over ranks
            synchronisation = nullcontext if is_last else getattr(self.net, "no_sync", nullcontext)
            with synchronisation():
                loss = self.net(micro_images, micro_labels, key, self.beta)
                self.scaler.scale(loss.total / len(self.keys)).backward()
            with torch.no_grad():
                self.sums += torch.stack([loss.ce, loss.kl, torch.ones_like(loss.ce)]).double() / len(self.keys)
                is_first_bad = (self.bad_step < 0) & ~torch.isfinite(loss.total)
                self.bad_step.copy_(torch.where(is_first_bad, key[1], self.bad_step))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for key in self.keys:
            key[1] += 1

    @property
    def skipped(self) -> int:
        """Steps that the GradScaler left out of all so far: the optimiser counts the others itself."""
        if not self.scaler.is_enabled():
            return 0
        done = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        return int(self.keys[0][1]) - done

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on after ``step`` steps."""
        # Whether the learning rate lies on the host or on the device depends on this process, not on the checkpoint.
        own = [{name: group[name] for name in ("lr", "capturable")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, own, strict=True):
            group.update(options)
        self.scaler.load_state_dict(state["scaler"])
        for key in self.keys:
            key[1] = step


class _Graph:
    """A step as one CUDA graph: the first steps run as they are, the next is captured, the rest are replays.

    All of them are steps of training, so nothing has to be undone after the warm-up, and replays launch the kernels
    that the first steps launched: a run that resumes after an interruption is the same run.

    Attributes:
        stream: where the first steps run and DDP is set up; the default stream cannot be captured.
    """

    def __init__(self, step: TrainStep) -> None:
        self.step, self.stream = step, torch.cuda.Stream()
        self.inputs: tuple[Tensor, ...] = ()
        self.remaining = _GRAPH_WARMUP
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *batch: Tensor) -> None:
        if not self.inputs:
            self.inputs = tuple(torch.empty_like(tensor, device=self.step.device) for tensor in batch)
        for static_input, tensor in zip(self.inputs, batch, strict=True):
            static_input.copy_(tensor, non_blocking=True)
        if self.remaining > 0:
            self.remaining -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step.run(*self.inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            for group in self.step.optimizer.param_groups:
                group["capturable"] = True  # the capture requires it; a fused optimiser needs nothing else
            # Loaders copy in other threads meanwhile, so only this thread must avoid synchronising.
            gc.collect()  # the capture must not free memory of another graph
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step.run(*self.inputs)
        self.graph.replay()


def _ready_to_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory, if it has to go to a GPU: the host waits for copies from any other memory."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype that ``--amp`` means on this device; None: float32 throughout."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def _wrap(objective: Objective, config: RunConfig, processes: Processes) -> nn.Module:
    net: nn.Module = objective
    if processes.world_size > 1:
        # The one buffer, the model's own noise key, is not used in training: nothing to broadcast.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, ["model.noise_key"])
        net = DistributedDataParallel(
            objective,
            device_ids=[processes.device] if processes.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=config.accumulate == 1,
        )
    if config.compile:
        # Under DDP dynamo cuts the graph at the gradient buckets, so that they are reduced during the backward pass.
        net = torch.compile(net, fullgraph=processes.world_size == 1, dynamic=False)  # type: ignore[assignment]
    return net
