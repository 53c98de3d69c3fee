"""CSV files read as text: ids keep their zeros, labels like NA and None survive, and every oddity has a sentence."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base import files
from toolkit.base.text import text_forms
from toolkit.base.text.text_forms import Decoded, TextForm
from toolkit.errors import CompetitionError, counted, few

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def read(path: Path, *, columns: Sequence[str] = (), unique: str = "", form: TextForm = TextForm()) -> pd.DataFrame:
    """Every cell as text, exactly as written; `columns` must be there and the cells of `unique` must differ.

    The encoding and the mark between cells are those of `form`, or told from the bytes.

    Raises:
        CompetitionError: missing, empty, a form that is not certain, rows of different lengths, columns that are not there or
            twice there, empty or repeated cells in `unique`.
    """
    import pandas as pd

    table = _checked(path, columns, unique, form)
    frame: pd.DataFrame = table.to_pandas()
    frame.columns = pd.Index(table.column_names, dtype=str)
    return frame


def cells(path: Path, columns: Sequence[str], *, unique: str = "", form: TextForm = TextForm()) -> dict[str, list[str]]:
    """As `read`, of some columns only and without pandas, whose import takes longer than a hundred thousand rows.

    Raises:
        CompetitionError: see `read`.
    """
    table = _checked(path, columns, unique, form)
    return {name: table.column(name).to_pylist() for name in columns}


def write(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Path:
    """Write a table with its header; cells are quoted where they have to be.

    Raises:
        StoreError: the file cannot be written.
    """
    return files.write_rows(path, [columns, *rows])


def note(path: Path, form: TextForm = TextForm()) -> str:
    """How a table was read where it is not plain UTF-8 with commas, as in `train.csv was read as CP949`; else empty.

    Raises:
        CompetitionError: see `read`.
    """
    said = _decoded(path, form).note
    return f"{path.name} was {said}" if said else ""


def _decoded(path: Path, form: TextForm) -> Decoded:
    try:
        with files.opened(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise CompetitionError(f"{path} does not exist") from None
    except OSError as error:
        raise CompetitionError(f"{path} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise CompetitionError(f"{path} is empty")
    try:
        return text_forms.decode(data, form)
    except CompetitionError as error:
        raise CompetitionError(f"{path} {error.message}", hint=error.hint, code=error.code) from error


def _checked(path: Path, columns: Sequence[str], unique: str, form: TextForm) -> pa.Table:
    table = _parse(path, _decoded(path, form))
    if missing := [name for name in columns if name not in table.column_names]:
        names = table.column_names
        raise CompetitionError(
            f"{path} has no column {few(missing)}; it has {few(names, limit=12)}", hint=_missing_hint(names, missing)
        )
    if unique:
        _check_unique(path, table.column(unique).to_pylist(), unique)
    return table


def _parse(path: Path, decoded: Decoded) -> pa.Table:
    """The cells, by pyarrow rather than pandas: pandas pads short rows and cuts long ones without a word."""
    import pyarrow as pa
    from pyarrow import csv

    names = _header(path, decoded)
    unnamed = [f"column {i + 1}" for i in range(len(names))]  # names need not differ from an index column's empty one
    try:
        table = csv.read_csv(
            pa.py_buffer(decoded.text.encode()),
            read_options=csv.ReadOptions(column_names=unnamed, use_threads=False, block_size=1 << 24),
            parse_options=csv.ParseOptions(newlines_in_values=True, delimiter=decoded.form.delimiter),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(unnamed, pa.string()), strings_can_be_null=False),
        )
    except (pa.ArrowException, ValueError) as error:
        raise CompetitionError(f"{path} cannot be read as CSV: {_reason(error)}") from error
    if table.num_rows and "\n" in str(table.column(len(names) - 1)[-1]) and decoded.text.count('"') % 2:
        raise CompetitionError(f"{path} cannot be read as CSV: a quote is opened and never closed")
    return table.slice(1).rename_columns(names)


def header(path: Path, form: TextForm = TextForm()) -> list[str]:
    """The first line's cells, which must differ.

    Raises:
        CompetitionError: the file cannot be read, or a column appears twice.
    """
    return _header(path, _decoded(path, form))


def _header(path: Path, decoded: Decoded) -> list[str]:
    import csv

    try:
        names = next(row for row in csv.reader(io.StringIO(decoded.text, newline=""), delimiter=decoded.form.delimiter) if row)
    except (csv.Error, StopIteration) as error:
        raise CompetitionError(f"{path} has no header that can be read ({error})") from error
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise CompetitionError(f"{path}: columns appear twice: {few(repeated)}")
    return names


def _reason(error: Exception) -> str:
    """What pyarrow says, without the row's text, which may be long and the user's own."""
    text = str(error).splitlines()[0].removeprefix("CSV parse error: ")
    if match := re.match(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", text):
        row, expected, got = match.groups()
        return f"{f'line {row} has' if row else 'a line has'} {counted(int(got), 'cells')} where the header has {expected}"
    return text


def _missing_hint(names: Sequence[str], missing: Sequence[str]) -> str:
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        return "Its cells are not separated by commas: save it as comma-separated CSV."
    close = [name for name in names if name.strip().casefold() in {m.casefold() for m in missing}]
    return f"The file says {few(close)}: change one of the two." if close else "Name the right columns in competition.toml."


def _check_unique(path: Path, ids: Sequence[str], column: str) -> None:
    names = set(ids)
    if "" in names:
        raise CompetitionError(f"{path}, line {ids.index('') + 2}: the id column {column!r} is empty")
    if len(names) < len(ids):
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        raise CompetitionError(
            f"{path}: column {column!r} has {counted(len(repeated), 'ids')} more than once: {few(repeated)}",
            hint='Remove the repeats, or set per_id = "mean" in competition.toml if a row has several images.',
        )
