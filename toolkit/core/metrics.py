"""Scores of predictions against the truth, each with its direction, the kind of input it takes and its multilabel meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

Array = NDArray[Any]
Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class Metric:
    """A score: `score(truth, predicted)` with its direction and the input that it accepts.

    Multiclass and binary truth is int64 [N] (class indices); multilabel truth is bool [N, C]. `predicted` is float64
    [N, C] when `accepts` is "probabilities" or "scores" (anything that orders the rows of a class), else labels of the truth's
    own shape. Where the score is a mean over rows, `rows` gives those: float64 [N]. Metrics without a `multilabel` meaning
    refuse such truth.
    """

    name: str
    score: Callable[[Array, Array], float]
    higher_is_better: bool
    accepts: Literal["labels", "probabilities", "scores"]
    multilabel: bool = True
    rows: Callable[[Array, Array], Array] | None = None

    @property
    def by_rank(self) -> bool:
        """Whether only the order of the rows within a class counts, so that there is no label and no confidence to speak of."""
        return self.accepts == "scores"

    def gain(self, score: float) -> float:
        """The score turned so that larger is better, whatever the metric's direction."""
        return score if self.higher_is_better else -score


def accuracy(truth: Array, labels: Array) -> float:
    """Share of rows whose label is right; multilabel rows must be right in every class (subset accuracy).

    >>> accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    0.75
    """
    return float(np.mean(hits(truth, labels)))


def hits(truth: Array, labels: Array) -> Array:
    """Whether each row is right, 0 or 1."""
    right = truth == labels
    return np.asarray(right.all(axis=1) if right.ndim == 2 else right, dtype=np.float64)


def balanced_accuracy(truth: Array, labels: Array) -> float:
    """Mean recall of the classes that the truth has, so that every class counts alike; no multilabel meaning.

    >>> round(balanced_accuracy(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0])), 4)
    0.8333

    Raises:
        DataError: multilabel truth, or no rows.
    """
    _exclusive(truth, "balanced accuracy")
    return averaged_recall(truth, labels, average="macro")


def averaged_precision(truth: Array, labels: Array, *, average: Average) -> float:
    """Of the rows given to a class, the share that belongs there; 0 for a class that has rows and is never given.

    Averages: see `_averaged`. A class in neither truth nor labels does not count.

    Raises:
        DataError: no row has a class.
    """
    both, ours, theirs = _counts(truth, labels)
    return _averaged("precision", both, ours, theirs, average, counting=(ours + theirs) > 0)


def averaged_recall(truth: Array, labels: Array, *, average: Average) -> float:
    """Of the rows of a class, the share that was found. A class that the truth lacks does not count.

    scikit-learn counts it as 0 where it was predicted, so that a small fold's score would fall by chance.

    Raises:
        DataError: no row has a class.
    """
    both, _, theirs = _counts(truth, labels)
    return _averaged("recall", both, theirs, theirs, average, counting=theirs > 0)


def averaged_f1(truth: Array, labels: Array, *, average: Average) -> float:
    """Harmonic mean of precision and recall; a class in neither truth nor labels does not count (scikit-learn's rule).

    Raises:
        DataError: no row has a class.
    """
    both, ours, theirs = _counts(truth, labels)
    return _averaged("F1", 2 * both, ours + theirs, theirs, average, counting=(ours + theirs) > 0)


def macro_f1(truth: Array, labels: Array) -> float:
    """Mean of the per-class F1: see `averaged_f1`.

    >>> round(macro_f1(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0])), 4)
    0.7333
    """
    return averaged_f1(truth, labels, average="macro")


def log_loss(truth: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood in nats; probabilities are kept 2.2e-16 away from 0 and 1, as in scikit-learn.

    >>> round(log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.5, 0.5]])), 4)
    0.6931
    """
    tiny = np.finfo(np.float64).eps
    p = np.clip(probabilities, tiny, 1 - tiny)
    if truth.ndim == 2:
        return float(-np.mean(np.where(truth, np.log(p), np.log1p(-p))))
    p = p / p.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(p[np.arange(len(truth)), truth])))


def brier(truth: Array, probabilities: Array) -> float:
    """Mean over rows of the squared distance to the truth, summed over the classes: 0 is perfect, 2 certain and wrong.

    >>> brier(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))  # one right, one wrong, both certain
    1.0
    """
    if truth.ndim == 2:
        return float(np.mean(((probabilities - truth) ** 2).sum(axis=1)))
    right = probabilities[np.arange(len(truth)), truth]
    return float(np.mean((probabilities**2).sum(axis=1) - 2 * right + 1))


def roc_auc(truth: Array, probabilities: Array) -> float:
    """Area under the ROC curve, one class against the rest, mean over the classes that have rows on both sides.

    Two exclusive classes give the usual binary area. scikit-learn refuses when a class is absent; here that class is left out.

    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]))
    0.75

    Raises:
        DataError: no class has both positive and negative rows.
    """
    onehot = truth if truth.ndim == 2 else truth[:, None] == np.arange(probabilities.shape[1])
    positives = onehot.sum(axis=0)
    usable = np.flatnonzero((positives > 0) & (positives < len(onehot)))
    if not len(usable):
        raise DataError("ROC-AUC needs rows of at least two classes")
    areas = [_binary_auc(onehot[:, c], probabilities[:, c]) for c in usable]
    return float(np.mean(areas))


def distance(truth: Array, labels: Array, *, power: int) -> Array:
    """How far each label is from the truth in class numbers (the competition's order), to a power.

    >>> distance(np.array([0, 4]), np.array([1, 1]), power=2)
    array([1., 9.])

    Raises:
        DataError: multilabel truth.
    """
    _exclusive(truth, "the distance between class numbers")
    return np.asarray(np.abs(truth - labels).astype(np.float64) ** power)


def quadratic_kappa(truth: Array, labels: Array) -> float:
    """Cohen's kappa with squared distances of class numbers as weights: 1 is agreement, 0 what chance gives.

    All rows of one and the same class, rightly named, give 1 (scikit-learn: NaN).

    >>> quadratic_kappa(np.array([0, 1, 2]), np.array([0, 1, 2])), quadratic_kappa(np.array([0, 2]), np.array([2, 0]))
    (1.0, -1.0)

    Raises:
        DataError: multilabel truth.
    """
    _exclusive(truth, "quadratic kappa")
    # the mean squared distance over all pairs of a true and a given label, as chance would pair them
    by_chance = truth.var() + labels.var() + (truth.mean() - labels.mean()) ** 2
    observed = float(np.mean(distance(truth, labels, power=2)))
    return float(1 - observed / by_chance) if by_chance else 1.0


def reciprocal_ranks(truth: Array, probabilities: Array) -> Array:
    """One over the rank of each row's true class; multilabel: of its first true class, 0 where a row has none.

    >>> reciprocal_ranks(np.array([0, 2]), np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])).round(3)
    array([1.   , 0.333])
    """
    return _relevant(truth, probabilities).max(axis=1) if truth.ndim == 2 else 1 / _ranks_of(truth, probabilities)


def discounted_gains(truth: Array, probabilities: Array) -> Array:
    """NDCG of each row: gains of its true classes over log2(rank + 1), over the best there is; 0 where a row has none."""
    if truth.ndim == 1:
        return np.asarray(1 / np.log2(_ranks_of(truth, probabilities) + 1))
    discount = 1 / np.log2(np.arange(truth.shape[1]) + 2)
    best = np.concatenate([[1.0], np.cumsum(discount)])[truth.sum(axis=1)]  # 1 where there is nothing to gain
    return np.asarray((_ordered(truth, probabilities) @ discount) / best)


def average_precisions(truth: Array, probabilities: Array, *, at: int) -> Array:
    """Average precision of each row's first `at` classes; with one true class, one over its rank, or 0 beyond `at`.

    Multilabel as Kaggle's MAP@k has it: over the smaller of `at` and the number of true classes; 0 where a row has none.

    >>> average_precisions(np.array([1, 2]), np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), at=2)
    array([0.5, 0. ])
    """
    if truth.ndim == 1:
        ranks = _ranks_of(truth, probabilities)
        return np.where(ranks <= at, 1 / ranks, 0.0)
    relevant = _ordered(truth, probabilities)[:, :at]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return np.asarray((precision * relevant).sum(axis=1) / np.clip(truth.sum(axis=1), 1, at))


def _exclusive(truth: Array, what: str) -> None:
    if truth.ndim == 2:
        raise DataError(
            f"{what} has no meaning where a row may have several classes", hint="Use macro_f1, roc_auc or log_loss."
        )


def _counts(truth: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Per class: rows rightly given to it, rows given to it, rows that are its own."""
    if truth.ndim == 2:
        return (truth & labels).sum(0), labels.sum(0), truth.sum(0)
    size = int(max(truth.max(initial=0), labels.max(initial=0))) + 1
    both = np.bincount(truth[truth == labels], minlength=size)
    return both, np.bincount(labels, minlength=size), np.bincount(truth, minlength=size)


def _averaged(what: str, above: Array, below: Array, support: Array, average: Average, *, counting: Array) -> float:
    """Shares per class, averaged: macro counts classes alike, weighted by their rows, micro pools the rows of all."""
    if not counting.any():
        raise DataError(f"{average}-{what} needs at least one row with a class")
    above, below, support = above[counting], below[counting], support[counting]
    if average == "micro":
        return float(above.sum() / max(below.sum(), 1))
    shares = above / np.maximum(below, 1)
    if average == "macro":
        return float(np.mean(shares))
    return float((shares * support).sum() / max(support.sum(), 1))


def _ordered(truth: Array, values: Array) -> Array:
    """The truth of each row, its classes from the most probable to the least; on a tie the first class leads."""
    return np.take_along_axis(truth, np.argsort(-values, axis=1, kind="stable"), axis=1)


def _relevant(truth: Array, values: Array) -> Array:
    return np.asarray(_ordered(truth, values) / np.arange(1, truth.shape[1] + 1))


def _ranks_of(truth: Array, values: Array) -> Array:
    """The rank of each row's true class, from 1; on a tie the first class leads, as it does among labels."""
    mine = values[np.arange(len(truth)), truth][:, None]
    before = np.arange(values.shape[1]) < truth[:, None]
    return np.asarray(1 + ((values > mine) | ((values == mine) & before)).sum(axis=1))


def _binary_auc(positive: Array, score: Array) -> float:
    """Mann-Whitney U over the number of pairs, ties counted half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def _mean(truth: Array, predicted: Array, *, rows: Callable[[Array, Array], Array]) -> float:
    return float(np.mean(rows(truth, predicted)))


def _of_rows(name: str, rows: Callable[[Array, Array], Array], *, higher: bool = True, labels: bool = False) -> Metric:
    """A metric that is a mean over rows; those of labels are over class numbers and have no multilabel meaning."""
    return Metric(
        name, partial(_mean, rows=rows), higher, "labels" if labels else "probabilities", multilabel=not labels, rows=rows
    )


def _averages(what: str, score: Callable[..., float]) -> list[Metric]:
    """The three averages of a score of single classes."""
    how: tuple[Average, ...] = ("macro", "micro", "weighted")
    return [
        Metric(f"{average}_{what}", partial(score, average=average), higher_is_better=True, accepts="labels") for average in how
    ]


_EVERY = [
    Metric("accuracy", accuracy, higher_is_better=True, accepts="labels", rows=hits),
    Metric("balanced_accuracy", balanced_accuracy, higher_is_better=True, accepts="labels", multilabel=False),
    Metric("macro_f1", macro_f1, higher_is_better=True, accepts="labels"),
    *_averages("f1", averaged_f1)[1:],
    *_averages("precision", averaged_precision),
    *_averages("recall", averaged_recall),
    Metric("log_loss", log_loss, higher_is_better=False, accepts="probabilities"),
    Metric("brier", brier, higher_is_better=False, accepts="probabilities"),
    Metric("roc_auc", roc_auc, higher_is_better=True, accepts="scores"),
    _of_rows("mae", partial(distance, power=1), higher=False, labels=True),
    _of_rows("mse", partial(distance, power=2), higher=False, labels=True),
    Metric("quadratic_kappa", quadratic_kappa, higher_is_better=True, accepts="labels", multilabel=False),
    _of_rows("mrr", reciprocal_ranks),
    _of_rows("ndcg", discounted_gains),
    *(_of_rows(f"map@{k}", partial(average_precisions, at=k)) for k in (3, 5, 10)),
]
METRICS: dict[str, Metric] = {metric.name: metric for metric in _EVERY}
