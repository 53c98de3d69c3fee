"""Honest scores: whatever is chosen is chosen inside each outer fold and scored on the fold left out, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Labels
from toolkit.blending.adjustment import EPS, Adjustment
from toolkit.blending.objectives import BRIER, decide
from toolkit.blending.weighers import fit_weights
from toolkit.core import metrics
from toolkit.core.metrics import Metric
from toolkit.errors import DataError, counted

SCALED, SCALES = 20_000, 200  # rows and draws that bound how far the scales of folds differ

Rule = Callable[[F64], F64]  # tables [M, n, C] → what is said of their rows, [n, C]
Chooser = Callable[[F64, Labels], Rule]  # looks at some rows' tables and truth, and settles on a rule


@dataclass(frozen=True)
class Estimate:
    """A score with its interval, and its gain over the baseline (larger is better, whatever the metric) with its own."""

    score: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def weigher(how: str, metric: Metric, options: Mapping[str, Any] | None = None) -> Chooser:
    """A chooser of blend weights: one of WEIGHERS with its options."""
    return lambda stack, truth: fit_weights(stack, truth, metric, how, options).apply


def then(choose: Chooser, adjust: Callable[[F64, Labels], Adjustment]) -> Chooser:
    """A chooser whose rule is that of `choose`, then an adjustment fitted to what it says of the rows it was chosen on."""

    def both(stack: F64, truth: Labels) -> Rule:
        rule = choose(stack, truth)
        adjustment = adjust(rule(stack), truth)
        return lambda unseen: adjustment.apply(rule(unseen))

    return both


def nested(stack: F64, truth: Labels, choosers: Mapping[str, Chooser], folds: NDArray[np.int64]) -> dict[str, F64]:
    """What each chooser's rule, settled on the other folds, says of each row: [N, C] from tables [M, N, C]; folds int64 [N].

    Rows of one group must share their fold, as `outer_folds` and split.csv see to.

    >>> truth, folds = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    >>> stack = np.stack([np.eye(2)[truth], np.full((4, 2), 0.5)])
    >>> nested(stack, truth, {"best": weigher("best_single", metrics.METRICS["accuracy"])}, folds)["best"].argmax(axis=1)
    array([0, 1, 0, 1])

    Raises:
        DataError: fewer than two folds.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise DataError("a nested score needs at least two folds", hint="Leave the folds out, or use a split with more.")
    predicted = {name: np.empty(stack.shape[1:]) for name in choosers}
    for number in numbers:
        kept, out = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        seen, unseen = stack.take(kept, axis=1), stack.take(out, axis=1)
        for name, choose in choosers.items():
            predicted[name][out] = choose(seen, truth[kept])(unseen)
    return predicted


def outer_folds(truth: Labels, count: int = 5, *, groups: Sequence[str] | None = None, seed: int = 0) -> NDArray[np.int64]:
    """Folds [N] for `nested`: classes spread evenly (by a group's commonest class), groups never torn.

    >>> folds = outer_folds(np.array([0, 0, 1, 1]), 2)
    >>> sorted(folds[:2].tolist()), sorted(folds[2:].tolist())  # each class is spread
    ([0, 1], [0, 1])

    Raises:
        DataError: fewer rows or groups than folds.
    """
    unit, members = units(groups, len(truth))
    if members < count:
        raise DataError(f"{counted(members, 'rows')} or groups cannot make {counted(count, 'folds')}", hint="Use fewer folds.")
    rng = np.random.default_rng(seed)
    kind = truth if truth.ndim == 1 else truth @ rng.permutation(truth.shape[1])
    size = np.ones(members, dtype=np.int64)
    if groups is not None:
        tally = np.zeros((members, int(kind.max(initial=0)) + 1), dtype=np.int32)
        np.add.at(tally, (unit, kind), 1)
        kind, size = tally.argmax(axis=1), tally.sum(axis=1)
    shuffled = rng.permutation(members)
    dealt = shuffled[np.lexsort((-size[shuffled], kind[shuffled]))]
    fold_of = np.empty(members, dtype=np.int64)
    fold_of[dealt] = np.arange(members) % count
    return fold_of[unit]


def compare(
    truth: Labels,
    metric: Metric,
    tables: Mapping[str, F64],
    *,
    baseline: str = "uniform",
    groups: Sequence[str] | None = None,
    widen: Mapping[str, float] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Scores of several tables [N, C] of the same rows, each with a paired percentile bootstrap interval.

    Every draw takes the same rows (with `groups`, whole groups) from all tables, so that gains are compared within a draw.
    `widen` stretches the intervals of tables by name: see `widening`.

    >>> truth = np.array([0, 1] * 20)
    >>> tables = {"uniform": np.full((40, 2), 0.5), "blend": np.eye(2)[truth]}
    >>> estimate = compare(truth, metrics.METRICS["accuracy"], tables)["blend"]
    >>> estimate.score, estimate.gain, estimate.gain_low > 0
    (1.0, 0.5, True)

    Raises:
        DataError: no draw has a score, as when all rows are of one class.
    """
    unit, members = units(groups, len(truth))
    score = _resampled(truth, metric, list(tables.values()))
    rng = np.random.default_rng(seed)
    drawn = np.full((draws, len(tables)), np.nan)
    for draw in range(draws):
        counts = np.bincount(rng.integers(0, members, members, dtype=np.int32), minlength=members)
        drawn[draw] = score(counts if groups is None else counts[unit])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        raise DataError(f"{metric.name} cannot be had from any resample of these {counted(len(truth), 'rows')}")
    once = score(np.ones(len(truth), dtype=np.int64))
    place, sign = list(tables).index(baseline), metric.gain(1.0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    estimates = {}
    for column, name in enumerate(tables):
        stretch = (widen or {}).get(name, 1.0)
        gain, gains = sign * (once[column] - once[place]), sign * (drawn[:, column] - drawn[:, place])
        low, high = once[column] + stretch * (np.quantile(drawn[:, column], tails) - once[column])
        gain_low, gain_high = gain + stretch * (np.quantile(gains, tails) - gain)
        estimates[name] = Estimate(*map(float, (once[column], low, high, gain + 0.0, gain_low, gain_high)))
    return estimates


@dataclass(frozen=True)
class FoldScales:
    """A score over all rows, the mean of the folds' own, and a 95 % interval of how much the second exceeds the first."""

    pooled: float
    mean: float
    low: float
    high: float

    @property
    def note(self) -> str:
        """A sentence where the difference is no chance; empty where it may be."""
        if self.low <= 0 <= self.high:
            return ""
        return (
            f"pooled over the folds {self.pooled:.5f}, the folds alone {self.mean:.5f} in the mean (95 % of the difference "
            f"{self.low:+.5f} to {self.high:+.5f}): fold models answer on different scales, and the rows of a test set are all "
            "answered on one; a rank vote ranks within each fold, and is scored so"
        )


def fold_scales(
    truth: Labels, metric: Metric, values: F64, folds: NDArray[np.int64], *, groups: Sequence[str] | None = None
) -> FoldScales | None:
    """A table [N, C] scored as a whole and fold by fold, for metrics that compare rows with each other; else None.

    Rows of a fold without all it takes, as an area of one class, are not in the mean. Of more than 20,000 rows, that many bound
    the difference. None as well where no fold has what the metric needs.
    """
    if metric.accepts != "scores" or metric.rows is not None or len(np.unique(folds)) < 2:
        return None

    def mean(rows: Labels, table: F64) -> float:
        scores = []
        for number in np.unique(folds[rows]):
            inside = folds[rows] == number
            with suppress(DataError):
                scores.append(metric.score(truth[rows[inside]], table[inside]))
        return float(np.mean(scores)) if scores else np.nan  # a draw without a score, which does not count

    def excess(rows: Labels, table: F64) -> float:
        return mean(rows, table) - metric.score(truth[rows], table)

    every = np.arange(len(truth))
    few = every if len(every) <= SCALED else np.sort(np.random.default_rng(0).choice(every, SCALED, replace=False))
    some = None if groups is None else [groups[i] for i in few.tolist()]
    try:
        gap = replace(metric, name=f"{metric.name} by fold", score=excess)
        estimate = compare(few, gap, {"": values[few]}, baseline="", groups=some, draws=SCALES)[""]
        return FoldScales(metric.score(truth, values), mean(every, values), estimate.low, estimate.high)
    except DataError:
        return None


def joint(metric: Metric, truths: Sequence[Labels], classes: Sequence[int]) -> tuple[Metric, Labels]:
    """The mean of a metric over several targets, whose tables stand side by side [N, sum of classes], and the truth it is told.

    Of one target, the metric and the truth as they are.
    """
    if len(truths) == 1:
        return metric, truths[0]
    parts = [truth.reshape(len(truth), -1).astype(np.int64) for truth in truths]
    columns, places = np.cumsum([0, *classes]), np.cumsum([0, *(part.shape[1] for part in parts)])

    def mean(joined: Labels, values: F64) -> float:
        scores = []
        for i, truth in enumerate(truths):
            own = joined[:, places[i] : places[i + 1]]
            own = own.astype(bool) if truth.ndim == 2 else own[:, 0]
            scores.append(score_of(own, metric, values[:, columns[i] : columns[i + 1]]))
        return float(np.mean(scores))

    return replace(metric, score=mean, accepts="probabilities", rows=None), np.concatenate(parts, axis=1)


def widening(folds: int) -> float:
    """By how much the interval of a nested score must be wider than that of a fixed table.

    Resampled rows do not show that other rows would have led to other choices. Nadeau and Bengio (2003) add a share of
    test to training rows to the variance: 1/K becomes 1/K + 1/(K - 1).

    >>> round(widening(5), 2)
    1.5
    """
    return float(np.sqrt(1 + folds / (folds - 1)))


def decide_between(how: str, nested_estimate: Estimate, metric: Metric) -> tuple[str, str]:
    """The default rule: which of `how` and "uniform" to use, and a sentence that says why."""
    estimate = nested_estimate
    if how == "uniform":
        return how, "uniform: the plain mean was asked for, there is nothing to compare"
    interval = f"95 % interval {estimate.gain_low:+.5f} to {estimate.gain_high:+.5f}"
    gain = f"nested gain over the plain mean in {metric.name}: {estimate.gain:+.5f}, {interval}"
    if estimate.gain_low > 0:
        return how, f"{how}: {gain}, above zero throughout"
    return "uniform", f"uniform: {gain}, " + (
        f"so {how} is worse" if estimate.gain_high < 0 else f"so {how} cannot be told from noise"
    )


def _resampled(truth: Labels, metric: Metric, tables: Sequence[F64]) -> Callable[[NDArray[np.int64]], F64]:
    """How to score every table [N, C] when row n counts `counts[n]` times: [tables]; NaN where the draw has no score."""
    losses = row_scores(truth, metric, tables)
    if losses is not None:
        return lambda counts: np.asarray(losses @ counts.astype(np.float64) / counts.sum())
    if metric.score is metrics.roc_auc:
        return _areas(truth, tables)
    if metric.score is metrics.macro_f1 and truth.ndim == 1:
        labels, size = [values.argmax(axis=1) for values in tables], tables[0].shape[1]
        return lambda counts: np.array([_weighted_f1(truth, mine, counts, size) for mine in labels])

    def again(counts: NDArray[np.int64]) -> F64:
        rows = np.repeat(np.arange(len(truth)), counts)
        try:
            return np.array([score_of(truth[rows], metric, values[rows]) for values in tables])
        except DataError:  # a draw without one of the classes
            return np.full(len(tables), np.nan)

    return again


def score_of(truth: Labels, metric: Metric, values: F64) -> float:
    """The metric of what is said [N, C]; labels are its largest values, or those at 0.5 and above."""
    return metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values)


def row_scores(truth: Labels, metric: Metric, tables: Sequence[F64]) -> F64 | None:
    """Scores of single rows [tables, N] for metrics that are their mean; None for others."""
    rows = np.arange(len(truth))
    if metric.score is metrics.log_loss:
        if truth.ndim == 2:
            clipped = [np.clip(values, EPS, 1 - EPS) for values in tables]
            return np.stack([-np.where(truth, np.log(p), np.log1p(-p)).mean(axis=1) for p in clipped])
        return np.stack([-np.log(np.maximum(p[rows, truth] / p.sum(axis=1), EPS)) for p in tables])
    if metric.score is BRIER.score:
        onehot = truth if truth.ndim == 2 else truth[:, None] == np.arange(tables[0].shape[1])
        return np.stack([((p - onehot) ** 2).sum(axis=1) for p in tables])
    if metric.rows is not None:
        given = [decide(values, truth) if metric.accepts == "labels" else values for values in tables]
        return np.stack([metric.rows(truth, values) for values in given])
    return None


def _areas(truth: Labels, tables: Sequence[F64]) -> Callable[[NDArray[np.int64]], F64]:
    """ROC-AUC of every table: each column is sorted once, and a draw only counts along it."""
    classes = tables[0].shape[1]
    onehot = truth if truth.ndim == 2 else truth[:, None] == np.arange(classes)
    # two exclusive classes whose columns mirror each other have one area
    mirrored = truth.ndim == 1 and classes == 2 and all(np.abs(p.sum(axis=1) - 1).max(initial=0) < 1e-12 for p in tables)
    columns = [c for c in ([1] if mirrored else range(classes)) if 0 < onehot[:, c].sum() < len(onehot)]
    ready = [[_sorted(onehot[:, c], values[:, c]) for c in columns] for values in tables]

    def score(counts: NDArray[np.int64]) -> F64:
        areas = np.array([[_weighted_area(*parts, counts) for parts in table] for table in ready])
        usable = np.isfinite(areas).all(axis=0)
        return np.asarray(areas[:, usable].mean(axis=1)) if usable.any() else np.full(len(tables), np.nan)

    return score


_Ranked = tuple[NDArray[np.intp], F64, NDArray[np.intp] | None]


def _sorted(positive: NDArray[np.bool_], score: F64) -> _Ranked:
    """The rows in order of their score, which of them are positive (as 0 and 1), and where ties start if there are any."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    fresh = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    return order, positive[order].astype(np.float64), None if fresh.all() else np.flatnonzero(fresh)


def _weighted_area(order: NDArray[np.intp], positive: F64, starts: NDArray[np.intp] | None, counts: NDArray[np.int64]) -> float:
    """Area under the ROC curve when row n counts `counts[n]` times, ties half; NaN where one side is empty."""
    weight = counts[order].astype(np.float64)
    yes = weight * positive
    no = weight - yes
    if starts is not None:
        yes, no = np.add.reduceat(yes, starts), np.add.reduceat(no, starts)
    below = np.cumsum(no)
    total = yes.sum() * below[-1]
    return float((yes @ below - yes @ no / 2) / total) if total else np.nan


def _weighted_f1(truth: Labels, labels: Labels, counts: NDArray[np.int64], size: int) -> float:
    right = np.bincount(truth, np.where(truth == labels, counts, 0), size)
    both = np.bincount(truth, counts, size) + np.bincount(labels, counts, size)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def units(groups: Sequence[str] | None, rows: int) -> tuple[NDArray[np.int64], int]:
    """The number of each row's group (of the row itself where there are none), and how many there are."""
    if groups is None:
        return np.arange(rows), rows
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return place, len(names)


def check_groups(folds: NDArray[np.int64], groups: Sequence[str] | None) -> None:
    """See that no group has rows in several folds.

    Raises:
        DataError: one has.
    """
    if groups is None:
        return
    unit, members = units(groups, len(folds))
    first = np.zeros(members, dtype=np.int64)
    first[unit] = folds
    torn = np.flatnonzero(first[unit] != folds)
    if len(torn):
        raise DataError(f"group {groups[int(torn[0])]!r} has rows in several folds", hint="Make the folds by group.")
