"""What all tests share: one thread, and a reason for those that need a GPU."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, none is here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
