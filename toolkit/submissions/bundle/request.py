"""What a bundle is asked for: the rows of a hidden test set, the images they are about, and the file that they go into."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import Ints
from toolkit.core.predictions import Predictions
from toolkit.core.targets import LONG_FORMS, split_pairs
from toolkit.errors import CompetitionError, DataError, few
from toolkit.images import decode
from toolkit.images.boxes import Box, BoxTable, unknown
from toolkit.submissions.bundle.contents import Recipe, Wanted
from toolkit.submissions.form import cells
from toolkit.submissions.form.cells import CELLS, Column
from toolkit.workspace import path_patterns
from toolkit.workspace.competition_toml import CompetitionFile


class NoBoxesError(DataError):
    """Nothing says where the test images' boxes of that `name` are."""

    def __init__(self, name: str) -> None:
        super().__init__(f"nothing says where the boxes {name!r} of the test images are", code="bundle-boxes")
        self.name = name


@dataclass(frozen=True)
class Asked:
    """The files of one run: the folder of test images, the sample, the table of the images and of boxes by name, the output."""

    test: Path
    output: Path
    sample: Path | None = None
    table: Path | None = None
    boxes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Rows:
    """A table of text."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def column(self, name: str, where: object) -> list[str]:
        """One column's cells.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.header:
            raise DataError(f"{where} has no column {name!r}; it has {few(self.header, limit=12)}")
        place = self.header.index(name)
        return [row[place] for row in self.rows]


@dataclass(frozen=True, eq=False)
class Sheet(Rows):
    """The rows of a submission: for each the id it is about and (in the long forms) the class number."""

    ids: tuple[str, ...]
    places: Ints

    @property
    def once(self) -> tuple[str, ...]:
        """Every id once, in order."""
        return tuple(dict.fromkeys(self.ids))


@dataclass(frozen=True, eq=False)
class Request:
    """All that a run knows: what to predict with, the rows that are wanted, the image files and where the answer goes."""

    folder: Path
    wanted: Wanted
    sheet: Sheet
    columns: tuple[Column, ...]
    paths: tuple[str, ...]
    boxes: Mapping[str, Sequence[Box | None]]
    output: Path


def read_request(folder: Path, recipe: Recipe, asked: Asked) -> Request:
    """What a bundle in that folder is asked for.

    Raises:
        DataError: a table that cannot be read or does not fit, ids or boxes that nothing names.
        CompetitionError: the bundle's competition.toml cannot be read.
        ImageError: the folder of images cannot be listed.
    """
    competition = CompetitionFile.read(folder)
    key, pattern = competition.sample_id, competition.test.pattern
    columns = tuple(column.column(competition) for column in recipe.fields)
    table = read_rows(asked.table) if asked.table else None
    if asked.sample:
        sheet = read_sample(asked.sample, key, recipe.header, recipe.form, columns)
    else:
        ids = table.column(key, asked.table) if table else _ids_of(asked.test, pattern, key)
        sheet = of_ids(list(dict.fromkeys(ids)), key, recipe.header, recipe.form)
    if table is None:
        table = Rows((key,), [[name] for name in sheet.once]) if recipe.form in LONG_FORMS else sheet
    names = table.column(key, asked.table or asked.sample)
    images = _images(table, names, sheet.once, pattern, asked.test)
    owner = np.array([row for row, _, _ in images], dtype=np.int64)
    by_row = _all_boxes(competition, recipe, table, names, asked.boxes)
    boxes = {name: [rows[number] for _, number, _ in images] for name, rows in by_row.items()}
    paths = tuple(path for _, _, path in images)
    return Request(folder, Wanted(recipe, competition, sheet.once, owner), sheet, columns, paths, boxes, asked.output)


def write_submission(path: Path, sheet: Sheet, form: str, columns: Sequence[Column], tables: Mapping[str, Predictions]) -> None:
    """Fill the sheet's value columns with predictions, which hold its ids, and write it: the old file or the whole new one.

    Raises:
        StoreError: it cannot be written.
    """
    contents: list[Any] = [[row[place] for row in sheet.rows] for place in range(len(sheet.header))]
    for column in columns:
        table = tables[column.target.name]
        place = {name: row for row, name in enumerate(table.ids)}
        rows = np.array([place[name] for name in sheet.ids], dtype=np.int64)
        contents[sheet.header.index(column.name)] = texts(form, column, table, rows, sheet.places)
    files.write_rows(path, [sheet.header, *zip(*contents, strict=True)])


def texts(form: str, column: Column, table: Predictions, rows: Ints, places: Ints) -> list[str]:
    """One column's text: of row `rows[i]` of the predictions, in the long forms of class `places[i]`."""
    base = form.partition(":")[0]
    if base in LONG_FORMS:
        assert table.values is not None
        return cells.numbers(table.values[rows, places]).texts()
    by_row = CELLS[base](column, table).texts()
    return [by_row[row] for row in rows.tolist()]


def read_rows(path: Path) -> Rows:
    """A CSV file, every cell as text, where there is no pandas.

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
    return Rows(header, rows)


def read_sample(path: Path, key: str, header: Sequence[str], form: str, columns: Sequence[Column]) -> Sheet:
    """The sample submission of the hidden test set, which must have the columns of the one that the bundle was made with.

    Raises:
        DataError: it cannot be read, has other columns, or repeats a row.
    """
    table = read_rows(path)
    if sorted(table.header) != sorted(header):
        raise DataError(
            f"{path} has the columns {few(table.header, limit=12)}, the bundle was made for {few(header, limit=12)}"
        )
    ids, places = _pairs(table, key, form, columns[0])
    if form in LONG_FORMS and (places < 0).any():
        raise DataError(f"{path}: {int((places < 0).sum()):,} rows name no class, as in line {int(places.argmin()) + 2}")
    if len(set(zip(ids, places.tolist(), strict=True))) != len(ids):
        raise DataError(f"{path} repeats rows of column {key!r}")
    return Sheet(table.header, table.rows, tuple(ids), places)


def _pairs(table: Rows, key: str, form: str, column: Column) -> tuple[list[str], Ints]:
    """The id of every row and, in the long forms, its class number; -1 where it has none."""
    names, classes = table.column(key, "the sample"), column.target.classes
    if form == "joined":
        return split_pairs(names, classes)
    place = {name: number for number, name in enumerate(classes)} if form == "long" else {}
    words = table.column(column.by, "the sample") if form == "long" else names
    return names, np.array([place.get(word, -1) for word in words], dtype=np.int64)


def of_ids(ids: Sequence[str], key: str, header: Sequence[str], form: str) -> Sheet:
    """What stands for the sample where there is none: a row per id.

    Raises:
        DataError: in the long forms the order of rows is the sample's to say.
    """
    if form in LONG_FORMS:
        raise DataError(f"format {form!r} needs the sample submission", code="bundle-sample")
    rows = [[name if column == key else "" for column in header] for name in ids]
    return Sheet(tuple(header), rows, tuple(ids), np.full(len(ids), -1, dtype=np.int64))


def _images(table: Rows, names: Sequence[str], ids: Sequence[str], pattern: str, folder: Path) -> list[tuple[int, int, str]]:
    """(row of the submission, row of the table, file) of every image, in the submission's order."""
    try:
        path_patterns.require(pattern, table.header, "the rows that name the test images")
    except CompetitionError as error:
        raise DataError(error.message, hint=error.hint, code="bundle-table") from error
    place = {name: row for row, name in enumerate(ids)}
    find = path_patterns.finder(folder)
    images = []
    for number, (name, row) in enumerate(zip(names, table.rows, strict=True)):
        pieces = path_patterns.fill(pattern, dict(zip(table.header, row, strict=True)))
        matches = find(pieces) or ["*".join(pieces)]
        images += [(place[name], number, str(folder / file)) for file in matches if name in place]
    return sorted(images, key=lambda image: image[0])


def _all_boxes(
    competition: CompetitionFile, recipe: Recipe, table: Rows, ids: Sequence[str], given: Mapping[str, str]
) -> dict[str, list[Box | None]]:
    """By name, the box of every row of the table; `given` are tables of their own."""
    names = sorted({model.read_card.preprocess.box for model in recipe.models} - {""})
    for name, file in given.items():
        if name not in names or not file:
            there = few(names) if names else "none"
            raise DataError(f"boxes {name}{f'={file}' if file else ''}: the models look into {there}", code="bundle-boxes")
    return {name: _boxes(competition, name, table, ids, given) for name in names}


def _boxes(
    competition: CompetitionFile, name: str, table: Rows, ids: Sequence[str], given: Mapping[str, str]
) -> list[Box | None]:
    """The box of every row of the table, from its own columns or those of a table of boxes."""
    columns = competition.boxes_of.get(name)
    if columns is None:
        raise unknown(name, list(competition.boxes_of))
    if name not in given and set(columns.columns) <= set(table.header):
        four_cells = _cells(table, columns, "the table")
        return [columns.box(four, f"row {row_id!r}") for row_id, four in zip(ids, four_cells, strict=True)]
    if name not in given:
        raise NoBoxesError(name)
    file = given[name]
    boxes = read_rows(Path(file))
    key = competition.sample_id if competition.sample_id in boxes.header else competition.id
    by_id = dict(zip(boxes.column(key, file), _cells(boxes, columns, file), strict=True))
    if missing := [row_id for row_id in ids if row_id not in by_id]:
        raise DataError(f"{file} has no row for {len(missing):,} ids: {few(missing)}")
    return [columns.box(by_id[row_id], f"{file}, {row_id!r}") for row_id in ids]


def _cells(table: Rows, columns: BoxTable, where: object) -> list[tuple[str, ...]]:
    return list(zip(*(table.column(column, where) for column in columns.columns), strict=True))


def _ids_of(folder: Path, pattern: str, key: str) -> list[str]:
    """The ids that the files of a folder stand for, where the pattern says no more than that."""
    plain = re.fullmatch(r"([^{}*]*)\{" + re.escape(key) + r"\}([^{}*]*|\.\*)", pattern)
    if not plain:
        raise DataError(f"the ids cannot be told from files named {pattern!r}", code="bundle-sample")
    before, after = plain.groups()
    end = r"\.[^./]+" if after == ".*" else re.escape(after)
    names = [path.relative_to(folder).as_posix() for path in decode.find(folder)]
    matches = [re.fullmatch(f"{re.escape(before)}(.+){end}", name) for name in names]
    return [match[1] for match in matches if match]
