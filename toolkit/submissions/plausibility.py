"""What makes a valid submission doubtful: answers that are constant, the sample's, or unlike those seen out of fold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from toolkit.base.arrays import F64
from toolkit.base.text import arrow_csv
from toolkit.core.metrics import Metric
from toolkit.errors import counted, few
from toolkit.submissions import checks
from toolkit.submissions.answers import Answers
from toolkit.submissions.checks import Problem
from toolkit.submissions.form.layout import SubmissionLayout
from toolkit.workspace import path_patterns, row_files
from toolkit.workspace.competition import Competition

if TYPE_CHECKING:
    import pandas as pd

ROWS = 20  # fewer rows prove nothing
TIED = 0.01  # share of rows that share their number with another before a rank metric is said to suffer
SHIFT, CHANCE = 0.1, 1e-6  # the share of rows that moved to other classes, and the p-value, that together are a finding
CONFIDENCE = 0.1  # difference of mean confidence
CHANGED = 0.5  # share of rows that differ from the last submission


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


def ties(frame: pd.DataFrame, layout: SubmissionLayout, metric: Metric) -> Iterator[Problem]:
    """Find columns of numbers with ties, which rounding may have made, where the metric goes by rank."""
    if not layout.format.values or layout.format.name == "topk" or len(frame) < ROWS or not metric.by_rank:
        return
    for column in layout.columns:
        if column.name in frame.columns:
            tied = len(frame) - len(arrow_csv.text(frame[column.name]).unique())
            if tied > TIED * len(frame):
                different = f"{counted(len(frame) - tied, 'different numbers')} in {counted(len(frame), 'rows')}"
                yield Problem("SUB036", tied, column.name, seen=different)


def made_by_writing(tie: Problem, ours: Sequence[Answers], layout: SubmissionLayout, frame: pd.DataFrame) -> bool:
    """Whether rows that share their number in the file (SUB036) had different ones before: a rank vote has ties of its own."""
    column = next(column for column in layout.columns if column.name == tie.column)
    for question in ours:
        if question.name == column.target.name and question.numbers is not None:
            own = question.numbers[:, question.classes.index(column.part)] if column.part in question.classes else None
            return own is None or len(np.unique(own)) > len(arrow_csv.text(frame[column.name]).unique())
    return True


def absent(ours: Answers, expected: Answers) -> Iterator[Problem]:
    """Find classes that no row is given although rows were out of fold; those that are never answered there are no news."""
    if ours.classes != expected.classes or len(ours.ids) < 10 * len(ours.classes):
        return
    missing = [name for name, here, there in zip(ours.classes, ours.counts, expected.counts, strict=True) if there and not here]
    if missing:
        yield Problem("SUB043", len(missing), ours.name, seen=few(sorted(missing)))


def shifted(ours: Answers, expected: Answers) -> Iterator[Problem]:
    """Compare the share of each class with that out of fold: chi-squared test of homogeneity, and how many rows moved."""
    if min(len(ours.ids), len(expected.ids)) < ROWS or ours.classes != expected.classes:
        return
    counts = np.stack([ours.counts, expected.counts]).astype(np.float64)
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
    """The p-value of Pearson's test that two rows of counts [2, C] have one distribution; rare classes are pooled."""
    from scipy.special import chdtrc

    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    rare = expected.min(axis=0) < 5
    if rare.any():
        counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)], axis=1)
        expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    free = counts.shape[1] - 1
    if free < 1:
        return 1.0
    statistic = float(((counts - expected) ** 2 / np.maximum(expected, 1e-12)).sum())
    return float(chdtrc(free, statistic))


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


def on_disk(competition: Competition, sample: pd.DataFrame) -> Iterator[Problem]:
    """Compare the sample's ids with the test images that are there: a stale sample asks for other ones."""
    where, key = competition.test, competition.sample_id
    folder = competition.path(where.folder)
    if where.table or not folder.is_dir():
        return  # images of another table were compared when it was read
    if any(name not in sample.columns for name in path_patterns.columns(where.pattern)):
        return
    ids = [str(name) for name in sample[key]]
    fill = path_patterns.filler(where.pattern)
    columns = [[str(cell) for cell in sample[name]] for name in path_patterns.columns(where.pattern)]
    located = row_files.locate(folder, where.pattern, map(fill, zip(*columns, strict=True)))
    lost = [name for name, files in zip(ids, located.files, strict=True) if not files]
    if len(lost) < len(ids):
        yield from checks.of_ids("SUB077", lost)
    train = competition.path(competition.train.folder).resolve()
    if train != folder.resolve() and folder.resolve() not in train.parents:
        images = len({file for own in located.files for file in own}) + len(located.unused)
        seen = f"the sample has {counted(len(ids), 'rows')}, the folder {counted(images, 'images')}"
        yield from checks.of_ids("SUB076", located.unused, seen=seen)
