"""The long form of a table: a row per id and class, named in two columns or in one as `id_class`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base.arrays import Ints

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("long", "joined")  # the submission formats whose sample has several rows per id
MARK = "_"


def split(cells: Sequence[str], classes: Sequence[str]) -> tuple[list[str], Ints]:
    """Ids and class numbers (int64 [N]) of cells such as `0007_cat`; a cell without a class stays whole and has -1."""
    known = sorted(((f"{MARK}{name}", place) for place, name in enumerate(classes)), key=lambda pair: -len(pair[0]))
    ends = dict(known)
    lengths = sorted({len(end) for end in ends}, reverse=True)  # the longest wins: `x_y` before `y`
    ids, places = [], np.full(len(cells), -1, dtype=np.int64)
    for row, cell in enumerate(cells):
        size = next((n for n in lengths if cell[-n:] in ends and len(cell) > n), 0)
        ids.append(cell[: len(cell) - size])
        if size:
            places[row] = ends[cell[-size:]]
    return ids, places


def once(frame: pd.DataFrame, key: str, form: str, classes: Sequence[str]) -> pd.DataFrame:
    """The table with one row per id, in order of first appearance."""
    if form == "joined":
        frame = frame.assign(**{key: split(list(frame[key]), classes)[0]})
    return frame.drop_duplicates(key, ignore_index=True)


def numbers(cells: Any, classes: Sequence[str]) -> Ints:
    """Class numbers, int64 [N], of an Arrow column of class names; -1 where a cell is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = pc.index_in(cells, value_set=pa.array(classes, pa.large_string()))
    return np.asarray(places.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
