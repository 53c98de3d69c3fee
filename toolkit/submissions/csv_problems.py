"""Delimited text: written with minimal quotes, and read from any bytes together with all that is wrong with them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import few
from toolkit.submissions import checks
from toolkit.submissions.checks import Problem

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 100_000  # rows turned into bytes at a time


def write(file: IO[bytes], frame: pd.DataFrame) -> None:
    """Write a table of text as CSV: UTF-8, \\n, quotes only where a cell needs them."""
    import pyarrow as pa

    head = pa.array([str(name) for name in frame.columns], pa.large_string())
    file.write((",".join(_quoted(head).to_pylist()) + "\n").encode())
    columns = [checks.text(frame[name]) for name in frame.columns]

    def lines(start: int) -> memoryview:
        # joined here, as Arrow's own CSV writer quotes every text cell
        *cells, last = (_quoted(column.slice(start, _CHUNK)) for column in columns)
        ended = checks.join(last, pa.scalar("", pa.large_string()), by="\n")
        return _bytes(checks.join(*cells, ended, by=","))

    for part in checks.in_threads(lines, range(0, len(frame), _CHUNK)):
        file.write(part)


def size(frame: pd.DataFrame) -> int:
    """How many bytes `write` makes of a table, but for quotes."""
    import pyarrow.compute as pc

    cells = sum(pc.sum(pc.binary_length(checks.text(frame[name]))).as_py() or 0 for name in frame.columns)
    return int(cells) + len(frame.columns) * (len(frame) + 1) + sum(len(str(name).encode()) for name in frame.columns)


def _bytes(cells: Any) -> memoryview:
    """The text of all cells, end to end, as it lies in memory."""
    _, offsets, data = cells.buffers()
    places = np.frombuffer(offsets, dtype=np.int64)[cells.offset : cells.offset + len(cells) + 1]
    return memoryview(data)[places[0] : places[-1]]


def _quoted(cells: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    special = pc.match_substring_regex(cells, '[",\r\n]')
    if not pc.any(special).as_py():
        return cells
    mark = pa.scalar('"', pa.large_string())
    marked = checks.join(mark, pc.replace_substring(cells, '"', '""'), mark, by="")
    return pc.if_else(special, marked, cells)


def read(path: Path) -> tuple[pd.DataFrame | None, list[Problem]]:
    """A table of text from any bytes, with what was wrong with them; `index` counts data lines from 0 in the file as it is."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        return None, [Problem("SUB001", seen=error.strerror or str(error))]


def parse(raw: bytes) -> tuple[pd.DataFrame | None, list[Problem]]:
    """`read` for bytes that are in memory."""
    raw, problems = _decoded(raw)
    raw = raw.lstrip(b"\r\n")
    if not raw.strip() or b"\0" in raw:
        return None, [*problems, Problem("SUB001", seen="no text" if raw.strip() else "empty")]
    first = re.match(rb"[^\r\n]*", raw)
    head = first[0] if first else b""
    mark = "," if b"," in head else next((m for m in ";\t|" if m.encode() in head), ",")
    if mark != ",":
        problems.append(Problem("SUB004", seen=repr(mark)))
    frame, more = _parsed(raw, mark)
    return frame, problems + more


def _decoded(raw: bytes) -> tuple[bytes, list[Problem]]:
    problems = []
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.append(Problem("SUB003", seen="UTF-16"))
        raw = raw.decode("utf-16", errors="replace").encode()
    elif raw.startswith(b"\xef\xbb\xbf"):
        problems.append(Problem("SUB002"))
        raw = raw[3:]
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        problems.append(Problem("SUB003", line=raw.count(b"\n", 0, error.start) + 1, seen=f"byte {error.start:,}"))
        try:
            raw = raw.decode("cp949").encode()  # what Korean Excel saves
        except UnicodeDecodeError:
            raw = raw.decode("latin-1").encode()
    bare = raw.count(b"\r") - raw.count(b"\r\n")
    if bare and not raw.count(b"\n"):
        problems.append(Problem("SUB005", bare))
    elif b"\r\n" in raw:
        problems.append(Problem("SUB006", raw.count(b"\r\n")))
    return raw, problems


def _parsed(raw: bytes, mark: str) -> tuple[pd.DataFrame | None, list[Problem]]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv as pc

    ragged: list[Any] = []
    try:
        width = len(next(csv.reader(io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8", newline=""), delimiter=mark)))
        table = pc.read_csv(
            io.BytesIO(raw),
            pc.ReadOptions(autogenerate_column_names=True, use_threads=False),
            pc.ParseOptions(
                delimiter=mark,
                newlines_in_values=True,
                invalid_row_handler=lambda row: ragged.append(row) or "skip",  # type: ignore[func-returns-value]
            ),
            pc.ConvertOptions(column_types={f"f{i}": pa.large_string() for i in range(width)}, strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, csv.Error) as error:
        return None, [Problem("SUB001", seen=str(error))]
    names = [str(column[0].as_py()) for column in table.columns]
    columns = {name: table.column(i).slice(1) for i, name in reversed(list(enumerate(names)))}
    frame: pd.DataFrame = pa.table({name: columns[name] for name in dict.fromkeys(names)}).to_pandas()
    skipped = {row.number - 2 for row in ragged}
    lines = np.setdiff1d(np.arange(len(frame) + len(ragged)), list(skipped))
    frame.index = pd.Index(lines[: len(frame)])
    problems = []
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem("SUB014", len(repeated), line=1, seen=few(repeated)))
    if ragged:
        seen = f"{ragged[0].actual_columns} cells for {ragged[0].expected_columns}"
        problems.append(Problem("SUB007", len(ragged), line=min(skipped) + 2, seen=seen))
    return frame, problems
