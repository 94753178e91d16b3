"""Compile Triton kernels for GPUs that need not be present, and read what the machine code uses.

A kernel that spills registers or asks for more shared memory than a multiprocessor has is slow or does not launch at
all; both can be seen in the cubin, on any machine. Compilation happens in one worker process that has
`TRITON_INTERPRET` removed from its environment, so the same test session can interpret kernels and compile them;
results are remembered for the session.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

ARCHITECTURES = (80, 90, 100)
# Bytes of shared memory that one block may have (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_LIMIT = 512  # columns of tensor memory of a multiprocessor


class Usage(NamedTuple):
    """What one compiled kernel takes from a multiprocessor."""

    registers: int  # per thread
    stack: int  # bytes per thread; more than 0 means spills (or an array that is indexed at run time)
    shared: int  # bytes per block
    tensor: int  # columns of tensor memory per block, sm_100 on


Compiled = tuple[int, int, int, int, str]  # as Usage, and the disassembly


def compile_kernel(
    fn: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], options: Mapping[str, Any], arch: int
) -> Usage:
    """Compile `fn` for `sm_<arch>` and return its resource usage.

    fn: a `@triton.jit` function at the top level of an importable module.
    signature: argument name -> Triton type ("*fp32", "i64", "fp32", …) of every argument that is not a constexpr;
        pointers are taken to be aligned to 16 bytes, as torch allocates them.
    constexprs: argument name -> value.
    options: `num_warps`, `num_stages`, `maxnreg`, …
    """
    return Usage(*_submit(fn, signature, constexprs, options, arch).result()[:4])


def compile_sass(
    fn: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], options: Mapping[str, Any], arch: int
) -> str:
    """As `compile_kernel`, but return the disassembly, one instruction a line."""
    return str(_submit(fn, signature, constexprs, options, arch).result()[4])


def prefetch(
    fn: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], options: Mapping[str, Any], arch: int
) -> None:
    """Queue a compilation whose result is asked for later."""
    _submit(fn, signature, constexprs, options, arch)


def assert_fits(usage: Usage, arch: int) -> None:
    """Fail if the kernel needs more shared or tensor memory than a block of `sm_<arch>` may have."""
    assert usage.shared <= SHARED_LIMIT[arch], (
        f"sm_{arch}: {usage.shared} bytes of shared memory > {SHARED_LIMIT[arch]}"
    )
    assert usage.tensor <= TENSOR_LIMIT, f"sm_{arch}: {usage.tensor} columns of tensor memory > {TENSOR_LIMIT}"


def loops(sass: str) -> list[Counter[str]]:
    """Instructions by name, without modifiers: of the longest loop that holds no other, then of the loops around it."""
    lines = [line.split(maxsplit=1) for line in sass.splitlines()]
    names = [re.sub(r"^@!?\w+ ", "", text).split()[0].split(".")[0] for _, text in lines]
    at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    found = set()
    for i, (_, text) in enumerate(lines):
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", text)
        if target is not None and at.get(int(target[1], 16), i) < i:
            found.add((at[int(target[1], 16)], i))
    leaves = [(a, b) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]
    if not leaves:
        raise ValueError("sass: expected a listing with a loop, found none")
    first, last = max(leaves, key=lambda loop: loop[1] - loop[0])
    around = sorted((b - a, a, b) for a, b in found if a <= first and last <= b)
    return [Counter(names[a : b + 1]) for _, a, b in around]


def _submit(
    fn: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], options: Mapping[str, Any], arch: int
) -> Future[Compiled]:
    python_fn = fn.fn  # JITFunction and InterpretedFunction both keep the Python function here
    return _queued(
        python_fn.__module__,
        python_fn.__name__,
        tuple(signature.items()),
        tuple(constexprs.items()),
        tuple(options.items()),
        arch,
    )


@functools.cache
def _queued(*job: Any) -> Future[Compiled]:
    return _worker().submit(_compile, *job)


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=1, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interpreter
    )


def _leave_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def _compile(
    module: str,
    name: str,
    signature: tuple[tuple[str, str], ...],
    constexprs: tuple[tuple[str, Any], ...],
    options: tuple[tuple[str, Any], ...],
    arch: int,
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = getattr(importlib.import_module(module), name)
    types = dict(signature) | {argument: "constexpr" for argument, _ in constexprs}
    missing = set(fn.arg_names) ^ set(types)
    if missing:
        raise ValueError(f"signature and constexprs must name the arguments of {name}; these differ: {sorted(missing)}")
    types = {argument: types[argument] for argument in fn.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn, types, constexprs=dict(constexprs), attrs=aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no REG and STACK for {name}:\n{usage}")
    instructions = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)
    listing = "\n".join(f"{address} {text}" for address, text in instructions)
    return int(found[1]), int(found[2]), int(kernel.metadata.shared), int(kernel.metadata.tmem_size or 0), listing


def _cuobjdump(option: str, path: str) -> str:
    from triton import knobs

    return subprocess.run(
        [knobs.nvidia.cuobjdump.path, option, path], check=True, capture_output=True, text=True
    ).stdout
