"""Scores of many blends of the same members: a metric reduced once to the numbers it needs, so that each blend is cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Labels
from toolkit.blending.adjustment import EPS
from toolkit.core import metrics
from toolkit.core.metrics import METRICS, Metric, brier

ROUNDING = 1e-12
BRIER = METRICS["brier"]


@dataclass(frozen=True, eq=False)
class Objective:
    """A metric over blends: `gain(x)` is the metric's gain for any x = Σ w[m] · members[m] whose weights sum to 1.

    `members` is float64 [M, …]: not the tables but what the metric needs of them.
    """

    members: F64
    gain: Callable[[F64], float]

    def of(self, weights: F64) -> float:
        """The gain of the blend with these weights [M]."""
        return self.gain(np.tensordot(weights, self.members, axes=1))


def objective(stack: F64, truth: Labels, metric: Metric) -> Objective:
    """Reduce M tables [M, N, C] and the truth (int64 [N]; multilabel: bool [N, C]) to what the metric needs.

    Log-loss needs the probability of the true class only, Brier the Gram matrix of the members (its blends are scored from the
    weights alone), ROC-AUC columns that lie together; any other metric needs all of the table.
    """
    if metric.score is metrics.log_loss:
        return Objective(true_probability(stack, truth), lambda p: float(np.log(np.maximum(p, EPS)).mean()))
    if metric.score is brier:
        gram, linear, constant = quadratic(stack, truth)
        return Objective(np.eye(len(stack)), lambda w: -float(w @ gram @ w - 2 * w @ linear + constant))
    if metric.score is metrics.roc_auc:
        return _areas(stack, truth, metric)
    if metric.accepts == "labels":
        return Objective(stack, lambda p: metric.gain(metric.score(truth, decide(p, truth))))
    return Objective(stack, lambda p: metric.gain(metric.score(truth, p)))


def decide(values: F64, truth: Labels) -> Labels:
    """Labels of the truth's own shape: the first of the largest values, or every class at 0.5 and above.

    >>> decide(np.array([[0.3, 0.7]]), np.array([0])), decide(np.array([[0.3, 0.7]]), np.array([[True, True]]))
    (array([1]), array([[False,  True]]))
    """
    return values >= 0.5 if truth.ndim == 2 else values.argmax(axis=1)


def true_probability(stack: F64, truth: Labels) -> F64:
    """The probability that members give to what is true: [M, N], or [M, N · C] for a multilabel truth (of yes or of no)."""
    if truth.ndim == 2:
        return np.where(truth, stack, 1 - stack).reshape(len(stack), -1)
    rows, ones = np.arange(len(truth)), np.ones(stack.shape[2])
    return np.stack([table[rows, truth] / (table @ ones) for table in stack])


def quadratic(stack: F64, truth: Labels) -> tuple[F64, F64, float]:
    """Brier of a blend as w'Gw - 2w'b + c: G float64 [M, M], b float64 [M], c."""
    flat, rows = stack.reshape(len(stack), -1), stack.shape[1]
    if truth.ndim == 2:
        return flat @ flat.T / rows, flat @ truth.reshape(-1).astype(np.float64) / rows, float(truth.sum() / rows)
    return flat @ flat.T / rows, stack[:, np.arange(rows), truth].mean(axis=1), 1.0


def area(positive: NDArray[np.bool_], score: F64) -> float:
    """Area under the ROC curve of one class, ties counted half; both kinds of row must be there.

    >>> area(np.array([False, True, False, True]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    if score.min() >= 0 and score.max() < 2:
        # such a float's bits order as it does and leave the top two free: one sort with the label as last bit, no argsort
        keys = np.sort((np.abs(score).view(np.uint64) << np.uint64(1)) | positive)
        yes, value = (keys & np.uint64(1)).astype(bool), (keys >> np.uint64(1)).view(np.float64)
    else:
        order = np.argsort(score)
        yes, value = positive[order], score[order] + 0.0  # -0.0 is 0.0
    places = np.flatnonzero(yes)
    ones = len(places)
    wins = float(places.sum() - ones * (ones - 1) / 2)
    if (value[1:] == value[:-1]).any():
        starts = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]]))
        positives = np.add.reduceat(yes.astype(np.int64), starts)
        negatives = np.diff(starts, append=len(score)) - positives
        wins = float((positives * (np.cumsum(negatives) - negatives / 2)).sum())
    return wins / (ones * (len(score) - ones))


def _areas(stack: F64, truth: Labels, metric: Metric) -> Objective:
    onehot = truth.astype(bool) if truth.ndim == 2 else truth[:, None] == np.arange(stack.shape[2])
    usable = [c for c in range(onehot.shape[1]) if 0 < onehot[:, c].sum() < len(onehot)]
    if not usable:
        metric.score(truth, stack[0])  # says why there is no area
    if truth.ndim == 1 and stack.shape[2] == 2 and np.abs(stack.sum(axis=2) - 1).max() < ROUNDING:
        usable = [1]  # the other column is its mirror and has the same area
    positives = [np.ascontiguousarray(onehot[:, c]) for c in usable]
    columns = np.ascontiguousarray(stack[:, :, usable].transpose(0, 2, 1))
    return Objective(columns, lambda p: float(np.mean([area(y, column) for y, column in zip(positives, p, strict=True)])))


class Search(Protocol):
    """The sum of the members picked so far, and what each member would make of it."""

    def gains(self, among: NDArray[np.int64]) -> F64:
        """The gain of the mean of all picks and one more, for each of these members."""

    def add(self, member: int) -> None:
        """Pick a member (again)."""


class Plain:
    """Any metric: every candidate's blend is made and scored."""

    def __init__(self, goal: Objective) -> None:
        self._goal, self._size = goal, 0
        self._total = np.zeros(goal.members.shape[1:])

    def gains(self, among: NDArray[np.int64]) -> F64:
        """The gain of the mean of all picks and one more, for each of these members."""
        return np.array([self._goal.gain((self._total + self._goal.members[j]) / (self._size + 1)) for j in among])

    def add(self, member: int) -> None:
        """Pick a member (again)."""
        self._total += self._goal.members[member]
        self._size += 1


class Decisions:
    """Metrics of labels: a row is looked at only if a candidate's own margin there could overturn the sum's.

    For each row: `_top`, the label of the sum, its `_value`, and `_lead`, a lower bound of its margin. For each
    member and row: its best class and value, its second value, and `_push`, by how much it speaks for `_top` against its best
    other class.
    """

    def __init__(self, stack: F64, truth: Labels, metric: Metric) -> None:
        self._stack, self._truth, self._metric, self._size = stack, truth, metric, 0
        self._first = np.stack([table.argmax(axis=1) for table in stack])
        self._best = np.take_along_axis(stack, self._first[:, :, None], axis=2)[:, :, 0]
        self._second = np.stack([_runner_up(table, first) for table, first in zip(stack, self._first, strict=True)])
        self._total = np.zeros(stack.shape[1:])

    def gains(self, among: NDArray[np.int64]) -> F64:
        """The gain of the mean of all picks and one more, for each of these members."""
        return np.array([self._metric.gain(self._metric.score(self._truth, self._labels(j))) for j in among])

    def add(self, member: int) -> None:
        """Pick a member (again)."""
        self._total += self._stack[member]
        if self._size == 0:
            self._top = self._first[member].copy()
            self._lead = self._best[member] - self._second[member]
            self._push = np.empty(self._best.shape)
            self._refresh(np.arange(len(self._top)))
        else:
            rows = self._unsure(member)
            self._lead += self._push[member]
            sums = self._total[rows]
            tops = (sums / (self._size + 1)).argmax(axis=1)
            moved = rows[tops != self._top[rows]]
            self._top[rows] = tops
            values = np.take_along_axis(sums, tops[:, None], axis=1)[:, 0]
            self._lead[rows] = values - _runner_up(sums, tops)
            self._refresh(moved)
        self._value = np.take_along_axis(self._total, self._top[:, None], axis=1)[:, 0]
        self._size += 1

    def _labels(self, member: int) -> Labels:
        first: Labels = self._first[member]
        if self._size == 0:
            return first
        labels: Labels = self._top.copy()
        rows = self._unsure(member)
        # no third class can win where the sum's runner-up with the member's second value stays below the winner of two
        best, second, slack = self._best[member, rows], self._second[member, rows], self._slack
        ours = self._value[rows] + self._push[member, rows] + best
        theirs = self._total[rows, first[rows]] + best
        clear = np.maximum(ours, theirs) > self._value[rows] - self._lead[rows] + second + slack
        clear &= np.abs(ours - theirs) > slack
        labels[rows] = np.where(theirs > ours, first[rows], self._top[rows])
        rows = rows[~clear]
        sums = self._total.take(rows, axis=0)
        sums += self._stack[member].take(rows, axis=0)
        sums /= self._size + 1
        labels[rows] = sums.argmax(axis=1)
        return labels

    def _unsure(self, member: int) -> NDArray[np.int64]:
        return np.flatnonzero(self._lead + self._push[member] <= self._slack)

    @property
    def _slack(self) -> float:
        """Rounding must not hide a row that could turn."""
        return ROUNDING * (self._size + 1)

    def _refresh(self, rows: NDArray[np.int64]) -> None:
        tops = self._top[rows]
        other = np.where(self._first[:, rows] == tops, self._second[:, rows], self._best[:, rows])
        self._push[:, rows] = self._stack[:, rows, tops] - other


def _runner_up(values: F64, first: Labels) -> F64:
    """The largest value of each row besides the one at `first`; minus infinity where there is one class only."""
    rest = values.copy()
    np.put_along_axis(rest, first[:, None], -np.inf, axis=1)
    return np.asarray(rest.max(axis=1))


def search(stack: F64, truth: Labels, metric: Metric) -> Search:
    """The cheapest exact search for this metric and truth."""
    if metric.accepts == "labels" and truth.ndim == 1:
        return Decisions(stack, truth, metric)
    return Plain(objective(stack, truth, metric))
