"""What some tests need and some machines lack."""

from __future__ import annotations

import pytest

from ibvit_kernels import library

needs_library = pytest.mark.skipif(library.why_absent() is not None, reason=f"no CPU library: {library.why_absent()}")
