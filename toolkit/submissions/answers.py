"""What a submission says: its cells, or the predictions behind it, as answers to the questions that its columns ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.base.text import arrow_csv
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.submissions import checks
from toolkit.submissions.form.cells import Column
from toolkit.submissions.form.layout import SubmissionLayout

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Answers:
    """What a submission says of one question (a target or a factor of it) per id.

    `labels` is int64 [N] (the number of the class, -1 for none) or, where a row may have several, bool [N, C]; `numbers`
    (float64 [N, C], the probabilities or scores) are there where they are submitted.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[Any]
    numbers: F64 | None = None

    @property
    def confidence(self) -> F64 | None:
        """The largest probability of each row, float64 [N]; of several labels, the mean over all answers."""
        if self.numbers is None or self.labels.ndim == 1:
            return None if self.numbers is None else np.asarray(self.numbers.max(axis=1))
        return np.asarray(np.maximum(self.numbers, 1 - self.numbers).mean(axis=1))

    @property
    def order(self) -> F64 | None:
        """The place of each row in each class's order from 0 to 1, float64 [N, C], ties at their mean."""
        from scipy.stats import rankdata

        return None if self.numbers is None else rankdata(self.numbers, axis=0) / max(1, len(self.ids))

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many rows have each class, int64 [C]."""
        if self.labels.ndim == 2:
            return np.asarray(self.labels.sum(axis=0, dtype=np.int64))
        counts: NDArray[np.int64] = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return counts

    def text(self, row: int) -> str:
        """The class, or the classes, of one row."""
        label = self.labels[row]
        if self.labels.ndim == 2:
            return " ".join(name for name, yes in zip(self.classes, label, strict=True) if yes) or "none"
        return self.classes[label] if label >= 0 else "no class"


def of_frame(frame: pd.DataFrame, layout: SubmissionLayout) -> list[Answers]:
    """What a submission's cells say, per question; columns that are not there are left out."""
    ids = tuple(arrow_csv.text(frame[layout.key]).to_pylist())
    columns = [column for column in layout.columns if column.name in frame.columns]
    if layout.format.pairs:
        return [_of_pairs(frame, layout)]
    if layout.format.name in ("labels", "indices", "topk"):
        return [_of_words(frame, column, ids, layout.format.name) for column in columns]
    targets = {column.target.name: column.target for column in columns}.values()
    answers = [_of_numbers(frame, [c for c in columns if c.target is target], ids) for target in targets]
    return answers if layout.format.values else [replace(each, numbers=None) for each in answers]


def of_predictions(layout: SubmissionLayout, tables: Mapping[str, Predictions]) -> list[Answers]:
    """What predictions say to the questions that a layout asks: each target, or each factor that has a column."""
    answers: dict[str, Answers] = {}
    for column in layout.columns:
        target = column.target
        name = column.part if column.part in target.factors else target.name
        if target.name in tables and name not in answers:
            table = tables[target.name].with_classes(target.classes)
            answers[name] = _of_table(table, target) if name == target.name else _of_factor(table, column)
    return list(answers.values())


def of_grid(name: str, classes: tuple[str, ...], ids: tuple[str, ...], grid: F64, *, several: bool) -> Answers:
    """The answers of probabilities [N, C]; `several` where a row may have several classes."""
    if several:
        return Answers(name, classes, ids, grid >= 0.5, grid)
    return Answers(name, classes, ids, grid.argmax(axis=1), grid)


def _of_table(table: Predictions, target: Target) -> Answers:
    if table.values is None:
        return Answers(target.name, target.classes, table.ids, table.decided)
    return of_grid(target.name, target.classes, table.ids, table.values, several=target.multilabel)


def _of_factor(table: Predictions, column: Column) -> Answers:
    factors = column.target.factors
    parts = np.unravel_index(table.decided, [len(classes) for classes in factors.values()])
    return Answers(column.part, column.classes, table.ids, parts[list(factors).index(column.part)])


def _of_words(frame: pd.DataFrame, column: Column, ids: tuple[str, ...], form: str) -> Answers:
    import pyarrow.compute as pc

    names = column.numbers if form == "indices" else column.classes
    cells = arrow_csv.text(frame[column.name])
    name = column.part or column.target.name
    if column.target.multilabel:
        words = [set(cell.split(column.target.separator)) for cell in cells.to_pylist()]
        return Answers(name, column.classes, ids, np.array([[n in row for n in names] for row in words], dtype=bool))
    if form == "topk":
        cells = pc.list_element(pc.split_pattern(cells, " "), 0)
    return Answers(name, column.classes, ids, arrow_csv.places(cells, names))


def _of_numbers(frame: pd.DataFrame, columns: Sequence[Column], ids: tuple[str, ...]) -> Answers:
    target = columns[0].target
    numbers = {column.part: checks.probabilities(frame, "", column.name)[0] for column in columns}
    if target.task == "binary" and len(columns) == 1:
        positive = numbers[columns[0].part]
        numbers = {name: positive if name == columns[0].part else 1 - positive for name in target.classes}
    grid = np.stack([np.nan_to_num(numbers.get(name, np.zeros(len(ids)))) for name in target.classes], axis=1)
    return of_grid(target.name, target.classes, ids, grid, several=target.multilabel)


def _of_pairs(frame: pd.DataFrame, layout: SubmissionLayout) -> Answers:
    target = layout.columns[0].target
    ids, classes = layout.rows(frame)
    encoded = ids.dictionary_encode()
    rows, names = encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()
    grid = np.zeros((len(names), len(target.classes)))
    numbers = np.nan_to_num(checks.probabilities(frame, layout.key, layout.columns[0].name)[0])
    known = classes >= 0
    grid[rows[known], classes[known]] = numbers[known]
    return of_grid(target.name, target.classes, tuple(names), grid, several=target.multilabel)
