"""Makes timm know ibvit's models, whichever of the two is imported first, without importing either."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register_with_timm() -> None:
    """Import :mod:`ibvit.models`, which registers the models: now if timm is loaded, else as soon as it is."""
    if "timm" not in sys.modules:
        sys.meta_path.insert(0, _AfterTimm())
    elif sys.modules["timm"] is not None:
        import_module("ibvit.models")


class _AfterTimm(MetaPathFinder):
    """Lets the first import of timm be followed by that of :mod:`ibvit.models`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module("ibvit.models")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
