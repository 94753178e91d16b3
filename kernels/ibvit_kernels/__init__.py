"""Fast implementations of ibvit's operations: Triton kernels, and the loader of the CPU library built from csrc/."""

from __future__ import annotations

from importlib.util import find_spec


def why_no_triton(capability: tuple[int, int] | None = None) -> str | None:
    """Why the Triton kernels cannot be compiled for a GPU of this compute capability (None: any); None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version < (3, 6):
        return f"the kernels need triton 3.6 or newer, got {triton.__version__}"
    if capability is not None and capability >= (10, 0) and version < (3, 9):
        return f"compute capability {capability[0]}.{capability[1]} needs triton 3.9 or newer, got {triton.__version__}"
    return None
