"""The long form of a table: a row per id and class, named in two columns or in one as `id_class`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.base.arrays import Ints

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
