"""Where measurements on a GPU are written, and the peaks that shares and floors refer to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COPY_BANDWIDTH, TENSOR_FLOPS = 4.3e12, 790e12  # an H200's, measured: bytes/s and bf16 FLOP/s
RESULTS = Path(__file__).parent / "results"


def write_results(found: dict[str, Any], what: str) -> None:
    """results/<device>-<what>.json; ``found["device"]`` is the GPU's name."""
    RESULTS.mkdir(exist_ok=True)
    name = found["device"].lower().replace("nvidia ", "").replace(" ", "-")
    (RESULTS / f"{name}-{what}.json").write_text(json.dumps(found, indent=1) + "\n")
