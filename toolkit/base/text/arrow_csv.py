"""Tables of text written as CSV by every core, and the Arrow columns that this works on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 100_000  # rows turned into bytes at a time


def write(file: IO[bytes], frame: pd.DataFrame) -> None:
    """Write a table of text as CSV: UTF-8, \\n, quotes only where a cell needs them.

    Raises:
        DataError: a cell with a NUL or half a character, which no reader takes.
    """
    import pyarrow as pa

    head = pa.array([str(name) for name in frame.columns], pa.large_string())
    file.write((",".join(_quoted(head).to_pylist()) + "\n").encode())
    columns = [text(frame[name]) for name in frame.columns]

    def lines(start: int) -> memoryview:
        # joined here, as Arrow's own CSV writer quotes every text cell
        *cells, last = (_quoted(column.slice(start, _CHUNK)) for column in columns)
        ended = join(last, pa.scalar("", pa.large_string()), by="\n")
        part = _bytes(join(*cells, ended, by=","))
        if not np.frombuffer(part, np.uint8).all():
            raise DataError("a cell of the table holds a NUL", hint="Rename what has such a name.")
        return part

    for part in in_threads(lines, range(0, len(frame), _CHUNK)):
        file.write(part)


def size(frame: pd.DataFrame) -> int:
    """How many bytes `write` makes of a table, but for quotes."""
    import pyarrow.compute as pc

    cells = sum(pc.sum(pc.binary_length(text(frame[name]))).as_py() or 0 for name in frame.columns)
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
    marked = join(mark, pc.replace_substring(cells, '"', '""'), mark, by="")
    return pc.if_else(special, marked, cells)


def text(series: pd.Series[Any]) -> Any:
    """A column of text as one Arrow array without nulls, ready for vectorised work.

    Raises:
        DataError: a cell with half a character.
    """
    import pyarrow as pa

    try:
        cells = pa.array(series.astype("str"), pa.large_string())
    except UnicodeEncodeError as error:
        raise DataError("a cell of the table holds half a character", hint="Rename what has such a name.") from error
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    return cells.fill_null("")


def places(cells: Any, names: Sequence[str]) -> NDArray[np.int64]:
    """The place of each cell of an Arrow column among `names`, int64 [N], -1 where it is none of them.

    Arrow's hashing takes a fifth of a dictionary's time.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.index_in(cells, value_set=pa.array(names, pa.large_string()))
    return np.asarray(place.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def join(*cells: Any, by: str) -> Any:
    """Arrow columns of text joined cell by cell; nulls are passed over, but a row of nothing else is a mistake.

    Arrow leaves such rows out (pyarrow 26), which would shift all that follow.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    joined = pc.binary_join_element_wise(*cells, pa.scalar(by, pa.large_string()), null_handling="skip")
    rows = max((len(column) for column in cells if isinstance(column, pa.Array | pa.ChunkedArray)), default=len(joined))
    assert len(joined) == rows, "a row has nothing to join"
    return joined


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in the order of the items, made on every core: Arrow and numpy leave the interpreter free meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(work, items)
