"""What stands in the cells of a submission, format by format, before anything makes text of it: with pandas or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import Ints
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target


@dataclass(frozen=True)
class Column:
    """What one column of a submission holds: a target, or a `part` of it (a factor or a class), or its `k` best labels.

    In the long form it holds the probability of the class that column `by` names, or that the id ends in.
    """

    name: str
    target: Target
    part: str = ""
    k: int = 0
    by: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that may stand in it."""
        return self.target.factors.get(self.part, self.target.classes)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The places of the labels, from 0, as text."""
        return tuple(map(str, range(len(self.classes))))


Columns = tuple[Column, ...]

WRITER = 2  # how numbers become text; 1, of manifests that do not say: all as float32
SUMMED = ("probabilities", "long", "joined")  # formats whose rows hold every class, which graders add up
_FIRST = -13  # below 1e-13 there are no ten digits with an exact power of ten
_POWERS = np.array([float(f"1e{power}") for power in range(_FIRST, 10)])
_SCALES = np.array([float(f"1e{9 - power}") for power in range(_FIRST, 10)])


@dataclass(frozen=True, eq=False)
class Numbers:
    """Cells with a number each: float32 or float64 [N], of which -0 became 0."""

    values: NDArray[np.floating[Any]]

    def texts(self) -> list[str]:
        """The shortest text that reads back to the same number of its type; Arrow's may be another (1 for 1.0)."""
        texts: list[str] = self.values.astype(str).tolist()
        return texts


@dataclass(frozen=True, eq=False)
class Picks:
    """Cells with the same number of names each: `names[places[i, j]]`, places int64 [N, K], joined by spaces."""

    names: tuple[str, ...]
    places: Ints

    def texts(self) -> list[str]:
        """The names of every row."""
        return [" ".join(self.names[place] for place in row) for row in self.places.tolist()]


@dataclass(frozen=True, eq=False)
class Lists:
    """Cells that list the name of every class which a row has: `has` is bool [N, C]; a row may have none."""

    names: tuple[str, ...]
    has: NDArray[np.bool_]
    separator: str

    def texts(self) -> list[str]:
        """The names of every row."""
        return [self.separator.join(self.names[place] for place in np.flatnonzero(row).tolist()) for row in self.has]


Cells = Numbers | Picks | Lists


def labels(column: Column, table: Predictions) -> Cells:
    """The names of the classes that were decided on."""
    return _decided(column, table, column.classes)


def indices(column: Column, table: Predictions) -> Cells:
    """The places of the classes that were decided on."""
    return _decided(column, table, column.numbers)


def _decided(column: Column, table: Predictions, names: Sequence[str]) -> Cells:
    if table.multilabel:
        return Lists(tuple(names), table.decided, column.target.separator)
    places = table.decided
    if column.part:
        factors = column.target.factors
        places = np.unravel_index(places, [len(classes) for classes in factors.values()])[list(factors).index(column.part)]
    return Picks(tuple(names), np.asarray(places, dtype=np.int64)[:, None])


def flags(column: Column, table: Predictions) -> Cells:
    """1 for the rows that have the column's class, else 0."""
    place = table.classes.index(column.part)
    yes = table.decided[:, place] if table.multilabel else table.decided == place
    return Picks(("0", "1"), yes.astype(np.int64)[:, None])


def probability(column: Column, table: Predictions) -> Cells:
    """The numbers of the column's class, which nobody adds up."""
    assert table.values is not None
    return numbers(table.values[:, table.classes.index(column.part)])


def of_class(column: Column, table: Predictions) -> Cells:
    """The numbers of the column's class beside those of all other classes."""
    assert table.values is not None
    return summing(table, table.values[:, table.classes.index(column.part)])


def best(column: Column, table: Predictions) -> Cells:
    """The column's `k` most probable labels, best first; of a factor, by its marginal."""
    assert table.values is not None
    values = table.values
    if column.part:
        factors = column.target.factors
        others = tuple(place + 1 for place, name in enumerate(factors) if name != column.part)
        values = values.reshape(-1, *(len(classes) for classes in factors.values())).sum(axis=others)
    return Picks(column.classes, np.argsort(-values, axis=1, kind="stable")[:, : column.k])


def numbers(values: NDArray[Any]) -> Numbers:
    """Values [N] as the numbers of cells; adding 0 turns -0 into 0."""
    return Numbers(values.astype(np.float32) + np.float32(0))


def normalised(table: Predictions) -> Predictions:
    """The table with rows of probabilities divided by their sum, in float64; tables of others' rounded numbers need it."""
    if table.values is None or not _adds_up(table):
        return table
    return replace(table, values=table.values / table.values.sum(axis=1, keepdims=True))


def summing(table: Predictions, values: NDArray[np.float64]) -> Numbers:
    """Values [N] of a normalised table as the numbers of cells; what does not add up (multilabel, scores) is float32.

    Ten significant digits each: no value moves by more than 5e-10 of itself, so however many classes there are, a row's
    numbers sum to 1 within 5e-10, distinct float32 stay distinct, and the text is hardly longer than that of float32.
    """
    if not _adds_up(table):
        return numbers(values)
    place = np.searchsorted(_POWERS, values, side="right") - 1
    scale = _SCALES[np.maximum(place, 0)]
    return Numbers(np.where(place < 0, values, np.rint(values * scale) / scale) + 0.0)


def _adds_up(table: Predictions) -> bool:
    return table.kind == "probabilities" and not table.multilabel


# what a row's cell holds where a row stands for an id; in the long forms it is the number of an id and a class
CELLS: dict[str, Callable[[Column, Predictions], Cells]] = {
    "labels": labels,
    "indices": indices,
    "flags": flags,
    "probability": probability,
    "probabilities": of_class,
    "topk": best,
}
