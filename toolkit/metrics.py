"""Scores of predictions against the truth, each with its direction and the kind of input it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A score: `score(truth, predicted)` with its direction and the input that it accepts.

    Multiclass and binary truth is int64 [N] (class indices); multilabel truth is bool [N, C]. `predicted` is float64
    [N, C] when `accepts` is "probabilities" or "scores" (anything that orders the rows of a class), else labels of the truth's
    own shape.
    """

    name: str
    score: Callable[[Array, Array], float]
    higher_is_better: bool
    accepts: Literal["labels", "probabilities", "scores"]

    def gain(self, score: float) -> float:
        """The score turned so that larger is better, whatever the metric's direction."""
        return score if self.higher_is_better else -score


def accuracy(truth: Array, labels: Array) -> float:
    """Share of rows whose label is right; multilabel rows must be right in every class (subset accuracy)."""
    hits = truth == labels
    return float(np.mean(hits.all(axis=1) if hits.ndim == 2 else hits))


def macro_f1(truth: Array, labels: Array) -> float:
    """Mean of the per-class F1; a class in neither truth nor labels does not count (scikit-learn's rule for multiclass).

    Raises:
        DataError: no row has a class.
    """
    if truth.ndim == 2:
        both, ours, theirs = (truth & labels).sum(0), labels.sum(0), truth.sum(0)
    else:
        size = int(max(truth.max(initial=0), labels.max(initial=0))) + 1
        both = np.bincount(truth[truth == labels], minlength=size)
        ours, theirs = np.bincount(labels, minlength=size), np.bincount(truth, minlength=size)
    seen = (ours + theirs) > 0
    if not seen.any():
        raise DataError("macro-F1 needs at least one row with a class")
    return float(np.mean(2 * both[seen] / (ours + theirs)[seen]))


def log_loss(truth: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood in nats; probabilities are kept 2.2e-16 away from 0 and 1, as in scikit-learn."""
    tiny = np.finfo(np.float64).eps
    p = np.clip(probabilities, tiny, 1 - tiny)
    if truth.ndim == 2:
        return float(-np.mean(np.where(truth, np.log(p), np.log1p(-p))))
    p = p / p.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(p[np.arange(len(truth)), truth])))


def roc_auc(truth: Array, probabilities: Array) -> float:
    """Area under the ROC curve, one class against the rest, mean over the classes that have rows on both sides.

    Two exclusive classes give the usual binary area. scikit-learn refuses when a class is absent; here that class is left out.

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


def _binary_auc(positive: Array, score: Array) -> float:
    """Mann-Whitney U over the number of pairs, ties counted half."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", accuracy, higher_is_better=True, accepts="labels"),
    "macro_f1": Metric("macro_f1", macro_f1, higher_is_better=True, accepts="labels"),
    "log_loss": Metric("log_loss", log_loss, higher_is_better=False, accepts="probabilities"),
    "roc_auc": Metric("roc_auc", roc_auc, higher_is_better=True, accepts="scores"),
}
