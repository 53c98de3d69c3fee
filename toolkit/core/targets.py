"""Targets: what is predicted, its classes in order, and how the cells of a table say them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np

from toolkit.base.arrays import Ints
from toolkit.core.cards import CLASSES, Task
from toolkit.core.predictions import Predictions
from toolkit.errors import CompetitionError, counted, few


class Frame(Protocol):
    """A table of text by columns: a pandas DataFrame, or what looks like one."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """The cells of one column."""
        ...


LONG_FORMS = ("long", "joined")  # tables with a row per id and class, named in two columns or in one as `id_class`
MARK = "_"  # between id and class
YES_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # the cells of a column that belongs to one class


@dataclass(frozen=True)
class Target:
    """One thing to predict: its classes in order and where train.csv says them.

    A multiclass or binary label is read from `column`. With `factors` (name → its classes) the label is the combination of the
    columns of that name, in row-major order: mask 3 × gender 2 × age 3 gives 18 classes. A multilabel cell of `column` lists
    class names separated by `separator`. Where there is no such column, there is one column of 0 and 1 per class.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    column: str = ""
    positive: str = ""
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    separator: str = " "

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "factors", {k: tuple(map(str, v)) for k, v in self.factors.items()})
        if (count := prod(map(len, self.factors.values()))) > CLASSES:
            raise CompetitionError(
                f"target {self.name[:60]!r}: its factors have {counted(count, 'classes')} together, at most {CLASSES:,} may be"
            )
        combinations = tuple("_".join(parts) for parts in itertools.product(*self.factors.values()))
        object.__setattr__(self, "classes", tuple(map(str, self.classes or (combinations if self.factors else ()))))
        where = f"target {self.name!r}"
        if self.task not in ("multiclass", "binary", "multilabel"):
            raise CompetitionError(f"{where}: task is multiclass, binary or multilabel, not {self.task!r}")
        if len(self.classes) < 2 - (self.task == "multilabel") or len(set(self.classes)) != len(self.classes):
            raise CompetitionError(f"{where}: classes must be several and different, got {few(self.classes)}")
        if self.factors and (self.task != "multiclass" or len(combinations) != len(self.classes)):
            raise CompetitionError(
                f"{where}: the product of its factors has {counted(len(combinations), 'classes')}, "
                f"{len(self.classes)} are named"
            )
        if not self.separator:
            raise CompetitionError(f"{where}: the separator between class names must not be empty")
        if self.task == "binary":
            object.__setattr__(self, "positive", self.positive or self.classes[-1])
            if len(self.classes) != 2 or self.positive not in self.classes:
                raise CompetitionError(f"{where}: a binary target has two classes, one of them positive")

    @property
    def multilabel(self) -> bool:
        """Whether each class is a yes or no of its own."""
        return self.task == "multilabel"

    def truth(self, frame: Frame, ids: Iterable[str], where: str) -> Predictions:
        """The labels that the rows of a table carry, as predictions of kind "labels".

        Raises:
            CompetitionError: a column is missing or a cell holds no known class.
        """
        ids = tuple(ids)
        cells = _Cells(frame, ids, where)
        labels: Any
        if self.factors:
            parts = [cells.indices(name, classes) for name, classes in self.factors.items()]
            labels = np.ravel_multi_index(parts, tuple(len(c) for c in self.factors.values()))
        elif self.column in frame.columns:
            column = self.column
            labels = (
                cells.lists(column, self.classes, self.separator) if self.multilabel else cells.indices(column, self.classes)
            )
        elif all(name in frame.columns for name in self.classes):
            labels = cells.grid(self.classes)
            labels = labels if self.multilabel else cells.one_hot(labels)
        else:
            cells.require([self.column])
        return Predictions(self.name, "labels", ids, self.classes, labels=labels, multilabel=self.multilabel)


@dataclass(frozen=True)
class _Cells:
    """The columns of one table as class numbers; `where` names the table in messages."""

    frame: Frame
    ids: tuple[str, ...]
    where: str

    def indices(self, column: str, classes: Sequence[str]) -> Any:
        """Class numbers, int64 [N], of a column of class names."""
        self.require([column])
        place = {name: i for i, name in enumerate(classes)}
        cells = list(self.frame[column])
        self._refuse([(i, cell) for i, cell in enumerate(cells) if cell not in place], column, classes)
        return np.array([place[cell] for cell in cells], dtype=np.int64)

    def lists(self, column: str, classes: Sequence[str], separator: str) -> Any:
        """Bool [N, C] of a column whose cells list class names."""
        place = {name: i for i, name in enumerate(classes)}
        rows = [[part.strip() for part in cell.split(separator) if part.strip()] for cell in self.frame[column]]
        self._refuse([(i, name) for i, names in enumerate(rows) for name in names if name not in place], column, classes)
        labels = np.zeros((len(rows), len(classes)), dtype=bool)
        for row, names in enumerate(rows):
            labels[row, [place[name] for name in names]] = True
        return labels

    def grid(self, classes: Sequence[str]) -> Any:
        """Bool [N, C] of one column of 0 and 1 per class."""
        columns = []
        for name in classes:
            cells = list(self.frame[name])
            self._refuse([(i, cell) for i, cell in enumerate(cells) if cell not in YES_NO], name, ("0", "1"))
            columns.append([YES_NO[cell] for cell in cells])
        return np.array(columns, dtype=bool).T

    def one_hot(self, grid: Any) -> Any:
        """Class numbers, int64 [N], of a bool [N, C] with exactly one yes per row."""
        if (bad := np.flatnonzero(grid.sum(axis=1) != 1)).size:
            names = few(self.ids[i] for i in bad)
            raise CompetitionError(
                f"{self.where}: {counted(bad.size, 'rows do')} not have a single 1 among the class columns (ids {names})",
                hint='A row with several classes needs task = "multilabel".',
            )
        return grid.argmax(axis=1)

    def require(self, columns: Iterable[str]) -> None:
        if missing := [name for name in columns if name not in self.frame.columns]:
            raise CompetitionError(f"{self.where}: no column {few(missing)}; there are {few(self.frame.columns, limit=12)}")

    def _refuse(self, bad: list[tuple[int, str]], column: str, classes: Sequence[str]) -> None:
        if bad:
            ids = few(self.ids[i] for i, _ in bad)
            raise CompetitionError(
                f"{self.where}: column {column!r} has {counted(len(bad), 'labels')} that are no class of it: "
                f"{few(sorted({cell for _, cell in bad}))} (ids {ids})",
                hint=f"The classes are {few(classes, limit=20)}; they stand in competition.toml.",
            )


def split_pairs(cells: Sequence[str], classes: Sequence[str]) -> tuple[list[str], Ints]:
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


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The classes in the house's order: by value if every name is a number, else by code point.

    >>> class_order(["10", "9", "1"]), class_order(["dog", "cat", "10"])
    (('1', '9', '10'), ('10', 'cat', 'dog'))
    """
    every = sorted(set(names))
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name, re.ASCII) for name in every):
        every.sort(key=lambda name: (float(name), name))
    return tuple(every)
