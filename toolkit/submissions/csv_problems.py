"""Submissions read from any bytes, together with all that is wrong with them as text."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import files
from toolkit.errors import counted, few
from toolkit.submissions.checks import Problem

if TYPE_CHECKING:
    import pandas as pd


def read(path: Path) -> tuple[pd.DataFrame | None, list[Problem]]:
    """A table of text from any bytes, with what was wrong with them; `index` counts data lines from 0 in the file as it is."""
    try:
        with files.opened(path) as file:
            raw = file.read()
    except OSError as error:
        return None, [Problem("SUB001", seen=error.strerror or str(error))]
    return parse(raw)


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
        seen = f"{counted(ragged[0].actual_columns, 'cells')} for {ragged[0].expected_columns}"
        problems.append(Problem("SUB007", len(ragged), line=min(skipped) + 2, seen=seen))
    return frame, problems
