"""What makes a valid submission doubtful: answers that are constant, the sample's, or unlike those seen out of fold."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import arrow_csv
from toolkit.base.arrays import F64
from toolkit.core.metrics import Metric
from toolkit.submissions import checks
from toolkit.submissions.checks import Problem
from toolkit.submissions.formats import Column, Plan
from toolkit.workspace import path_patterns
from toolkit.workspace.competition import Competition

if TYPE_CHECKING:
    import pandas as pd

ROWS = 20  # fewer rows prove nothing
TIED = 0.01  # share of rows that share their number with another before a rank metric is said to suffer
SHIFT, CHANCE = 0.1, 1e-6  # the share of rows that moved to other classes, and the p-value, that together are a finding
CONFIDENCE = 0.1  # difference of mean confidence
CHANGED = 0.5  # share of rows that differ from the last submission


@dataclass(frozen=True, eq=False)
class Answers:
    """What a submission says of one question (a target or a factor of it) per id.

    `labels` is int64 [N] (the number of the class, -1 for none) or, where a row may have several, bool [N, C]; `confidence`
    (float64 [N], the largest probability) is there where the numbers are.
    """

    name: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[Any]
    confidence: F64 | None = None

    @property
    def shares(self) -> NDArray[np.int64]:
        """How many rows have each class, int64 [C]."""
        if self.labels.ndim == 2:
            return np.asarray(self.labels.sum(axis=0, dtype=np.int64))
        counts: NDArray[np.int64] = np.bincount(self.labels[self.labels >= 0], minlength=len(self.classes))
        return counts

    def said(self, row: int) -> str:
        """The class, or the classes, of one row."""
        label = self.labels[row]
        if self.labels.ndim == 2:
            return " ".join(name for name, yes in zip(self.classes, label, strict=True) if yes) or "none"
        return self.classes[label] if label >= 0 else "no class"


def same_as_sample(frame: pd.DataFrame, sample: pd.DataFrame, key: str) -> Iterator[Problem]:
    """Find a submission that is the sample itself: certain where the sample's cells differ, else only constant."""
    names = [str(name) for name in sample.columns if name != key]
    cells = {name: arrow_csv.text(frame[name]) for name in names if name in frame.columns}
    constant = len(frame) >= ROWS and all(len(column.unique()) == 1 for column in cells.values())
    same = len(frame) == len(sample) and len(cells) == len(names)
    same = same and all(column.equals(arrow_csv.text(sample[name])) for name, column in cells.items())
    if same and not constant and len(frame) >= ROWS:
        yield Problem("SUB070")
    elif constant:
        shown = ", ".join(f"{name} {column[0].as_py()!r}" for name, column in list(cells.items())[: checks.SHOWN])
        yield Problem("SUB071", len(frame), seen=shown + (", as in the sample" if same else ""))


def ties(frame: pd.DataFrame, fitted: Plan, metric: Metric) -> Iterator[Problem]:
    """Find columns of numbers in which rounding made ties, where the metric goes by rank."""
    if not fitted.format.values or fitted.name.startswith("topk") or len(frame) < ROWS or not by_rank(metric):
        return
    for column in fitted.columns:
        if column.name in frame.columns:
            tied = len(frame) - len(arrow_csv.text(frame[column.name]).unique())
            if tied > TIED * len(frame):
                different = f"{len(frame) - tied:,} different numbers in {len(frame):,} rows"
                yield Problem("SUB036", tied, column.name, seen=different)


def by_rank(metric: Metric) -> bool:
    """Whether a metric sees only the order of the rows within a class."""
    return metric.accepts == "scores"


def shifted(ours: Answers, expected: Answers) -> Iterator[Problem]:
    """Compare the share of each class with that out of fold: chi-squared test of homogeneity, and how many rows moved."""
    if min(len(ours.ids), len(expected.ids)) < ROWS or ours.classes != expected.classes:
        return
    counts = np.stack([ours.shares, expected.shares]).astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        return
    share = counts / totals
    moved = float(np.abs(share[0] - share[1]).sum() / 2)
    chance = homogeneity(counts)
    if moved > SHIFT and chance < CHANCE:
        worst = np.argsort(-np.abs(share[0] - share[1]), kind="stable")[: checks.SHOWN]
        shown = ", ".join(f"{ours.classes[c]!r} {share[0, c]:.1%} instead of {share[1, c]:.1%}" for c in worst)
        yield Problem("SUB072", round(moved * len(ours.ids)), ours.name, seen=f"{shown}; p {_small(chance)}")


def homogeneity(counts: F64) -> float:
    """The p-value of Pearson's test that two rows of counts [2, C] have one distribution; rare classes are pooled.

    Wilson and Hilferty's cube root stands for the chi-squared distribution, to a few per cent of the p-value's logarithm.
    """
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    rare = expected.min(axis=0) < 5
    if rare.any():
        counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)], axis=1)
        expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    free = counts.shape[1] - 1
    if free < 1:
        return 1.0
    statistic = float(((counts - expected) ** 2 / np.maximum(expected, 1e-12)).sum())
    z = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))


def _small(chance: float) -> str:
    return f"= {chance:.0e}" if chance > 1e-300 else "< 1e-300"


def unsure(ours: Answers, expected: Answers) -> Iterator[Problem]:
    """Compare the mean confidence with that out of fold."""
    if ours.confidence is None or expected.confidence is None or min(len(ours.ids), len(expected.ids)) < ROWS:
        return
    here, there = ours.confidence, expected.confidence
    error = math.sqrt(here.var() / len(here) + there.var() / len(there))
    gap = float(here.mean() - there.mean())
    if abs(gap) > max(CONFIDENCE, 6 * error):
        yield Problem("SUB073", column=ours.name, seen=f"mean {here.mean():.3f}, out of fold {there.mean():.3f}")


def moves(before: Sequence[Answers], after: Sequence[Answers]) -> list[tuple[str, str, str, int]]:
    """(question, class before, class after, rows) of every change, the most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for old, new in zip(before, after, strict=True):
        place = {name: i for i, name in enumerate(new.ids)}
        pairs = [(i, place[name]) for i, name in enumerate(old.ids) if name in place]
        rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        hit = rows[(old.labels[rows[:, 0]] != new.labels[rows[:, 1]]).reshape(len(rows), -1).any(axis=1)]
        counts.update((old.name, old.said(i), new.said(j)) for i, j in hit.tolist())
    return [(*move, count) for move, count in counts.most_common()]


def differing(ours: Sequence[Answers], others: Sequence[Answers]) -> tuple[float, NDArray[np.bool_], list[str]]:
    """The share of ids that both have whose answers differ, which of them (bool [N]), and those ids.

    A question that only one of the two answers makes every row differ.
    """
    place = {name: i for i, name in enumerate(others[0].ids)}
    shared = [i for i, name in enumerate(ours[0].ids) if name in place]
    ids = [ours[0].ids[i] for i in shared]
    rows = np.array([place[name] for name in ids], dtype=np.int64)
    theirs = {answers.name: answers for answers in others}
    changed = np.zeros(len(ids), dtype=bool)
    for answers in ours:
        other = theirs.get(answers.name)
        if other is None or other.classes != answers.classes:
            changed[:] = True
            continue
        here, there = answers.labels[shared], other.labels[rows]
        changed |= (here != there).reshape(len(ids), -1).any(axis=1)
    return (float(changed.mean()) if ids else 1.0), changed, ids


def on_disk(competition: Competition, sample: pd.DataFrame) -> Iterator[Problem]:
    """Compare the sample's ids with the test images that are there: a stale sample asks for other ones."""
    where, key = competition.test, competition.sample_id
    folder = competition.path(where.folder)
    if where.table or not folder.is_dir() or "*" in where.pattern:
        return  # images of another table were compared when it was read
    if any(name not in sample.columns for name in path_patterns.columns(where.pattern)):
        return
    ids = [str(name) for name in sample[key]]
    cells = {name: list(sample[name]) for name in path_patterns.columns(where.pattern)}
    rows = zip(*cells.values(), strict=True)
    wanted = [os.path.normpath(path_patterns.fill(where.pattern, dict(zip(cells, row, strict=True)))[0]) for row in rows]
    there = set(_images(folder, deep=any(os.sep in name for name in wanted[:ROWS])))
    lost = [name for name, file in zip(ids, wanted, strict=True) if file not in there]
    if len(lost) < len(ids):
        yield from checks.of_ids("SUB077", lost)
    train = competition.path(competition.train.folder).resolve()
    if train != folder.resolve() and folder.resolve() not in train.parents:
        surplus = sorted(there - set(wanted))
        yield from checks.of_ids("SUB076", surplus, seen=f"the sample has {len(ids):,} rows, the folder {len(there):,} images")


def _images(folder: Path, *, deep: bool) -> Iterator[str]:
    """The image files of a folder, as paths below it."""
    from toolkit.images.render import SUFFIXES

    for parent, below, names in os.walk(folder, followlinks=True):
        inside = os.path.relpath(parent, folder)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.normpath(os.path.join(inside, name))  # noqa: PTH118 - a million of them
        below[:] = [name for name in below if deep and not name.startswith(".")]


def read(frame: pd.DataFrame, fitted: Plan, key: str) -> list[Answers]:
    """What a submission's cells say, per question; columns that are not there are left out."""
    ids = tuple(arrow_csv.text(frame[key]).to_pylist())
    columns = [column for column in fitted.columns if column.name in frame.columns]
    kind = fitted.name.partition(":")[0]
    if fitted.format.rows:
        return [_of_pairs(frame, fitted, key)]
    if kind in ("labels", "indices", "topk"):
        return [_of_words(frame, column, ids, kind) for column in columns]
    found = [_of_numbers(frame, [c for c in columns if c.target is target], ids) for target in _targets(columns)]
    return found if fitted.format.values else [replace(answers, confidence=None) for answers in found]


def _targets(columns: Sequence[Column]) -> list[Any]:
    return list({column.target.name: column.target for column in columns}.values())


def _of_words(frame: pd.DataFrame, column: Column, ids: tuple[str, ...], kind: str) -> Answers:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [str(i) for i in range(len(column.classes))] if kind == "indices" else list(column.classes)
    cells = arrow_csv.text(frame[column.name])
    name = column.part or column.target.name
    if column.target.multilabel:
        words = [set(cell.split(column.target.separator)) for cell in cells.to_pylist()]
        return Answers(name, column.classes, ids, np.array([[n in row for n in names] for row in words], dtype=bool))
    if kind == "topk":
        cells = pc.list_element(pc.split_pattern(cells, " "), 0)
    found = pc.index_in(cells, value_set=pa.array(names, pa.large_string())).fill_null(-1)
    return Answers(name, column.classes, ids, found.to_numpy(zero_copy_only=False).astype(np.int64))


def _of_numbers(frame: pd.DataFrame, columns: Sequence[Column], ids: tuple[str, ...]) -> Answers:
    target = columns[0].target
    found = {column.part: checks.probabilities(frame, "", column.name)[0] for column in columns}
    if target.task == "binary" and len(columns) == 1:
        positive = found[columns[0].part]
        found = {name: positive if name == columns[0].part else 1 - positive for name in target.classes}
    grid = np.stack([np.nan_to_num(found.get(name, np.zeros(len(ids)))) for name in target.classes], axis=1)
    return of_grid(target.name, target.classes, ids, grid, several=target.multilabel)


def _of_pairs(frame: pd.DataFrame, fitted: Plan, key: str) -> Answers:
    assert fitted.format.rows is not None
    target = fitted.columns[0].target
    ids, places = fitted.format.rows(frame, key, fitted.columns)
    encoded = ids.dictionary_encode()
    rows, names = encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()
    grid = np.zeros((len(names), len(target.classes)))
    numbers = np.nan_to_num(checks.probabilities(frame, key, fitted.columns[0].name)[0])
    known = places >= 0
    grid[rows[known], places[known]] = numbers[known]
    return of_grid(target.name, target.classes, tuple(names), grid, several=target.multilabel)


def of_grid(name: str, classes: tuple[str, ...], ids: tuple[str, ...], grid: F64, *, several: bool) -> Answers:
    """The answers of probabilities [N, C]; `several` where a row may have several classes."""
    if several:
        return Answers(name, classes, ids, grid >= 0.5, np.maximum(grid, 1 - grid).mean(axis=1))
    return Answers(name, classes, ids, grid.argmax(axis=1), grid.max(axis=1))


def by_question(fitted: Plan, tables: Mapping[str, Any]) -> list[Answers]:
    """What predictions say to the questions that a format asks: each target, or each factor that has a column."""
    found: dict[str, Answers] = {}
    for column in fitted.columns:
        table, target = tables.get(column.target.name), column.target
        name = column.part if column.part in target.factors else target.name
        if table is None or name in found:
            continue
        table = table.with_classes(target.classes)
        if name != target.name:
            shape = [len(classes) for classes in target.factors.values()]
            part = np.unravel_index(table.decided, shape)[list(target.factors).index(name)]
            found[name] = Answers(name, column.classes, table.ids, part)
        elif table.values is None:
            found[name] = Answers(name, target.classes, table.ids, table.decided)
        else:
            found[name] = of_grid(name, target.classes, table.ids, table.values, several=target.multilabel)
    return list(found.values())
