"""Benchmarks run at toy size; their results follow one schema, and tables in documents show what the results say."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import host_time
from benchmarks.__main__ import main
from benchmarks.bottleneck import layers, looped, saved_bytes
from benchmarks.catalogue import CATALOGUE
from benchmarks.gpu.report import PREFIX
from benchmarks.gpu.run import PARTS
from benchmarks.recording import RESULTS, Benchmark, Case, Document, Row, document, read, validate, write
from benchmarks.step_graph import eager_launches, fused_launches, trace
from benchmarks.tables import DOCUMENTS, MARKED, TABLES, digits, generated

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", CATALOGUE)
def test_runs_at_toy_size(name: str) -> None:
    reason = CATALOGUE[name].why_not()
    if reason is not None:
        pytest.skip(reason)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name],
        cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and entry.sentence in shown for name, entry in CATALOGUE.items())
    assert main(["absent"]) == 2
    assert "expected one of bottleneck, " in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_result_files_follow_the_schema(path: Path, tmp_path: Path) -> None:
    found = read(path)
    assert found["name"] in {*CATALOGUE, *(PREFIX + part.name for part in PARTS)}
    assert write(found, tmp_path).name == path.name
    assert (tmp_path / path.name).read_text() == path.read_text()


def a_document(**changes: object) -> Document:
    row = {"median_ms": 1.23456789, "min_ms": 1.0, "max_ms": None, "ratio_to_full": 2.0}
    return document("host-time", Benchmark("a test", [], {"ratio_to_full": "lower"}), "", [row], []) | changes


def test_numbers_are_rounded_when_written(tmp_path: Path) -> None:
    path = write(a_document(device="NVIDIA H200"), tmp_path)
    assert path.name == "h200-host-time.json"
    assert read(path)["rows"][0]["median_ms"] == 1.23457
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"MB saved": 1}], "snake_case"),
        ([{"time": 1.5}], "ends in a unit"),
        ([{"ms": float("nan")}], "finite"),
        ([{"ms": [1.0]}], "a string, number, bool or null"),
        ([{"ratio_to_none": 1.0}], "an entry for ratio_to_none"),
        ([{"median_ms": 1.0}], "minimum and maximum"),
    ],
)
def test_rows_that_break_the_schema(rows: list[Row], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(a_document(rows=rows))


def test_documents_that_break_the_schema() -> None:
    validate(a_document())
    with pytest.raises(ValueError, match="threads: expected int or NoneType, got '2'"):
        validate(a_document(threads="2"))
    with pytest.raises(ValueError, match="expected the keys"):
        validate(a_document(results=[]))
    with pytest.raises(ValueError, match="expected lower or higher"):
        validate(a_document(better={"ratio_to_full": "more"}))


def test_a_case_that_fails_leaves_the_rows_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Row]:
        raise ValueError("as it should")

    cases = [Case("good", lambda: [{"ms": 1.0}]), Case("bad", fails), Case("last", lambda: [{"ms": 2.0}])]
    monkeypatch.setattr(host_time, "benchmark", lambda full: Benchmark("a test", cases, measured=False))
    monkeypatch.setitem(CATALOGUE, "host-time", CATALOGUE["host-time"]._replace(why_not=lambda: None))
    threads = torch.get_num_threads()
    assert main(["host-time", "--full", "--results", str(tmp_path)]) == 1
    assert torch.get_num_threads() == threads
    found = read(tmp_path / "host-time.json")
    assert found["failed"] == ["bad"]
    assert [row["ms"] for row in found["rows"]] == [1.0, 2.0]
    assert found["command"] == f"python -m benchmarks host-time --full --results {tmp_path}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_show_the_results(path: Path) -> None:
    text = path.read_text()
    assert generated(text) == text, "run `python -m benchmarks tables`"


def test_every_table_is_shown() -> None:
    shown = [name for path in DOCUMENTS for _, name, _ in MARKED.findall(path.read_text())]
    assert sorted(shown) == sorted(TABLES)


def test_significant_digits() -> None:
    values = {(0.0, 2): "0", (0.000245, 1): "0.0002", (0.8474, 3): "0.847", (9.43, 2): "9.4", (50.5, 3): "50.5",
              (99.96, 3): "100", (38484.1, 3): "38,500", (100.0, 3): "100", (3.0, 2): "3.0"}  # fmt: skip
    assert {key: digits(*key) for key in values} == values


def test_saved_bytes_of_the_loop_exceed_those_of_its_input() -> None:
    problem = layers(2, 5)[0]
    assert saved_bytes(looped, problem) > problem.y.numel() * problem.y.element_size()


def test_counts_are_those_of_the_definition() -> None:
    """One block: FLOP by the formulas, fusing moves less, and the fused kernels less again."""
    tokens, width, mlp, patch, classes = 196, 192, 768, 768, 100
    products = tokens * (3 * width * width + width * width + 2 * width * mlp)
    attention = tokens * tokens * width
    embedding, head = tokens * patch * width, width * classes
    expected = 2.0 * (3 * products + (2 + 5) * attention + 2 * embedding + 3 * head)
    counted = partial(trace, batch=2, depth=1)
    eager = eager_launches(counted("full", fuse=False))
    assert sum(launch.flops for launch in eager) == pytest.approx(2 * expected, rel=1e-6)
    fused = fused_launches(counted("full", fuse=True))
    assert sum(launch.flops for launch in fused) == sum(launch.flops for launch in eager)
    assert sum(launch.bytes for launch in fused) < sum(launch.bytes for launch in eager)
    plain, ours = (fused_launches(counted("ib", fuse=True, impl=impl)) for impl in ("reference", "triton"))
    assert sum(launch.bytes for launch in ours) < sum(launch.bytes for launch in plain)
