"""What makes a valid submission doubtful: answers that are constant, the sample's, or unlike those seen out of fold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.base.arrays import F64
from toolkit.base.text import arrow_csv
from toolkit.core.metrics import Metric
from toolkit.errors import counted
from toolkit.submissions import checks
from toolkit.submissions.answers import Answers
from toolkit.submissions.checks import Problem
from toolkit.submissions.form.layout import SubmissionLayout
from toolkit.workspace import path_patterns
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
    """Find columns of numbers in which rounding made ties, where the metric goes by rank."""
    if not layout.format.values or layout.format.name == "topk" or len(frame) < ROWS or not by_rank(metric):
        return
    for column in layout.columns:
        if column.name in frame.columns:
            tied = len(frame) - len(arrow_csv.text(frame[column.name]).unique())
            if tied > TIED * len(frame):
                different = f"{counted(len(frame) - tied, 'different numbers')} in {counted(len(frame), 'rows')}"
                yield Problem("SUB036", tied, column.name, seen=different)


def by_rank(metric: Metric) -> bool:
    """Whether a metric sees only the order of the rows within a class."""
    return metric.accepts == "scores"


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
        yield from checks.of_ids(
            "SUB076", surplus, seen=f"the sample has {counted(len(ids), 'rows')}, the folder {counted(len(there), 'images')}"
        )


def _images(folder: Path, *, deep: bool) -> Iterator[str]:
    """The image files of a folder, as paths below it."""
    from toolkit.images.render import SUFFIXES

    for parent, below, names in os.walk(folder, followlinks=True):
        inside = os.path.relpath(parent, folder)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.normpath(os.path.join(inside, name))  # noqa: PTH118 - a million of them
        below[:] = [name for name in below if deep and not name.startswith(".")]
