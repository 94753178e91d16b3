"""The process group of a torchrun job; one process is the case without one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; use as a context manager.

    Attributes:
        rank, world_size: as torchrun set them; 0 and 1 without it.
        device: where this process computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls, device: str = "auto") -> Processes:
        """Read torchrun's environment and take this process's device.

        Raises:
            ValueError: the device does not exist here.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch_device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device: expected auto, cpu, cuda or cuda:<index>, got {device!r}") from error
        if torch_device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: expected auto, cpu, cuda or cuda:<index>, got {device!r}")
        if torch_device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError(
                    f"device: expected a device of this machine, got {device!r}, but CUDA is not available"
                )
            if torch_device.index is None:
                torch_device = torch.device("cuda", local_rank)
            if torch_device.index >= torch.cuda.device_count():
                raise ValueError(f"device: expected one of {torch.cuda.device_count()} GPUs, got {torch_device}")
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), local_rank, torch_device)

    def __enter__(self) -> Processes:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            device = self.device if backend == "nccl" else None
            if int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == self.world_size:
                store = _store_of_this_attempt()
                dist.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.world_size, device_id=device
                )
            else:
                dist.init_process_group(backend, device_id=device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world_size > 1:
            if self.device.type == "cpu":
                time.sleep(0.1)  # gloo of torch 2.6 deadlocks if it still frees a reduction, which takes the GIL
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: Tensor) -> Tensor:
        """Largest over ranks, element by element."""
        if self.world_size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def gather(self, value: Any) -> list[Any]:
        """``value`` of each rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def _store_of_this_attempt() -> dist.Store:
    """torchrun's store, with the keys of this attempt apart from those of attempts before a restart.

    torchrun uses the same store after a restart (seen with torch 2.15), and a process that starts early reads the
    address of a peer that has ended. On several nodes the attempts are counted by each node for itself, so there the
    store stays as torch gives it.
    """
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
