"""What a bundle is asked for: the rows of a hidden test set, the images they are about, and the file that they go into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import Ints
from toolkit.core.predictions import Predictions
from toolkit.core.targets import LONG_FORMS
from toolkit.errors import CompetitionError, DataError, ImageError, ToolkitError, counted, few
from toolkit.images.boxes import Box, BoxTable, unknown
from toolkit.submissions.bundle.contents import Recipe, Wanted
from toolkit.submissions.bundle.sheet import Rows, Sheet, SheetForm, ids_of, of_ids, read_rows, read_sample
from toolkit.submissions.form import cells
from toolkit.submissions.form.cells import CELLS, SUMMED, Column
from toolkit.workspace import path_patterns, row_files
from toolkit.workspace.competition_toml import FILE, CompetitionFile
from toolkit.workspace.row_files import RowFiles


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
class Request:
    """All that a run knows: what to predict with, the rows that are wanted, the image files and where the answer goes.

    `warnings` say what was read otherwise than it stands; with `faults` some or all rows can have no more than the prior.
    """

    folder: Path
    wanted: Wanted
    sheet: Sheet
    columns: tuple[Column, ...]
    paths: tuple[str, ...]
    boxes: Mapping[str, Sequence[Box | None]]
    output: Path
    warnings: tuple[str, ...] = ()
    faults: tuple[ToolkitError, ...] = ()


def read_request(folder: Path, recipe: Recipe, asked: Asked) -> Request:
    """What a bundle in that folder is asked for; what keeps images from models is among the `faults`.

    Raises:
        DataError: no rows can be told: the sample or table cannot be read and the images do not say their ids.
        CompetitionError: the bundle's competition.toml cannot be read.
        ImageError: the folder of images, which should say the ids, cannot be listed.
    """
    competition = CompetitionFile.read(folder)
    columns = tuple(column.column(competition) for column in recipe.fields)
    faults: list[ToolkitError] = []
    table = None
    if asked.table:
        try:
            table = read_rows(asked.table)
        except DataError as error:
            faults.append(error)
    form = SheetForm(competition.sample_id, recipe.header, recipe.form, columns, slashes=recipe.slashes)
    sheet = _sheet(asked, form, table, competition.test.pattern, faults)
    notes: list[str] = []
    images: list[tuple[int, int, str]] = []
    by_row: Mapping[str, Sequence[Box | None]] = {}
    try:
        if table is None:
            plain = recipe.form in LONG_FORMS or sheet.cells is None
            table = Rows((form.key,), [[name] for name in sheet.once]) if plain or sheet.cells is None else sheet.cells
        names = table.column(form.key, asked.table or asked.sample)
        images, located = _images(table, names, sheet.once, competition.test.pattern, asked.test)
        by_row = _all_boxes(competition, recipe, table, names, asked.boxes)
        notes = [note for note in (located.note, located.unused_note) if note]
        if located.doubt:
            faults.append(DataError(located.doubt))
        elif sheet.once and not located.found:
            faults.append(DataError(f"no row finds its image in {asked.test}; the first would be {few(located.named[:1])}"))
    except (DataError, ImageError) as error:
        faults.append(error)
        images, by_row = [], {}
    owner = np.array([row for row, _, _ in images], dtype=np.int64)
    boxes = {name: [rows[number] for _, number, _ in images] for name, rows in by_row.items()}
    paths = tuple(path for _, _, path in images)
    wanted = Wanted(recipe, competition, sheet.once, owner)
    if recipe.competition and files.sha256(folder / FILE) != recipe.competition:
        notes.append(f"{FILE} was changed since the bundle was made, and is used as it is")
    said = (*(table.warnings if asked.table and table else ()), *sheet.warnings, *notes)
    return Request(folder, wanted, sheet, columns, paths, boxes, asked.output, said, tuple(faults))


def _sheet(asked: Asked, form: SheetForm, table: Rows | None, pattern: str, faults: list[ToolkitError]) -> Sheet:
    """The rows of the sample; where it cannot be read, those of the table or of the folder of images."""
    if asked.sample:
        try:
            return read_sample(asked.sample, form)
        except DataError as error:
            faults.append(error)
    elif form.form in LONG_FORMS:
        raise DataError(f"format {form.form!r} needs the sample submission", code="bundle-sample")
    try:
        return of_ids(
            list(dict.fromkeys(table.column(form.key, asked.table) if table else ids_of(asked.test, pattern, form))), form
        )
    except (DataError, ImageError):
        if faults:
            raise faults[0] from None  # the sample's own fault says more
        raise


def write_submission(path: Path, sheet: Sheet, form: str, columns: Sequence[Column], tables: Mapping[str, Predictions]) -> None:
    """Fill the sheet's value columns with predictions, which hold its ids, and write it: the old file or the whole new one.

    Raises:
        StoreError: it cannot be written.
    """
    summed = form.partition(":")[0] in SUMMED
    tables = {name: cells.normalised(table) if summed else table for name, table in tables.items()}
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
        return cells.summing(table, np.where(places < 0, 0.0, table.values[rows, places])).texts()
    by_row = CELLS[base](column, table).texts()
    return [by_row[row] for row in rows.tolist()]


def _images(
    table: Rows, names: Sequence[str], ids: Sequence[str], pattern: str, folder: Path
) -> tuple[list[tuple[int, int, str]], RowFiles]:
    """(row of the submission, row of the table, file) of every image, in the submission's order, and how they were found."""
    try:
        path_patterns.require(pattern, table.header, "the rows that name the test images")
    except CompetitionError as error:
        raise DataError(error.message, hint=error.hint, code="bundle-table") from error
    place = {name: row for row, name in enumerate(ids)}
    kept = [(number, name) for number, name in enumerate(names) if name in place]
    filled = (path_patterns.fill(pattern, dict(zip(table.header, table.rows[number], strict=True))) for number, _ in kept)
    located = row_files.locate(folder, pattern, filled)
    images = []
    for (number, name), own, named in zip(kept, located.files, located.named, strict=True):
        images += [(place[name], number, str(folder / file)) for file in own or [named]]
    return sorted(images, key=lambda image: image[0]), located


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
        raise DataError(f"{file} has no row for {counted(len(missing), 'ids')}: {few(missing)}")
    return [columns.box(by_id[row_id], f"{file}, {row_id!r}") for row_id in ids]


def _cells(table: Rows, columns: BoxTable, where: object) -> list[tuple[str, ...]]:
    return list(zip(*(table.column(column, where) for column in columns.columns), strict=True))
