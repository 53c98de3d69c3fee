"""Honest scores: whatever is chosen is chosen inside each outer fold and scored on the fold left out, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import metrics
from toolkit.blending import WEIGHERS, Weights, fit_weights
from toolkit.calibration import Adjustment
from toolkit.errors import DataError
from toolkit.metrics import Metric
from toolkit.objectives import BRIER, EPS, decide

F64 = NDArray[np.float64]
Labels = NDArray[Any]
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


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `judge` found: estimates by name ("best_single", "uniform", "in_sample", "nested"), and what to use and why.

    `weights` were fitted to all rows by the weigher that is `chosen`.
    """

    estimates: Mapping[str, Estimate]
    chosen: str
    reason: str
    weights: Weights


def weigher(how: str, metric: Metric, **options: Any) -> Chooser:
    """A chooser of blend weights: one of WEIGHERS with its options."""
    return lambda stack, truth: fit_weights(stack, truth, metric, how, **options).apply


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

    Raises:
        DataError: fewer than two folds.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise DataError("a nested score needs at least two folds", hint="Leave the folds out, or use a split with more.")
    said = {name: np.empty(stack.shape[1:]) for name in choosers}
    for number in numbers:
        kept, out = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        seen, unseen = stack.take(kept, axis=1), stack.take(out, axis=1)
        for name, choose in choosers.items():
            said[name][out] = choose(seen, truth[kept])(unseen)
    return said


def outer_folds(truth: Labels, count: int = 5, *, groups: Sequence[str] | None = None, seed: int = 0) -> NDArray[np.int64]:
    """Folds [N] for `nested`: classes spread evenly (by a group's commonest class), groups never torn.

    Raises:
        DataError: fewer rows or groups than folds.
    """
    unit, members = _units(groups, len(truth))
    if members < count:
        raise DataError(f"{members} rows or groups cannot make {count} folds", hint="Use fewer folds.")
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
    said: Mapping[str, F64],
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

    Raises:
        DataError: no draw has a score, as when all rows are of one class.
    """
    unit, members = _units(groups, len(truth))
    score = _resampled(truth, metric, list(said.values()))
    rng = np.random.default_rng(seed)
    drawn = np.full((draws, len(said)), np.nan)
    for draw in range(draws):
        counts = np.bincount(rng.integers(0, members, members, dtype=np.int32), minlength=members)
        drawn[draw] = score(counts if groups is None else counts[unit])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        raise DataError(f"{metric.name} cannot be had from any resample of these {len(truth):,} rows")
    once = score(np.ones(len(truth), dtype=np.int64))
    place, sign = list(said).index(baseline), metric.gain(1.0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    found = {}
    for column, name in enumerate(said):
        stretch = (widen or {}).get(name, 1.0)
        gain, gains = sign * (once[column] - once[place]), sign * (drawn[:, column] - drawn[:, place])
        low, high = once[column] + stretch * (np.quantile(drawn[:, column], tails) - once[column])
        gain_low, gain_high = gain + stretch * (np.quantile(gains, tails) - gain)
        found[name] = Estimate(*map(float, (once[column], low, high, gain, gain_low, gain_high)))
    return found


def widening(folds: int) -> float:
    """By how much the interval of a nested score must be wider than that of a fixed table.

    Resampled rows do not show that other rows would have led to other choices. Nadeau and Bengio (2003) add a share of
    test to training rows to the variance: 1/K becomes 1/K + 1/(K - 1).
    """
    return float(np.sqrt(1 + folds / (folds - 1)))


def judge(
    stack: F64,
    truth: Labels,
    metric: Metric,
    how: str = "greedy",
    *,
    folds: NDArray[np.int64] | None = None,
    groups: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
    always: bool = False,
    **options: Any,
) -> Verdict:
    """Should these members be blended by this weigher, or by the plain mean? The plain mean, unless the gain exceeds its noise.

    Tables are [M, N, C], truth int64 [N] or bool [N, C]. Nested over `folds` (5 are made if none are given); `always` takes the
    weigher whatever comes out, and the reason says so.

    Raises:
        DataError: see `fit_weights`, `nested` and `outer_folds`; folds that tear a group apart.
    """
    folds = outer_folds(truth, groups=groups, seed=seed) if folds is None else folds
    _check_groups(folds, groups)
    weights = fit_weights(stack, truth, metric, how, **options)
    choosers = {"best_single": weigher("best_single", metric), "nested": weigher(how, metric, **options)}
    apart = nested(stack, truth, choosers, folds)
    said = {
        "best_single": apart["best_single"],
        "uniform": WEIGHERS["uniform"](stack, truth, metric).apply(stack),
        "in_sample": weights.apply(stack),
        "nested": apart["nested"],
    }
    widen = dict.fromkeys(choosers, widening(len(np.unique(folds))))
    found = compare(truth, metric, said, groups=groups, widen=widen, draws=draws, seed=seed)
    chosen, reason = decide_between(how, found["nested"], metric)
    if always and chosen != how:
        chosen, reason = how, f"{how} because it was asked for, although the rule says: {reason}"
    if chosen != how:
        weights = fit_weights(stack, truth, metric, chosen)
    return Verdict(found, chosen, reason, weights)


def decide_between(how: str, nested_estimate: Estimate, metric: Metric) -> tuple[str, str]:
    """The default rule: which of `how` and "uniform" to use, and a sentence that says why."""
    one = nested_estimate
    if how == "uniform":
        return how, "uniform: the plain mean was asked for, there is nothing to compare"
    interval = f"95 % interval {one.gain_low:+.5f} to {one.gain_high:+.5f}"
    gain = f"nested gain over the plain mean in {metric.name}: {one.gain:+.5f}, {interval}"
    if one.gain_low > 0:
        return how, f"{how}: {gain}, above zero throughout"
    return "uniform", f"uniform: {gain}, " + (
        f"so {how} is worse" if one.gain_high < 0 else f"so {how} cannot be told from noise"
    )


def _resampled(truth: Labels, metric: Metric, said: Sequence[F64]) -> Callable[[NDArray[np.int64]], F64]:
    """How to score every table [N, C] when row n counts `counts[n]` times: [tables]; NaN where the draw has no score."""
    losses = _row_scores(truth, metric, said)
    if losses is not None:
        return lambda counts: np.asarray(losses @ counts.astype(np.float64) / counts.sum())
    if metric.score is metrics.macro_f1 and truth.ndim == 1:
        labels, size = [values.argmax(axis=1) for values in said], said[0].shape[1]
        return lambda counts: np.array([_weighted_f1(truth, mine, counts, size) for mine in labels])

    def again(counts: NDArray[np.int64]) -> F64:
        rows = np.repeat(np.arange(len(truth)), counts)
        try:
            return np.array([_score(truth[rows], metric, values[rows]) for values in said])
        except DataError:  # a draw without one of the classes
            return np.full(len(said), np.nan)

    return again


def _score(truth: Labels, metric: Metric, values: F64) -> float:
    return metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values)


def _row_scores(truth: Labels, metric: Metric, said: Sequence[F64]) -> F64 | None:
    """Scores of single rows [tables, N] for metrics that are their mean; None for others."""
    rows = np.arange(len(truth))
    if metric.score is metrics.accuracy:
        hits = [decide(values, truth) == truth for values in said]
        return np.stack([hit.all(axis=1) if hit.ndim == 2 else hit for hit in hits]).astype(np.float64)
    if metric.score is metrics.log_loss:
        if truth.ndim == 2:
            clipped = [np.clip(values, EPS, 1 - EPS) for values in said]
            return np.stack([-np.where(truth, np.log(p), np.log1p(-p)).mean(axis=1) for p in clipped])
        return np.stack([-np.log(np.maximum(p[rows, truth] / p.sum(axis=1), EPS)) for p in said])
    if metric.score is BRIER.score:
        onehot = truth if truth.ndim == 2 else truth[:, None] == np.arange(said[0].shape[1])
        return np.stack([((p - onehot) ** 2).sum(axis=1) for p in said])
    return None


def _weighted_f1(truth: Labels, labels: Labels, counts: NDArray[np.int64], size: int) -> float:
    right = np.bincount(truth, np.where(truth == labels, counts, 0), size)
    both = np.bincount(truth, counts, size) + np.bincount(labels, counts, size)
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def _units(groups: Sequence[str] | None, rows: int) -> tuple[NDArray[np.int64], int]:
    """The number of each row's group (of the row itself where there are none), and how many there are."""
    if groups is None:
        return np.arange(rows), rows
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return place, len(names)


def _check_groups(folds: NDArray[np.int64], groups: Sequence[str] | None) -> None:
    if groups is None:
        return
    unit, members = _units(groups, len(folds))
    first = np.zeros(members, dtype=np.int64)
    first[unit] = folds
    torn = np.flatnonzero(first[unit] != folds)
    if len(torn):
        raise DataError(f"group {groups[int(torn[0])]!r} has rows in several folds", hint="Make the folds by group.")
