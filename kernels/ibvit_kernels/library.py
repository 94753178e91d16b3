"""Loader of the CPU library that pip builds from csrc/."""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ibvit_kernels


class BottleneckSizes(ctypes.Structure):
    """`ibvit_bottleneck_sizes`."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("heads", "width", "columns", "hidden", "latent"))


def why_absent() -> str | None:
    """Why the library cannot be used, in one line; None if it can."""
    library_or_reason = _find()
    return None if isinstance(library_or_reason, ctypes.CDLL) else library_or_reason


def load() -> ctypes.CDLL:
    """The library, its functions declared as in csrc/.

    Raises:
        RuntimeError: there is no library.
    """
    library_or_reason = _find()
    if not isinstance(library_or_reason, ctypes.CDLL):
        raise RuntimeError(f"the CPU library of ibvit_kernels is not available: {library_or_reason}")
    return library_or_reason


def instruction_sets() -> list[str]:
    """Instruction sets of the library that this machine can run, the fastest first.

    Raises:
        RuntimeError: there is no library.
    """
    names: list[str] = []
    while name := load().ibvit_instruction_set(len(names)):
        names.append(name.decode())
    return names


def instruction_set_index(name: str | None) -> int:
    """The index by which the library knows an instruction set; None means the fastest.

    Raises:
        ValueError: this machine does not run it.
    """
    if name is None:
        return 0
    names = instruction_sets()
    if name not in names:
        raise ValueError(f"instruction_set: expected one of {', '.join(names)}, got {name!r}")
    return names.index(name)


def check(status: int) -> None:
    """Raise the error that a status of the library stands for."""
    if status == 1:
        raise MemoryError("the CPU library found no room for its workspace")
    if status:
        raise RuntimeError(f"the CPU library returned status {status}")


def _candidates() -> Iterator[Path]:
    """Paths of the library: in this package, and in the installed package beside a source checkout."""
    for folder in (*ibvit_kernels.__path__, f"{sysconfig.get_path('platlib')}/ibvit_kernels"):
        yield Path(folder) / "ibvit_native.so"


@cache
def _find() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    reason = "it was not built: `pip install .` builds it where there is a C++ compiler (GCC or Clang)"
    for path in _candidates():
        if path.exists():
            try:
                return _declared(ctypes.CDLL(str(path)))
            except OSError as error:
                reason = str(error)
            except AttributeError as error:
                reason = f"it is of another version ({error}); `pip install .` builds it anew"
    return reason


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Types of the functions in csrc/library.h, mixture.h and bottleneck.h; arrays are passed as addresses."""
    i32, i64, array = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    library.ibvit_instruction_set.argtypes = [i32]
    library.ibvit_instruction_set.restype = ctypes.c_char_p
    library.ibvit_mixture_packed_size.argtypes = [i64, i32]
    library.ibvit_mixture_packed_size.restype = i64
    library.ibvit_mixture_pack.argtypes = [i64, i32, array, array, array, array, i32]
    library.ibvit_mixture_log_sums.argtypes = [i64, i64, i32, *[array] * 5, i32, array, array, array, i32, i32]
    for count in (library.ibvit_bottleneck_weights, library.ibvit_bottleneck_biases):
        count.argtypes = [BottleneckSizes]
        count.restype = i64
    library.ibvit_bottleneck_pack.argtypes = [BottleneckSizes, array, array, array, i32, i32]
    library.ibvit_bottleneck_forward.argtypes = [BottleneckSizes, i64, i32, *[array] * 4, i32, array, array, i32, i32]
    library.ibvit_bottleneck_backward.argtypes = [BottleneckSizes, i64, i32, *[array] * 7, i32, array, array, i32, i32]
    return library
