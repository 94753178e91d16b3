"""`ibvit report`: one HTML file to explore runs with, opened from disk, without a network."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ibvit.analysis.records import Records
from ibvit.figures.report_data import report_data
from ibvit.files import write_text


def render(data: Mapping[str, Any]) -> str:
    """The page for `report_data`; the data travels compressed inside it."""
    page = files("ibvit.figures") / "page"
    document = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    packed = base64.b64encode(gzip.compress(document.encode(), mtime=0)).decode()
    html = (page / "report.html").read_text()
    for mark, text in (
        ("{{title}}", escape(f"{data['data']}: {len(data['runs'])} runs")),
        ("{{style}}", (page / "report.css").read_text()),
        ("{{charts}}", (page / "charts.js").read_text()),
        ("{{script}}", (page / "report.js").read_text()),
        ("{{data}}", packed),
    ):
        html = html.replace(mark, text)
    return html


def write_report(runs: Sequence[Records], out: str | Path, **options: Any) -> Path:
    """Measure runs (in the order of `open_runs`) and write the page; options as in `report_data`."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(report_data(runs, **options)))
    return path
