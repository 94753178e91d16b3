"""The prepared run: it ends whatever its parts do, what was measured is kept, and its cache hits after a move."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import cache, lines
from benchmarks.gpu.report import documents, main
from benchmarks.gpu.run import PARTS, PRINTED, Part, run
from benchmarks.recording import read, validate
from ibvit_kernels import why_no_triton

ROOT = Path(__file__).parents[1]
FAILING = Part("failing", "tests.gpu_parts.failing", 60, "")
SLEEPING = Part("sleeping", "tests.gpu_parts.sleeping", 12, "")
needs_triton = pytest.mark.skipif(why_no_triton() is not None, reason=str(why_no_triton()))


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m benchmarks …` of this checkout, without what the suite has set for Triton."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = os.pathsep.join([".", "kernels", kept.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, text=True,
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kinds(folder: Path, part: str) -> list[str]:
    return [line["kind"] for line in lines.read(folder) if line["part"] == part]


@needs_triton
def test_every_part_ends_in_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command("gpu-run", "--out", str(tmp_path), "--dry") as process:
        printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed + (tmp_path / "log.txt").read_text()[-3000:]
    assert len(printed) <= PRINTED
    for part in PARTS:
        found = kinds(tmp_path, part.name)
        assert found[0] == "begin"
        assert found[-1] == "ended"
        assert len(found) > 2, part.name
    wrong = [line for line in lines.read(tmp_path) if line.get("right") is False]
    assert not wrong
    with pytest.raises(ValueError, match="an NVIDIA GPU"):
        documents(lines.read(tmp_path))
    assert main([str(tmp_path), "--any-device", "--results", str(tmp_path / "results")]) == 0
    made = [read(path) for path in (tmp_path / "results").glob("*.json")]
    assert {document["name"] for document in made} == {f"gpu-{part.name}" for part in PARTS}
    assert not any(document["failed"] for document in made)


def test_a_part_that_fails_or_outlasts_its_limit_does_not_stop_the_rest(tmp_path: Path) -> None:
    facts = lines.recorder(tmp_path, "facts")
    facts("device", device="NVIDIA H100", git_revision=None, git_dirty=None, threads=1)
    facts("versions", python="3.12.1")
    step = FAILING._replace(name="step")
    assert run([step, SLEEPING._replace(name="tiles"), FAILING], tmp_path, 10, dry=True) == 1
    assert kinds(tmp_path, "step") == ["begin", "row", "case failed", "row", "error", "failed"]
    assert kinds(tmp_path, "tiles") == ["begin", "row", "over its limit"]
    assert kinds(tmp_path, "failing")[-1] == "failed"
    made = {document["name"]: document for document in documents(lines.read(tmp_path))}
    assert made["gpu-step"]["failed"] == ["bad"]
    assert made["gpu-step"]["rows"] == [{"ms": 1.0}, {"ms": 2.0}]
    assert made["gpu-tiles"]["failed"] == ["tiles: over its limit"]
    assert made["gpu-tiles"]["device"] == "NVIDIA H100"
    for document in made.values():
        validate(document)


def test_no_part_begins_when_the_minutes_are_over(tmp_path: Path) -> None:
    assert run([FAILING], tmp_path, 0, dry=True) == 1
    assert kinds(tmp_path, "failing") == ["left out"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes")
def test_a_kill_keeps_what_was_measured(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from benchmarks.gpu.run import *; from tests.test_gpu_run import *; "
        f"run([FAILING, SLEEPING, FAILING], Path({str(tmp_path)!r}), None, dry=True)"
    )
    path = os.pathsep.join([".", "kernels", os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 120
        while "row" not in kinds(tmp_path, "sleeping"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.terminate()  # as a time limit does; the part is ended too
        process.wait(30)
    assert process.returncode == 128 + signal.SIGTERM
    assert [line["ms"] for line in lines.read(tmp_path) if line["kind"] == "row"] == [1.0, 2.0, 3.0]


def test_a_line_that_a_kill_cut_costs_only_itself(tmp_path: Path) -> None:
    record = lines.recorder(tmp_path, "facts")
    record(ms=1.0)
    with (tmp_path / lines.NAME).open("a") as file:
        file.write('{"part": "facts", "ms": 2.')
    record(ms=3.0, share=float("nan"))
    assert [line["ms"] for line in lines.read(tmp_path)] == [1.0, 3.0]
    assert lines.read(tmp_path)[-1]["share"] == "nan"


@needs_triton
def test_a_packed_cache_hits_where_it_is_unpacked(tmp_path: Path) -> None:
    packed, unpacked = tmp_path / "packed", tmp_path / cache.UNPACKED.name
    options = (
        "gpu-prepare",
        "--out",
        str(packed),
        "--unpacked",
        str(unpacked),
        "--only",
        "mixture screen d=1 channels=1",
    )
    with command(*options) as process:
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    first, checked = re.findall(r"(\d+) hits, (\d+) misses, 0 failed", printed)
    assert int(first[1]) > 0
    assert (int(checked[0]), int(checked[1])) == (int(first[0]) + int(first[1]), 0)  # in a fresh process, unpacked
    shutil.rmtree(unpacked)
    state = cache.open_packed(packed)
    assert (state.row["cache"], state.environment["TRITON_CACHE_DIR"]) == ("valid", str(unpacked))
    manifest = json.loads((packed / cache.MANIFEST).read_text())
    for change, reason in (
        ({"triton_hash": "0" * 64}, "another triton"),
        ({"packed_sha256": "0" * 64}, "is not what was packed"),
        ({"unpacked": str(tmp_path)}, "unpacks to"),
    ):
        (packed / cache.MANIFEST).write_text(json.dumps(manifest | change))
        state = cache.open_packed(packed)
        assert state.row["cache"] == "invalid"
        assert reason in state.row["reason"]


def test_no_packed_cache_is_no_error(tmp_path: Path) -> None:
    state = cache.open_packed(tmp_path)
    assert state.row["cache"] == "none"
    assert state.environment == {"TRITON_CACHE_DIR": str(cache.UNPACKED)}
