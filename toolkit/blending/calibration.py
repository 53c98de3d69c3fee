"""Calibration: temperature, vector scaling, decision factors and priors, all a scale and a bias of each class's logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Labels
from toolkit.blending.adjustment import EPS, Adjustment, logits_of
from toolkit.blending.objectives import decide
from toolkit.core import metrics
from toolkit.core.activations import sigmoid, softmax
from toolkit.core.metrics import Metric
from toolkit.errors import DataError


def temperature(p: F64, truth: Labels) -> Adjustment:
    """The one temperature with the least log-loss (convex in its inverse, found by Newton's method), kept in 0.01 to 100.

    Probabilities [N, C]; truth int64 [N], multilabel bool [N, C].

    >>> sure = np.array([[0.99, 0.01], [0.99, 0.01]])  # and right in one row of two
    >>> bool(temperature(sure, np.array([0, 1])).temperature > 10)
    True
    """
    multilabel, classes = truth.ndim == 2, p.shape[1]
    if multilabel:  # every class of every row is a two-class question
        p, truth = np.stack([1 - p.ravel(), p.ravel()], axis=1), truth.ravel().astype(np.int64)
    logits = logits_of(p, multilabel=False)
    right = logits[np.arange(len(truth)), truth].mean()
    low, high, scale = 0.01, 100.0, 1.0
    for _ in range(100):
        p_scaled = softmax(scale * logits)
        mean = (p_scaled * logits).sum(axis=1)
        slope, bend = mean.mean() - right, ((p_scaled * logits**2).sum(axis=1) - mean**2).mean()
        low, high = (low, scale) if slope > 0 else (scale, high)
        step = slope / bend if bend > 0 else np.inf
        if abs(step) <= 1e-12 * scale or high - low <= 1e-12 * low:
            break
        scale = float(scale - step if low < scale - step < high else np.sqrt(low * high))
    return Adjustment(np.full(classes, scale), np.zeros(classes), multilabel)


def vector_scaling(p: F64, truth: Labels) -> Adjustment:
    """A scale >= 0 and a bias per class with the least log-loss, by L-BFGS; needs many rows of every class."""
    from scipy.optimize import minimize

    multilabel, classes = truth.ndim == 2, p.shape[1]
    logits, rows = logits_of(p, multilabel=multilabel), np.arange(len(truth))
    onehot = truth.astype(np.float64) if multilabel else np.eye(classes)[truth]

    def loss(x: F64) -> tuple[float, F64]:
        z = x[:classes] * logits + x[classes:]
        if multilabel:
            error = sigmoid(z) - onehot
            value = np.logaddexp(0, np.where(truth, -z, z)).sum()
        else:
            probabilities = softmax(z)
            error = probabilities - onehot
            value = -np.log(np.maximum(probabilities[rows, truth], EPS)).sum()
        return float(value) / len(truth), np.concatenate([(error * logits).sum(axis=0), error.sum(axis=0)]) / len(truth)

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    bounds = [(0, None)] * classes + [(None, None)] * classes
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-8})
    return Adjustment(optimum.x[:classes], optimum.x[classes:], multilabel)


def factors(p: F64, truth: Labels, metric: Metric, *, widest: float = 16.0, points: int = 65) -> Adjustment:
    """A factor per class on its probability (multilabel: on its odds, which is a threshold) that makes a metric of labels best.

    One class at a time, over `points` factors between 1/`widest` and `widest` of the others', until none helps; 1 is preferred.

    >>> from toolkit.core.metrics import METRICS
    >>> p, truth = np.array([[0.6, 0.4], [0.9, 0.1]]), np.array([1, 0])  # the second class is never said
    >>> factors(p, truth, METRICS["accuracy"]).apply(p).argmax(axis=1)
    array([1, 0])

    Raises:
        DataError: the metric is not one of labels.
    """
    if metric.accepts != "labels":
        raise DataError(f"factors decide labels, and {metric.name} is a score of {metric.accepts}", hint="Use temperature.")
    multilabel, classes = truth.ndim == 2, p.shape[1]
    grid = np.linspace(-np.log(widest), np.log(widest), points)
    nearest = np.argsort(np.abs(grid), kind="stable")
    logits, bias = logits_of(p, multilabel=multilabel), np.zeros(classes)
    best = metric.gain(metric.score(truth, decide(p, truth)))
    gains = _f1_of if metric.score is metrics.macro_f1 else _gains_of(metric)
    moved = True
    while moved:
        moved = False
        for c in range(classes):
            shifted_gains = gains(truth, _others(logits + bias, c, multilabel=multilabel), logits[:, c], c, grid)
            place = nearest[shifted_gains[nearest].argmax()]
            if shifted_gains[place] > best + 1e-12:
                best, bias[c], moved = float(shifted_gains[place]), grid[place], True
    return Adjustment(np.ones(classes), bias, multilabel)


def _gains_of(metric: Metric) -> Callable[..., F64]:
    """The gain of any metric of labels when the logit of class c is shifted by each point of the grid."""
    return lambda truth, others, logit, c, grid: np.array(
        [metric.gain(metric.score(truth, _with(others, logit + shift, c))) for shift in grid]
    )


def _f1_of(truth: Labels, others: tuple[Labels, F64], logit: F64, c: int, grid: F64) -> F64:
    """Macro-F1 when the logit of class c is shifted by each point of the grid, from counts of the rows that turn at each."""
    labels, rival = others
    turn = np.searchsorted(grid, rival - logit, side="right")
    if truth.ndim == 2:
        turn = np.searchsorted(grid, rival - logit, side="left")
        mine = truth[:, c]
        given, right = (yes.sum(axis=0)[None, :].repeat(len(grid), axis=0) for yes in (labels, labels & truth))
        theirs = truth.sum(axis=0)
    else:
        first = c < labels  # on a tie the first class wins
        turn[first] = np.searchsorted(grid, (rival - logit)[first], side="left")
        size, mine, hit = int(max(truth.max(), labels.max(), c)) + 1, truth == c, truth == labels
        cells = turn * size + labels
        left, lost = (_upto(cells[rows], len(grid), size) for rows in (slice(None), hit))
        given = np.bincount(labels, minlength=size) - left
        right, theirs = np.bincount(labels[hit], minlength=size) - lost, np.bincount(truth, minlength=size)
    given[:, c], right[:, c] = _upto(turn, len(grid), 1)[:, 0], _upto(turn[mine], len(grid), 1)[:, 0]
    total = given + theirs
    return np.asarray((2 * right / np.maximum(total, 1)).sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1))


def _upto(cells: NDArray[np.int64], points: int, size: int) -> NDArray[np.int64]:
    """How many rows have turned at each of the points, by class: int64 [points, size] from place · size + class."""
    counts = np.bincount(cells, minlength=(points + 1) * size).reshape(points + 1, size)
    return np.asarray(counts[:-1].cumsum(axis=0))


def prior_shift(before: F64, after: F64, *, multilabel: bool = False) -> Adjustment:
    """From class shares [C] as in training to those known of the test set: probabilities × after / before (multilabel: odds).

    >>> shift = prior_shift(np.array([0.5, 0.5]), np.array([0.8, 0.2]))
    >>> shift.apply(np.array([[0.5, 0.5]]))
    array([[0.8, 0.2]])

    Raises:
        DataError: shares that are not positive (multilabel: or not below 1), or of different lengths.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    top = 1.0 if multilabel else np.inf
    if before.shape != after.shape or not all((x > 0).all() and (x < top).all() for x in (before, after)):
        raise DataError(f"priors must be positive, one per class: {before.tolist()} and {after.tolist()}")
    if multilabel:
        before, after = before / (1 - before), after / (1 - after)
    return Adjustment(np.ones(len(before)), np.log(after / before), multilabel)


def _temperature(p: F64, truth: Labels, _: Metric) -> Adjustment:
    return temperature(p, truth)


def _vector(p: F64, truth: Labels, _: Metric) -> Adjustment:
    return vector_scaling(p, truth)


# what may be done to the outcome of a vote, fitted to it and the truth for a metric
ADJUSTMENTS: dict[str, Callable[[F64, Labels, Metric], Adjustment]] = {
    "temperature": _temperature,
    "vector": _vector,
    "factors": factors,
}


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in (low, high]: how many, how sure they were on average, and how often they were right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(p: F64, truth: Labels, *, bins: int = 15) -> list[Bin]:
    """Confidence against accuracy in bins of equal width, empty ones left out.

    Confidence is the largest probability of a row; multilabel: of every class, that of yes or of no, whichever is larger.

    >>> [b.count for b in reliability(np.array([[0.9, 0.1], [0.6, 0.4], [0.35, 0.65]]), np.array([0, 0, 1]), bins=4)]
    [2, 1]
    """
    decided = decide(p, truth)
    sure = np.maximum(p, 1 - p).ravel() if truth.ndim == 2 else p.max(axis=1)
    right = (decided == truth).ravel()
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for b in np.unique(place):
        inside = place == b
        table.append(
            Bin(
                float(b / bins),
                float((b + 1) / bins),
                int(inside.sum()),
                float(sure[inside].mean()),
                float(right[inside].mean()),
            )
        )
    return table


def calibration_error(p: F64, truth: Labels, *, bins: int = 15) -> float:
    """Expected calibration error (ECE): the mean gap between confidence and accuracy over `reliability`, weighted by rows.

    >>> round(calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 4)  # 0.9 sure, right in half
    0.4
    """
    table = reliability(p, truth, bins=bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in table) / sum(b.count for b in table)


def _others(logits: F64, c: int, *, multilabel: bool) -> tuple[Labels, F64]:
    """What is decided without class c, and what c must exceed: labels, and float64 [N]."""
    if multilabel:
        return logits >= 0, np.zeros(len(logits))
    rest = logits.copy()
    rest[:, c] = -np.inf
    label = rest.argmax(axis=1)
    return label, rest[np.arange(len(rest)), label]


def _with(others: tuple[Labels, F64], logit: F64, c: int) -> Labels:
    """The labels once class c has this logit [N]; on a tie the first class wins, as in `decide`."""
    labels, rival = others
    if labels.ndim == 2:
        changed = labels.copy()
        changed[:, c] = logit >= rival
        return changed
    return np.where((logit > rival) | ((logit == rival) & (c < labels)), c, labels)
