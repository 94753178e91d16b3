"""Run a function in fresh processes that have torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ibvit.training", "sklearn.datasets", "sklearn.model_selection"])


def _call(function: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    function(*args)


def run(function: Callable[..., Any], *args: Any, world_size: int = 1, timeout: float = 120) -> list[int | None]:
    """Exit codes of ``function(*args)`` in ``world_size`` processes; several get torchrun's environment."""
    environments: list[dict[str, str]] = [{}]
    if world_size > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environments = [
            {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }
            for rank in range(world_size)
        ]  # fmt: skip
    workers = [_CONTEXT.Process(target=_call, args=(function, args, environment)) for environment in environments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout)
        if worker.is_alive():
            worker.kill()
    return [worker.exitcode for worker in workers]
