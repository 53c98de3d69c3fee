"""Submission formats, a class each: what a sample's columns hold, whether its cells speak for it, what is wrong in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from toolkit.base.text import arrow_csv
from toolkit.core.predictions import Predictions
from toolkit.core.targets import split_pairs
from toolkit.errors import CompetitionError, few
from toolkit.submissions import checks
from toolkit.submissions.checks import Problem
from toolkit.submissions.form import cells
from toolkit.submissions.form.cells import Cells, Column, Columns
from toolkit.workspace.competition import FILE, Competition, Target

if TYPE_CHECKING:
    import pandas as pd


class Format(ABC):
    """One way to write predictions, under its name in FORMATS.

    `values` says that hard votes, which have labels only, cannot be written so; `pairs` that a row stands for an id and a
    class.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    values: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    @abstractmethod
    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """What each value column of the sample holds.

        Raises:
            CompetitionError: the sample has columns that this format cannot fill.
        """

    @abstractmethod
    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether the sample's cells and the metric speak for it."""

    def cells(self, column: Column, table: Predictions) -> Cells:
        """What stands in one column, a row per id of the predictions."""
        return cells.CELLS[self.name](column, table)

    @abstractmethod
    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """What is wrong in the columns that are there."""

    def rows(self, frame: pd.DataFrame, key: str, _: Columns) -> tuple[Any, Any]:
        """The id (an Arrow array [N]) that each row stands for and, where `pairs`, the class number (int64 [N], -1: none)."""
        return arrow_csv.text(frame[key]), None


class Labels(Format):
    """Class names."""

    name = "labels"
    summary = "a column of class names per target (multilabel: names joined by the separator)"

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column per target."""
        return _by_target(sample, competition, k)

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether every word of the cells is a class, and the metric does not ask for the number of a binary target."""
        if competition.score.accepts != "labels" and all(c.target.task == "binary" for c in columns):
            return False
        return all(words_of(sample, c) - {""} <= set(c.classes) for c in columns)

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Cells that are no class."""
        for c in columns:
            yield from _class_faults(frame, key, c, c.classes)


class Indices(Labels):
    """Class numbers."""

    name = "indices"
    summary = "a column per target with the place of the class in competition.toml, from 0"

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Never: whose index is meant cannot be seen, it must be asked for."""
        return False

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Cells that are no place of a class."""
        for c in columns:
            yield from _class_faults(frame, key, c, c.numbers)


class Flags(Format):
    """Yes or no per class."""

    name = "flags"
    summary = "a column of 0 and 1 per class"

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column per class."""
        return _by_class(sample, competition)

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether all cells are 0 and 1, for a metric of labels over multilabel targets."""
        zeros_and_ones = all(set(_seen(sample, c)) <= {"0", "1"} for c in columns)
        return zeros_and_ones and competition.score.accepts == "labels" and all(c.target.multilabel for c in columns)

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Cells that are neither 0 nor 1."""
        for c in columns:
            yield from checks.labels(frame, key, c.name, ("0", "1"), names=False)


class Probabilities(Format):
    """Numbers per class."""

    name = "probabilities"
    summary = "a column with the probability of each class"
    values = True

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column per class."""
        return _by_class(sample, competition)

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether the metric asks for numbers, or a row has one class only."""
        return competition.score.accepts != "labels" or not any(c.target.multilabel for c in columns)

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Cells that are no probabilities, and rows whose classes are all there and do not sum to 1."""
        sums: dict[str, Any] = {}
        checked = arrow_csv.in_threads(lambda c: checks.probabilities(frame, key, c.name), columns)
        for c, (numbers, problems) in zip(columns, checked, strict=True):
            yield from problems
            sums[c.target.name] = sums.get(c.target.name, 0.0) + numbers
        for target in {c.target.name: c.target for c in columns}.values():
            if not target.multilabel and sum(c.target is target for c in columns) == len(target.classes):
                yield from checks.row_sums(frame, key, sums[target.name])


class Probability(Probabilities):
    """One number per row."""

    name = "probability"
    summary = "one column with the probability of the positive class"

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column per binary target.

        Raises:
            CompetitionError: the sample has columns that are none.
        """
        columns = _by_target(sample, competition, k)
        if bad := [c.name for c in columns if c.target.task != "binary"]:
            raise CompetitionError(f"columns {few(bad)}: a single probability needs a binary target")
        return tuple(Column(c.name, c.target, c.target.positive) for c in columns)

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether the metric asks for numbers and all cells are some."""
        numeric = not any(checks.probabilities(sample[[c.name]].loc[sample[c.name] != ""], "", c.name)[1] for c in columns)
        return competition.score.accepts != "labels" and numeric


class TopK(Format):
    """Labels in order."""

    name = "topk"
    summary = "a column with the k most probable labels separated by spaces, best first"
    values = True

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column per target; without k, it is the longest list that the sample shows.

        Raises:
            CompetitionError: it shows none, or a target whose labels cannot stand in a list.
        """
        columns = _by_target(sample, competition, k)
        if any(c.target.multilabel or any(" " in name for name in c.classes) for c in columns):
            raise CompetitionError("topk needs targets that are not multilabel, and class names without spaces")
        shown = max((len(cell.split()) for c in columns for cell in _seen(sample, c)), default=0)
        if not k and shown < 2:
            raise CompetitionError(
                "the sample does not show how many labels a row may have", hint=f'Set format = "topk:5" in {FILE}.'
            )
        return tuple(Column(c.name, c.target, c.part, k or shown) for c in columns)

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Whether every word of the cells is a class."""
        return all(set(" ".join(_seen(sample, c)).split()) <= set(c.classes) for c in columns)

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Lists with words that are no class, or with more than k."""
        for c in columns:
            yield from checks.lists(frame, key, c.name, c.classes, " ", c.k)


class Long(Format):
    """A row per id and class, the class in a column of its own."""

    name = "long"
    summary = "a row per id and class: a column of class names and one with the probability"
    values = True
    pairs = True

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """A column of class names and one of numbers; every id has a row for each class.

        Raises:
            CompetitionError: the sample has others, or not every pair once.
        """
        names = value_columns(sample, competition)
        target = _only_target(competition)
        by = [name for name in names if set(sample[name]) == set(target.classes)]
        if len(names) != 2 or len(by) != 1:
            raise CompetitionError(f"the sample's columns {few(names)} are not one of class names and one of numbers")
        value = next(name for name in names if name != by[0])
        columns = (Column(value, target, by=by[0]),)
        _require_every_pair(*self.rows(sample, competition.sample_id, columns), target)
        return columns

    def suits(self, sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
        """Always: a sample with every pair of id and class is no coincidence."""
        return True

    def faults(self, frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
        """Cells that are no class or no probability, and ids whose classes do not sum to 1."""
        import pandas as pd

        for c in columns:
            if c.by and c.by not in frame.columns:
                continue
            if c.by:
                yield from checks.labels(frame, key, c.by, c.classes)
            numbers, problems = checks.probabilities(frame, key, c.name)
            yield from problems
            if c.target.multilabel or key not in frame.columns:
                continue
            ids, places = self.rows(frame, key, columns)
            rows, names = pd.factorize(np.array(ids.to_pylist(), dtype=object))
            whole = np.bincount(rows, minlength=len(names)) == len(c.classes)
            sums = np.bincount(rows, weights=numbers, minlength=len(names))
            yield from checks.row_sums(frame, key, np.where(whole & (places >= 0).all(), sums, 1.0)[rows])

    def rows(self, frame: pd.DataFrame, key: str, columns: Columns) -> tuple[Any, Any]:
        """The ids as they stand, the classes of the column that names them."""
        return arrow_csv.text(frame[key]), arrow_csv.places(arrow_csv.text(frame[columns[0].by]), columns[0].target.classes)


class Joined(Long):
    """A row per id and class, the class at the end of the id."""

    name = "joined"
    summary = "a row `id_class` per id and class, with the probability"

    def columns(self, sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
        """One column of numbers; every id has a row `id_class` for each class.

        Raises:
            CompetitionError: the sample has others, or not every pair once.
        """
        names = value_columns(sample, competition)
        target = _only_target(competition)
        if len(names) != 1:
            raise CompetitionError(f"the sample's columns {few(names)} are not a single one of numbers")
        columns = (Column(names[0], target),)
        if (self.rows(sample.head(9), competition.sample_id, columns)[1] < 0).any():  # before a million ids are taken apart
            raise CompetitionError(f"the sample's ids do not end in the classes of {target.name!r}")
        _require_every_pair(*self.rows(sample, competition.sample_id, columns), target)
        return columns

    def rows(self, frame: pd.DataFrame, key: str, columns: Columns) -> tuple[Any, Any]:
        """Ids and classes, taken apart."""
        import pyarrow as pa

        ids, places = split_pairs(arrow_csv.text(frame[key]).to_pylist(), columns[0].target.classes)
        return pa.array(ids, pa.large_string()), places


FORMATS: dict[str, Format] = {
    form.name: form for form in (Labels(), Indices(), Flags(), Probability(), Probabilities(), TopK(), Long(), Joined())
}


def value_columns(sample: pd.DataFrame, competition: Competition) -> list[str]:
    """The sample's columns but for the id's."""
    return [str(name) for name in sample.columns if name != competition.sample_id]


def _seen(sample: pd.DataFrame, column: Column) -> list[str]:
    """The different non-empty cells of a column."""
    return [str(cell) for cell in sample[column.name].unique() if cell != ""]


def words_of(sample: pd.DataFrame, column: Column) -> set[str]:
    """The different labels in a column's cells."""
    several, separator = column.target.multilabel, column.target.separator
    return {word for cell in _seen(sample, column) for word in (cell.split(separator) if several else [cell])}


def _class_faults(frame: pd.DataFrame, key: str, column: Column, names: tuple[str, ...]) -> Iterator[Problem]:
    if column.target.multilabel:
        return checks.lists(frame, key, column.name, names, column.target.separator)
    return checks.labels(frame, key, column.name, names)


def _by_target(sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
    """A column per target (or per factor of a joint one), found by name; a single one may have any name."""
    places = {factor: (target, factor) for target in competition.targets for factor in target.factors}
    places |= {name: (target, "") for target in competition.targets for name in (target.column, target.name)}
    names = value_columns(sample, competition)
    if len(names) == len(competition.targets) == 1:
        target, part = places.get(names[0], (competition.targets[0], ""))
        return (Column(names[0], target, part, k),)
    if unknown := [name for name in names if name not in places]:
        raise CompetitionError(f"the sample's columns {few(unknown)} are no target; targets: {few(places)}")
    return tuple(Column(name, *places[name], k) for name in names)


def _by_class(sample: pd.DataFrame, competition: Competition) -> Columns:
    """A column per class, found by name: `class` where that names one target's class only, `target_class` or `target/class`."""
    places: dict[str, list[tuple[Target, str]]] = {}
    for target in competition.targets:
        for name in target.classes:
            for spelling in {name, f"{target.name}_{name}", f"{target.name}/{name}"}:
                places.setdefault(spelling, []).append((target, name))
    names = value_columns(sample, competition)
    if unknown := [name for name in names if len(places.get(name, [])) != 1]:
        raise CompetitionError(
            f"the sample's columns {few(unknown)} are not each one class of {few(t.name for t in competition.targets)}"
        )
    columns = tuple(Column(name, *places[name][0]) for name in names)
    for target in {column.target.name: column.target for column in columns}.values():
        held = [column.part for column in columns if column.target is target]
        if set(held) != set(target.classes) or len(held) != len(target.classes):
            raise CompetitionError(f"the sample has no column for classes {few(c for c in target.classes if c not in held)}")
    return columns


def _only_target(competition: Competition) -> Target:
    if len(competition.targets) > 1:
        raise CompetitionError("the long form holds one target")
    return competition.targets[0]


def _require_every_pair(ids: Any, places: Any, target: Target) -> None:
    import pyarrow.compute as pc

    names = pc.dictionary_encode(ids)
    count = len(names.dictionary)
    pairs = np.unique(names.indices.to_numpy(zero_copy_only=False).astype(np.int64) * len(target.classes) + places)
    if (places < 0).any() or len(pairs) != len(places) or len(pairs) != count * len(target.classes):
        raise CompetitionError(f"the sample has not one row for each id and class of {target.name!r}")
