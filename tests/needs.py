"""What some tests need and some machines lack."""

from __future__ import annotations

import pytest

from ibvit_kernels import library, why_no_triton

needs_triton = pytest.mark.skipif(why_no_triton() is not None, reason=f"no Triton kernels: {why_no_triton()}")
needs_library = pytest.mark.skipif(library.why_absent() is not None, reason=f"no CPU library: {library.why_absent()}")
