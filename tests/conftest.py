"""What all tests share: one thread, Triton's interpreter without a GPU, and a reason for tests that need one."""

from __future__ import annotations

import os

import pytest
import torch

from ibvit_kernels import why_no_triton

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which any test may do first
    if why_no_triton() is None:
        from tests.kernels import interpreter  # noqa: F401  (products as tensor cores compute them)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, none is here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
