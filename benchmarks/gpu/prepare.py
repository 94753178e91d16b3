"""``python -m benchmarks gpu-prepare``: compile the kernels of the prepared run for sm_90, without a GPU; pack them.

Triton believes in a driver that knows its target and nothing else. Launches become `warmup`, which compiles with the
very key of the launch. What is compiled goes into cache.UNPACKED, and from there into FOLDER/triton-cache.tar.gz.
With --check the packed cache is unpacked again, and everything must be found in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.gpu import cache
from benchmarks.recording import git

ARCHITECTURE = 90


def main(typed: Sequence[str]) -> int:
    """Compile and pack, then check in a fresh process; or check alone."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu-prepare", description="Compile for sm_90 and pack.")
    parser.add_argument("--out", type=Path, default=cache.FOLDER, help="folder to carry (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="unpack what was packed, and look everything up in it")
    parser.add_argument("--unpacked", type=Path, default=cache.UNPACKED, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(typed)
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ |= {"TRITON_CACHE_DIR": str(options.unpacked), "CUDA_VISIBLE_DEVICES": ""}
    if options.check:
        state = cache.open_packed(options.out)
        print(" ".join(f"{key} {value}" for key, value in state.row.items()))
        if state.row["cache"] != "valid":
            return 1
    else:
        os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # a third of the bytes; no part of the key
    hits, misses, failed, seconds = compile_all(options.only)
    print(f"{hits} hits, {misses} misses, {len(failed)} failed, {seconds:.0f} s", flush=True)
    for label, error in failed:
        print(f"  {label}: {error}")
    if options.check:
        return 1 if misses or failed else 0
    import triton

    facts = {
        "kernels": hits + misses,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "architecture": ARCHITECTURE,
        "git_revision": git("rev-parse", "--short=12", "HEAD"),
    }
    made = cache.pack(options.out, options.unpacked, facts)
    print(f"packed {made['kernels']} kernels, {made['bytes'] / 2**20:.1f} MiB, triton {made['triton_hash'][:12]}")
    check = [sys.executable, "-m", "benchmarks", "gpu-prepare", "--check", "--out", str(options.out)]
    check += ["--unpacked", str(options.unpacked), "--only", options.only]
    return max(1 if failed else 0, subprocess.run(check).returncode)


def compile_all(only: str) -> tuple[int, int, list[tuple[str, str]], float]:
    """(hits, misses, failures, seconds) of everything whose label contains `only`."""
    from triton import knobs

    from benchmarks.gpu import lines

    counts = {True: 0, False: 0}

    def count(*, cache_hit: bool, **_: object) -> None:
        counts[cache_hit] += 1

    knobs.compilation.listener = count
    pretend()
    failed = []
    begin = time.monotonic()
    for label, work in jobs():
        if only not in label:
            continue
        try:
            work()
        except Exception as error:  # the run compiles it again and says the same
            failed.append((label, lines.short(error)))
    return counts[True], counts[False], failed, time.monotonic() - begin


def pretend() -> None:
    """A device of ARCHITECTURE for Triton and for the host side of our kernels; launches compile and do no more."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from ibvit_kernels.bottleneck import host

    target = GPUTarget("cuda", ARCHITECTURE, 32)
    driver.set_active(
        SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 0, get_current_target=lambda: target)
    )  # type: ignore[arg-type]
    run = JITFunction.run

    def warmup(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = warmup  # type: ignore[method-assign]
    host.architecture = lambda _: ARCHITECTURE  # type: ignore[assignment]
    host.multiprocessors = lambda _: 132  # type: ignore[assignment]


def jobs() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, what launches) of all that the parts launch. Keys know nothing of batch and number of tokens."""
    from benchmarks.gpu import shapes

    checked = [(f"{name} {dtype}", shapes.MODELS[name].shape, dtype) for name, dtype in shapes.CHECKED]
    for label, shape, dtype in [*checked, ("digits fp32", shapes.DIGITS, "fp32")]:
        yield label, partial(bottleneck, shape, shapes.DTYPES[dtype])
    yield "tiles", tiles
    for d in (*shapes.FORM_DIMENSIONS, shapes.NMI_DIMENSIONS):
        for form in shapes.FORMS:
            for count in (1, 2):
                yield f"mixture {form} d={d} channels={count}", partial(sums, d, form, count)


def bottleneck(shape: Any, dtype: Any) -> None:
    """Every launch of a forward and backward pass."""
    from benchmarks.gpu.launches import Layer

    for launch in Layer(shape, dtype, 2, 16, 0).launches().values():
        launch()


def tiles() -> None:
    """Every candidate of a tile."""
    from benchmarks.gpu import shapes
    from benchmarks.gpu.launches import Layer
    from benchmarks.gpu.tiles import backward_candidates

    layer = Layer(shapes.VIT_TINY, shapes.DTYPES["bf16"], 2, 16, 0)
    for tile in shapes.FORWARD_TILES:
        layer.forward_with(tile)()
    for launches in backward_candidates():
        for work in layer.backward_with(launches):
            work()


def sums(d: int, form: str, count: int) -> None:
    """Launch a mixture's kernels; what they would have computed is not looked at.

    Nothing was written by kernels that only compile, so sums may be any number: the careful recomputation that
    uncertain samples get needs no kernel.
    """
    import torch

    from benchmarks.problems import NO_PAIRS, channel, draw
    from ibvit_kernels.mixture import layouts
    from ibvit_kernels.mixture.host import Mixture

    pairs = NO_PAIRS if count == 1 else torch.tensor([[0, 1]])
    for sigma, spread in ((1.0, 0.2), (0.05, 40.0)):  # fused differences, and others
        channels = [channel(d, 600, sigma, spread, seed=i) for i in range(count)]
        drawn = [draw(mu, logvar, 64, seed=5 + i) for i, (mu, logvar) in enumerate(channels)]
        mixture = Mixture([mu for mu, _ in channels], [v for _, v in channels], form)  # type: ignore[arg-type]
        for fused in (True, False):
            patched = layouts._fused_error
            layouts._fused_error = lambda _, fused=fused: 0.0 if fused else 1.0  # type: ignore[assignment]
            mixture._layouts.clear()
            mixture.log_sums([u for u, _ in drawn], list(range(count)), [r for _, r in drawn], pairs)
            layouts._fused_error = patched
        if form != "direct":
            return
