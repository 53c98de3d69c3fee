"""Which image files are worked on, and the rows that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

ItemNumbers = NDArray[np.int64]  # the places of some items in their sequence


@dataclass(frozen=True)
class Item:
    """One image file and the row it belongs to."""

    id: str
    path: Path


class Items(Sequence[Item]):
    """Items as two columns: of a hundred thousand images whose rows are stored, none needs an object of its own."""

    def __init__(self, ids: Sequence[str], files: Sequence[str]) -> None:
        self.ids, self.files = ids, files

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        """The same items as columns."""
        return items if isinstance(items, Items) else cls([item.id for item in items], [str(item.path) for item in items])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self.ids[index], self.files[index])
        return Item(self.ids[index], Path(self.files[index]))

    def take(self, rows: ItemNumbers) -> Items:
        """Some of them."""
        if len(rows) == len(self):
            return self
        return Items([self.ids[i] for i in rows.tolist()], [self.files[i] for i in rows.tolist()])
