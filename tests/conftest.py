"""What all tests share: one thread, Triton's interpreter without a GPU, and a reason for tests that need one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch

from ibvit_kernels import why_no_triton

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which any test may do first
    if why_no_triton() is None:
        from tests.kernels import interpreter  # noqa: F401  (products as tensor cores compute them)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A command that a test runs in this process sets the level of the log for itself alone."""
    logger = logging.getLogger("ibvit")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, none is here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
