"""CSV files read as text: ids keep their zeros, labels like NA and None survive, and every oddity has a sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base import files
from toolkit.errors import CompetitionError, few

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_UTF8 = "Save it as UTF-8; a Korean file may be CP949: iconv -f CP949 -t UTF-8 FILE > NEW"
_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read(path: Path, *, columns: Sequence[str] = (), unique: str = "") -> pd.DataFrame:
    """Every cell as text, exactly as written; `columns` must be there and the cells of `unique` must differ.

    Raises:
        CompetitionError: missing, empty, not UTF-8, a byte-order mark, rows of different lengths, columns that are not there or
            twice there, empty or repeated cells in `unique`.
    """
    import pandas as pd

    table = _checked(path, columns, unique)
    frame: pd.DataFrame = table.to_pandas()
    frame.columns = pd.Index(table.column_names, dtype=str)
    return frame


def cells(path: Path, columns: Sequence[str], *, unique: str = "") -> dict[str, list[str]]:
    """As `read`, of some columns only and without pandas, whose import takes longer than a hundred thousand rows.

    Raises:
        CompetitionError: see `read`.
    """
    table = _checked(path, columns, unique)
    return {name: table.column(name).to_pylist() for name in columns}


def write(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Path:
    """Write a table with its header; cells are quoted where they have to be.

    Raises:
        StoreError: the file cannot be written.
    """
    return files.write_rows(path, [columns, *rows])


def _check_bytes(path: Path) -> None:
    try:
        with files.opened(path) as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise CompetitionError(f"{path} does not exist") from None
    except OSError as error:
        raise CompetitionError(f"{path} cannot be read: {error.strerror}") from error
    if not head.strip():
        raise CompetitionError(f"{path} is empty")
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            raise CompetitionError(
                f"{path} starts with a {name} byte-order mark, which would become part of its first column's name",
                hint="Save it as plain UTF-8; for a UTF-8 file: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE",
            )
    if b"\0" in head:
        raise CompetitionError(f"{path} is not a text file")


def _checked(path: Path, columns: Sequence[str], unique: str) -> pa.Table:
    _check_bytes(path)
    table = _parse(path)
    if missing := [name for name in columns if name not in table.column_names]:
        names = table.column_names
        raise CompetitionError(
            f"{path} has no column {few(missing)}; it has {few(names, limit=12)}", hint=_missing_hint(names, missing)
        )
    if unique:
        _check_unique(path, table.column(unique).to_pylist(), unique)
    return table


def _parse(path: Path) -> pa.Table:
    """The cells, by pyarrow rather than pandas: pandas pads short rows and cuts long ones without a word."""
    import pyarrow as pa
    from pyarrow import csv

    names = header(path)
    unnamed = [f"column {i + 1}" for i in range(len(names))]  # names need not differ from an index column's empty one
    try:
        with files.opened(path) as plain:
            table = csv.read_csv(
                pa.PythonFile(plain),
                read_options=csv.ReadOptions(column_names=unnamed, use_threads=False, block_size=1 << 24),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(unnamed, pa.string()), strings_can_be_null=False),
            )
    except (pa.ArrowException, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise CompetitionError(
            f"{path} cannot be read as CSV: {_reason(error)}", hint=_UTF8 if "UTF8" in str(error) else ""
        ) from error
    if table.num_rows and "\n" in str(table.column(len(names) - 1)[-1]) and path.read_bytes().count(b'"') % 2:
        raise CompetitionError(f"{path} cannot be read as CSV: a quote is opened and never closed")
    return table.slice(1).rename_columns(names)


def header(path: Path) -> list[str]:
    """The first line's cells, which must differ.

    Raises:
        CompetitionError: the file cannot be read, or a column appears twice.
    """
    import csv

    _check_bytes(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            names = next(row for row in csv.reader(file) if row)
    except UnicodeDecodeError as error:
        raise CompetitionError(f"{path} is not UTF-8", hint=_UTF8) from error
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
        return f"{f'line {row} has' if row else 'a line has'} {got} cells where the header has {expected}"
    return "it is not UTF-8" if "UTF8" in text else text


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
            f"{path}: {len(repeated):,} ids of column {column!r} appear more than once: {few(repeated)}",
            hint='Remove the repeats, or set per_id = "mean" in competition.toml if a row has several images.',
        )
