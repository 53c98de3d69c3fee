"""Submissions in a bundle, where there is no pandas: the sample read and the rows written with the csv module."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files
from toolkit.base.arrays import Ints
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import DataError, few
from toolkit.workspace import long_form


@dataclass(frozen=True)
class Field:
    """What one column of a submission holds, as `formats.Column` says it, with the target by name."""

    name: str
    target: str
    part: str = ""
    k: int = 0
    by: str = ""


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table of text: its header, its rows, and for each row the id it is about and (in the long forms) the class number."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    ids: tuple[str, ...]
    places: Ints

    @property
    def once(self) -> tuple[str, ...]:
        """Every id once, in order."""
        return tuple(dict.fromkeys(self.ids))


def read(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """The header and the rows of a CSV file, every cell as text.

    Raises:
        DataError: not there, not text, empty, or a row of another length than the header.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    header = tuple(rows.pop(0))
    if odd := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise DataError(f"{path}: {len(odd):,} rows have another number of cells than the header, the first in line {odd[0]}")
    return header, rows


def sample(path: Path, key: str, header: Sequence[str], form: str, fields: Sequence[Field], targets: Sequence[Target]) -> Sheet:
    """The sample submission of the hidden test set, which must have the columns of the one that the bundle was made with.

    Raises:
        DataError: it cannot be read, has other columns, or repeats a row.
    """
    found, rows = read(path)
    if set(found) != set(header) or len(found) != len(header):
        raise DataError(f"{path} has the columns {few(found, limit=12)}, the bundle was made for {few(header, limit=12)}")
    cells = [row[found.index(key)] for row in rows]
    places = np.full(len(rows), -1, dtype=np.int64)
    classes = targets[0].classes
    if form == "joined":
        ids, places = long_form.split(cells, classes)
    else:
        ids = cells
    if form == "long":
        place = {name: i for i, name in enumerate(classes)}
        places = np.array([place.get(row[found.index(fields[0].by)], -1) for row in rows], dtype=np.int64)
    if form in long_form.NAMES and (places < 0).any():
        raise DataError(f"{path}: {int((places < 0).sum()):,} rows name no class, as in line {int(places.argmin()) + 2}")
    if len(set(zip(ids, places.tolist(), strict=True))) != len(ids):
        raise DataError(f"{path} repeats rows of column {key!r}")
    return Sheet(found, rows, tuple(ids), places)


def of_ids(ids: Sequence[str], key: str, header: Sequence[str], form: str) -> Sheet:
    """What stands for the sample where there is none: a row per id.

    Raises:
        DataError: in the long forms the order of rows is the sample's to say.
    """
    if form in long_form.NAMES:
        raise DataError(f"format {form!r} needs the sample submission", hint="Name it with --sample FILE.")
    rows = [[name if column == key else "" for column in header] for name in ids]
    return Sheet(tuple(header), rows, tuple(ids), np.full(len(ids), -1, dtype=np.int64))


def write(
    path: Path, sheet: Sheet, form: str, fields: Sequence[Field], tables: Mapping[str, Predictions], targets: Sequence[Target]
) -> None:
    """Fill the sheet's value columns with predictions, which hold its ids, and write it: the old file or the whole new one.

    Raises:
        StoreError: it cannot be written.
    """
    known = {target.name: target for target in targets}
    columns: list[Any] = [[row[i] for row in sheet.rows] for i in range(len(sheet.header))]
    for field in fields:
        table = tables[field.target]
        place = {name: i for i, name in enumerate(table.ids)}
        rows = np.array([place[name] for name in sheet.ids], dtype=np.int64)
        columns[sheet.header.index(field.name)] = cells(form, field, known[field.target], table, rows, sheet.places)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sheet.header)
    writer.writerows(zip(*columns, strict=True))
    files.write_text(path, text.getvalue())


def cells(form: str, field: Field, target: Target, table: Predictions, rows: Ints, places: Ints) -> list[str]:
    """One column's text: of row `rows[i]` of the predictions, in the long forms of class `places[i]`."""
    base = form.partition(":")[0]
    if base in long_form.NAMES:
        assert table.values is not None
        return _numbers(table.values[rows, places])
    texts = CELLS[base](field, target, table)
    return [texts[row] for row in rows.tolist()]


def _numbers(values: NDArray[Any]) -> list[str]:
    """The shortest text that reads back to the same float32; adding 0 turns -0 into 0."""
    texts: list[str] = (values.astype(np.float32) + np.float32(0)).astype(str).tolist()
    return texts


def _labels(field: Field, target: Target, table: Predictions) -> list[str]:
    return _named(field, target, table, target.factors.get(field.part, target.classes))


def _indices(field: Field, target: Target, table: Predictions) -> list[str]:
    return _named(field, target, table, [str(i) for i in range(len(target.factors.get(field.part, target.classes)))])


def _named(field: Field, target: Target, table: Predictions, names: Sequence[str]) -> list[str]:
    decided = table.decided
    if table.multilabel:
        return [target.separator.join(names[i] for i in np.flatnonzero(row).tolist()) for row in decided]
    if field.part:
        sizes = [len(classes) for classes in target.factors.values()]
        decided = np.unravel_index(decided, sizes)[list(target.factors).index(field.part)]
    return [names[i] for i in decided.tolist()]


def _one_class(field: Field, _: Target, table: Predictions) -> list[str]:
    assert table.values is not None
    return _numbers(table.values[:, table.classes.index(field.part)])


def _flags(field: Field, _: Target, table: Predictions) -> list[str]:
    place = table.classes.index(field.part)
    yes = table.decided[:, place] if table.multilabel else table.decided == place
    return ["1" if flag else "0" for flag in yes.tolist()]


def _topk(field: Field, target: Target, table: Predictions) -> list[str]:
    assert table.values is not None
    values, names = table.values, target.factors.get(field.part, target.classes)
    if field.part:
        others = tuple(i + 1 for i, name in enumerate(target.factors) if name != field.part)
        values = values.reshape(-1, *(len(classes) for classes in target.factors.values())).sum(axis=others)
    best = np.argsort(-values, axis=1, kind="stable")[:, : field.k]
    return [" ".join(names[i] for i in row) for row in best.tolist()]


CELLS: dict[str, Callable[[Field, Target, Predictions], list[str]]] = {
    "labels": _labels,
    "indices": _indices,
    "flags": _flags,
    "probability": _one_class,
    "probabilities": _one_class,
    "topk": _topk,
}
