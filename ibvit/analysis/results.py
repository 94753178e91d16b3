"""Saving and loading what an analysis found: arrays in an .npz, the rest in JSON, one CSV for spreadsheets."""

import csv
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from ibvit.arguments import one_line
from ibvit.files import write_text, written_aside


def _stem(path: str | Path) -> Path:
    """`path` without a trailing .npz, .json or .csv; dots elsewhere in the name (β = 0.1) stay."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in {".npz", ".json", ".csv"} else path


@dataclass(frozen=True)
class Result:
    """Base of the result objects: a frozen dataclass whose fields are arrays or plain JSON values.

    A subclass names its arrays with shapes and units, and says in `columns` which table belongs to its figure.

    >>> import tempfile, numpy as np
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Counts(Result):
    ...     runs: list[str]
    ...     heads: np.ndarray  # [runs]
    ...     def columns(self): return {"run": self.runs, "active heads": self.heads}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Counts(["a", "b"], np.array([1, 4])).save(folder + "/counts")
    ...     Counts.load(folder + "/counts").heads
    array([1, 4])
    """

    def columns(self) -> dict[str, Any]:
        """The table behind the figure: column name (with its unit) → values of equal length."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def save(self, stem: str | Path) -> None:
        """Write `stem`.npz, `stem`.json and `stem`.csv.

        Raises:
            ValueError: an array holds Python objects.
        """
        stem = _stem(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        facts = {name: value for name, value in values.items() if name not in arrays}
        for name, array in arrays.items():
            if array.dtype.hasobject:  # a pickle, which `load` refuses
                raise ValueError(f"{name}: expected an array of numbers or text, got {array.dtype}")
        with written_aside(Path(f"{stem}.npz")) as partial:
            np.savez_compressed(partial, **arrays)
        document = {"result": type(self).__name__, **facts}
        write_text(Path(f"{stem}.json"), json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        self.save_csv(stem)

    def save_csv(self, stem: str | Path) -> None:
        """Write `stem`.csv alone."""
        columns = {name: list(np.asarray(values)) for name, values in self.columns().items()}
        with written_aside(Path(f"{_stem(stem)}.csv")) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(map(_plain, row) for row in zip(*columns.values(), strict=True))

    @classmethod
    def load(cls, stem: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: a file is missing, or holds the result of another analysis.
        """
        stem = _stem(stem)
        for suffix in (".npz", ".json"):
            if not Path(f"{stem}{suffix}").is_file():
                raise ValueError(f"stem: {stem}{suffix} does not exist")
        facts = json.loads(Path(f"{stem}.json").read_text())
        kind = facts.pop("result", None)
        if kind != cls.__name__:
            raise ValueError(f"stem: {stem}.json holds a {kind}, expected a {cls.__name__}")
        try:
            with np.load(f"{stem}.npz", allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except Exception as error:  # numpy and zipfile each have several for a damaged file
            raise ValueError(f"stem: {stem}.npz is damaged ({one_line(error)})") from error
        return cls(**facts, **arrays)


def _plain(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, behind an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell
