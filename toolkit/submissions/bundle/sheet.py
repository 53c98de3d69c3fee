"""The rows of a submission from a hidden sample, whatever form it comes in, or from the images themselves."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import Ints
from toolkit.base.text import text_forms
from toolkit.core.targets import LONG_FORMS, split_pairs
from toolkit.errors import CompetitionError, DataError, counted, few
from toolkit.images import decode
from toolkit.submissions.form.cells import Column


@dataclass(frozen=True, eq=False)
class Rows:
    """A table of text, and what had to be done to read it."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    warnings: tuple[str, ...] = ()

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
    """The rows of a submission: for each the id it is about and (in the long forms) the class number, -1 where it has none.

    `cells` has what the sample says beside the columns of the submission, of which rows may name their images.
    """

    ids: tuple[str, ...] = ()
    places: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    cells: Rows | None = None

    @property
    def once(self) -> tuple[str, ...]:
        """Every id once, in order."""
        return tuple(dict.fromkeys(self.ids))


@dataclass(frozen=True)
class SheetForm:
    """What a bundle's submissions look like: the id column, the header, the format, its columns; whether ids have slashes."""

    key: str
    header: Sequence[str]
    form: str
    columns: Sequence[Column]
    slashes: bool = False

    @property
    def by(self) -> str:
        """The column of classes, in the long form."""
        return self.columns[0].by if self.form == "long" else ""


def read_rows(path: Path) -> Rows:
    """A table of text, every cell as written, where there is no pandas; its form is told from its bytes, then guessed.

    Raises:
        DataError: not there, not text, or empty.
    """
    try:
        data = files.read(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    decoded, warnings = _decoded(data, path)
    try:
        rows = [row for row in csv.reader(io.StringIO(decoded.text, newline=""), delimiter=decoded.form.delimiter) if row]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    header = tuple(rows.pop(0))
    if odd := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        where = f"the first in line {odd[0]}"
        warnings.append(
            f"{path}: {counted(len(odd), 'rows have')} another number of cells than the header, {where}: filled up or cut"
        )
        rows = [(row + [""] * len(header))[: len(header)] for row in rows]
    return Rows(header, rows, tuple(warnings))


def _decoded(data: bytes, path: Path) -> tuple[text_forms.Decoded, list[str]]:
    """The text, certain or (nobody can be asked) guessed, and the warnings that say so."""
    try:
        decoded = text_forms.decode(data)
    except CompetitionError as error:
        if error.code not in ("encoding", "delimiter"):
            raise DataError(f"{path} {error.message}") from error
        for form in (text_forms.TextForm("", ","), text_forms.TextForm("cp949"), text_forms.TextForm("latin-1", ",")):
            try:
                decoded = text_forms.decode(data, form)
            except CompetitionError:
                continue
            return decoded, [f"{path} {error.message}; it was {decoded.note or 'read as it is'}, which is a guess"]
        raise DataError(f"{path} {error.message}") from error
    plain = decoded.form.encoding in ("utf-8", "utf-8-sig") and decoded.form.delimiter == ","
    return decoded, [] if plain else [f"{path} was {decoded.note}"]


def read_sample(path: Path, asked: SheetForm) -> Sheet:
    """The sample submission of the hidden test set as rows with the columns that the bundle was made for.

    Columns too many are left out, ones that are missing are added, and every such change is among the sheet's warnings.

    Raises:
        DataError: it cannot be read, has no row, or nothing in it can be the ids.
    """
    table = read_rows(path)
    if not table.rows:
        raise DataError(f"{path} has a header and no rows")
    table = _renamed(table, path, asked)
    warnings = [*table.warnings]
    surplus, lost = ([n for n in a if n not in b] for a, b in ((table.header, asked.header), (asked.header, table.header)))
    if surplus or lost:
        changes = [f"has no column {few(lost)}, which the submission gets"] if lost else []
        changes += [f"has the further columns {few(map(repr, surplus))}, which the submission leaves out"] if surplus else []
        warnings.append(f"{path} {' and '.join(changes)}")
    header = tuple(asked.header) if lost else tuple(name for name in table.header if name in asked.header)
    place = {name: table.header.index(name) for name in header if name in table.header}
    rows = [[row[place[name]] if name in place else "" for name in header] for row in table.rows]
    ids, places = _pairs(table, asked)
    if asked.form in LONG_FORMS and (places < 0).all():
        warnings.append(f"{path} names no class in any row: every id gets a row for each")
        return replace(of_ids(list(dict.fromkeys(ids)), asked, warnings), cells=table)
    if asked.form in LONG_FORMS and (places < 0).any():
        number = int((places < 0).sum())
        warnings.append(f"{path}: {counted(number, 'rows name')} no class, as in line {int(places.argmin()) + 2}; they get 0")
    if repeated := len(ids) - len(set(zip(ids, places.tolist(), strict=True))):
        warnings.append(f"{path} repeats {counted(repeated, 'rows')} of column {asked.key!r}; each is answered")
    return Sheet(header, rows, tuple(warnings), tuple(ids), places, table)


def _renamed(table: Rows, path: Path, asked: SheetForm) -> Rows:
    """The table with the id column (and others that differ only in case and spaces) called as the bundle knows them."""
    names = [name.strip() for name in table.header]
    loose = {name.casefold(): name for name in asked.header}
    taken = set(names) & set(asked.header)
    for number, name in enumerate(names):
        ours = loose.get(name.casefold(), "")
        if name not in asked.header and ours and ours not in taken:
            names[number] = ours
            taken.add(ours)
    warnings = []
    if asked.key not in names:
        number = _id_column(table, names, asked)
        if number < 0:
            raise DataError(f"{path} has no column {asked.key!r}, and none that could stand for it: {few(names, limit=12)}")
        names[number] = asked.key
    changed = [f"{old!r} for {new!r}" for old, new in zip(table.header, names, strict=True) if old != new]
    if changed:
        warnings.append(f"{path} was taken to say {few(changed)}")
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    if len(first) < len(names):
        warnings.append(f"{path} has columns twice: {few(sorted({n for n in names if names.count(n) > 1}))}; the first counts")
        kept = sorted(first.values())
        return Rows(tuple(names[i] for i in kept), [[r[i] for i in kept] for r in table.rows], (*table.warnings, *warnings))
    return replace(table, header=tuple(names), warnings=(*table.warnings, *warnings))


def _id_column(table: Rows, names: Sequence[str], asked: SheetForm) -> int:
    """The column that can only be the ids: one that calls itself so, else the first that differs in every row; -1: none."""
    free = [number for number, name in enumerate(names) if name not in asked.header]
    named = [n for n in free if re.search(r"(?:^|[\W_])id$|(?<=[a-z])I[dD]$|^image|^file", names[n], re.IGNORECASE)]
    whole = [n for n in free if not re.fullmatch(r"|unnamed.*|index", names[n], re.IGNORECASE)]
    whole = [n for n in whole if asked.form in LONG_FORMS or len({row[n] for row in table.rows}) == len(table.rows)]
    return next(iter([*named, *whole, *free]), -1)


def _pairs(table: Rows, asked: SheetForm) -> tuple[list[str], Ints]:
    """The id of every row and, in the long forms, its class number; -1 where it has none."""
    names, classes = table.column(asked.key, "the sample"), asked.columns[0].target.classes
    if asked.form == "joined":
        return split_pairs(names, classes)
    place = {name: number for number, name in enumerate(classes)} if asked.form == "long" else {}
    words = table.column(asked.by, "the sample") if asked.by in table.header else names
    return names, np.array([place.get(word, -1) for word in words], dtype=np.int64)


def of_ids(ids: Sequence[str], asked: SheetForm, warnings: Sequence[str] = ()) -> Sheet:
    """What stands for the sample where there is none: a row per id, in the long forms one per class of each."""
    classes = asked.columns[0].target.classes if asked.form in LONG_FORMS else ("",)
    pairs = [(name, number, label) for name in ids for number, label in enumerate(classes)]
    rows = []
    for name, _, label in pairs:
        own = {asked.key: f"{name}_{label}" if asked.form == "joined" else name, **({asked.by: label} if asked.by else {})}
        rows.append([own.get(column, "") for column in asked.header])
    places = np.array([number if asked.form in LONG_FORMS else -1 for _, number, _ in pairs], dtype=np.int64)
    return Sheet(tuple(asked.header), rows, tuple(warnings), tuple(name for name, _, _ in pairs), places)


def ids_of(folder: Path, pattern: str, asked: SheetForm) -> list[str]:
    """The ids that the files of a folder stand for, where the pattern says no more than that.

    A file of another image suffix, in another case or below further folders stands for an id as well.

    Raises:
        DataError: the pattern says more, or files of several folders have one name.
    """
    plain = re.fullmatch(r"([^{}*]*)\{" + re.escape(asked.key) + r"\}([^{}*]*|\.\*)", pattern)
    if not plain:
        raise DataError(f"the ids cannot be told from files named {pattern!r}", code="bundle-sample")
    before, after = plain.groups()
    names = [path.relative_to(folder).as_posix() for path in decode.find(folder)]
    home, before = posixpath.split(before)
    names = [name.removeprefix(f"{home}/") if asked.slashes else posixpath.basename(name) for name in names]
    end = posixpath.splitext(f"x{after}")[0][1:]
    whole = [posixpath.splitext(name)[0] if after else name for name in names]  # an id with its suffix is all of the name
    matches = [re.fullmatch(f"{re.escape(before)}(.+){re.escape(end)}", name, re.IGNORECASE) for name in whole]
    ids = [match[1] for match in matches if match]
    if len(set(ids)) < len(ids):
        repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(ids) < 5000 else []
        raise DataError(f"several files stand for one id: {few(repeated)}", code="bundle-sample")
    return ids
