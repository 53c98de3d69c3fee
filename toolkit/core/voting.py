"""Votes: merging views and combining fold models are the same reduction over (M, N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.core.activations import probabilities, sigmoid, softmax
from toolkit.core.cards import Output
from toolkit.core.predictions import Kind, Predictions
from toolkit.core.targets import Target
from toolkit.errors import DataError, counted

Reduction = Callable[[F64, F64], F64]  # [M, N, C] and shares [M, 1, 1 or C] that sum to 1 over the members → [N, C]


@dataclass(frozen=True, eq=False)
class Vote:
    """The outcome of a vote over N rows and C classes: `values` float64 [N, C], or labels; `ties` is bool [N].

    A hard vote has labels (int64 [N]; multilabel: bool [N, C]) and no values; every other vote has values and no labels.
    Values are probabilities (rows sum to 1; multilabel: each in [0, 1]) unless `kind` says "scores".
    """

    values: F64 | None
    labels: NDArray[Any] | None
    ties: NDArray[np.bool_]
    kind: Kind

    def predictions(self, like: Predictions) -> Predictions:
        """The outcome as a table with the target, rows and classes of one of the tables that were voted on."""
        return replace(like, kind=self.kind, values=self.values, labels=self.labels)


def vote(
    stack: F64, *, how: str = "soft", weights: Sequence[float] | NDArray[Any] | None = None, multilabel: bool = False
) -> Vote:
    """Reduce M tables of probabilities [M, N, C] to one; the order of the members does not change a bit of the result.

    Weights are [M], or [M, C] for a weight per class. They are >= 0 and need not sum to 1; a member of weight 0 is as good as
    absent. Rows do not see each other, except in the votes of `WHOLE_TABLE`.

    >>> stack = np.array([[[0.9, 0.1]], [[0.4, 0.6]], [[0.4, 0.6]]])  # three members, one row, two classes
    >>> vote(stack).values.round(3)
    array([[0.567, 0.433]])
    >>> vote(stack, how="hard").labels  # two of three say the second class
    array([1])
    >>> vote(stack, weights=[2, 1, 1], how="hard").labels  # even by weight: the higher mean decides
    array([0])

    Raises:
        DataError: an unknown vote, no members, or weights that are negative, not finite, all zero or of another shape.
    """
    stack = np.asarray(stack, dtype=np.float64)
    if how not in VOTES:
        raise DataError(f"unknown vote {how!r}", hint=f"Use one of: {', '.join(VOTES)}.")
    if stack.ndim != 3 or not len(stack):
        raise DataError(f"a vote needs members × rows × classes, not an array of shape {stack.shape}")
    share = np.ones(len(stack)) if weights is None else np.asarray(weights, dtype=np.float64)
    shapes = ((len(stack),), (len(stack), stack.shape[2]))
    if share.shape not in shapes or not np.isfinite(share).all() or (share < 0).any() or not share.any(axis=0).all():
        raise DataError(
            f"{counted(len(stack), 'members need')} as many weights (or one per member and class), "
            f"none negative and not all zero; "
            f"got {share.tolist()}"
        )
    share = share.reshape(len(stack), 1, -1)
    present = share.any(axis=(1, 2))
    return VOTES[how](stack[present], share[present] / _total(share[present]), multilabel)


def per_row(stack: F64, starts: NDArray[np.int64], how: str, *, multilabel: bool) -> F64:
    """Images [M, n, C] to rows [M, N, C], of which each begins at one of `starts`: the mean or the renormalised maximum.

    >>> images = np.array([[[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]])  # the first row has two images, the second one
    >>> per_row(images, np.array([0, 2]), "mean", multilabel=False)
    array([[[0.8, 0.2],
            [0.2, 0.8]]])
    """
    if how == "max":
        merged = np.maximum.reduceat(stack, starts, axis=1)
        return merged if multilabel else np.asarray(merged / merged.sum(axis=2, keepdims=True))
    counts = np.diff([*starts.tolist(), stack.shape[1]])
    return np.asarray(np.add.reduceat(stack, starts, axis=1) / counts[None, :, None])


def merge_views(logits: Sequence[NDArray[Any]], output: Output) -> F64:
    """The mean probability over views, float64 [N, C], of one model's logits [N, width].

    Raises:
        ModelError: NaN or infinite logits.
    """
    merged = vote(np.stack([probabilities(view, output) for view in logits]), multilabel=output.multilabel).values
    assert merged is not None
    return merged


def as_predictions(votes: Sequence[Vote], target: Target, ids: Sequence[str]) -> Predictions:
    """Votes over the rows of one target, part after part, as predictions for `ids` in that order.

    Raises:
        DataError: more or fewer rows than ids.
    """
    kind = votes[0].kind if votes else "probabilities"
    parts = [vote.labels if kind == "labels" else vote.values for vote in votes]
    rows = np.concatenate([part for part in parts if part is not None]) if parts else np.zeros((0, len(target.classes)))
    content: dict[str, Any] = {"labels" if kind == "labels" else "values": rows}
    return Predictions(target.name, kind, tuple(ids), target.classes, multilabel=target.multilabel, **content)


def soft(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted mean of the probabilities; multilabel: class by class."""
    if share.shape[2] == 1 or multilabel:
        return _probabilities(_mean(stack, share))
    return _normalised(_mean, stack, share, multilabel)


def hard(stack: F64, share: F64, multilabel: bool) -> Vote:
    """The class with most weight of members that put it first; a tie goes to the higher mean probability among the tied.

    If that ties too, the first class wins. A member whose own top probability is shared gives its vote to the first of them.
    Multilabel: each class is yes where more than half of the weight says p >= 0.5; an even split is settled by the mean.
    """
    mean = _mean(stack, share)
    if multilabel:
        yes = _total((stack >= 0.5) * share)
        tied = np.isclose(yes, 0.5, rtol=0, atol=_SLACK)
        labels: NDArray[Any] = np.where(tied, mean >= 0.5, yes > 0.5)
        return Vote(None, labels, np.asarray(tied.any(axis=1)), "labels")
    ballots = np.zeros(stack.shape)
    first = stack.argmax(axis=2)[:, :, None]
    np.put_along_axis(ballots, first, np.take_along_axis(np.broadcast_to(share, stack.shape), first, axis=2), axis=2)
    votes = _total(ballots)
    # sums of different shares may differ in the last bits where exact arithmetic would tie
    leaders = votes >= votes.max(axis=1, keepdims=True) - _SLACK
    return Vote(None, np.where(leaders, mean, -1.0).argmax(axis=1), np.asarray(leaders.sum(axis=1) > 1), "labels")


def geometric(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted geometric mean, rows normalised; a probability of 0 counts as the smallest normal float, so nobody has a veto.

    Multilabel: each class against its absence, which makes it the log-odds mean.
    """
    logs = _mean(_log(stack), share)
    if multilabel:
        return _probabilities(sigmoid(logs - _mean(_log(1 - stack), share)))
    return _probabilities(softmax(logs))


def log_odds(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted mean of each class's log-odds, turned back and rows normalised; multilabel: class by class."""
    rest = 1 - stack
    if not multilabel:  # 1 - p is 0 where p rounds to 1: the sum of the other classes still knows how certain it was
        top = stack.argmax(axis=2)[:, :, None]
        others = stack.copy()
        np.put_along_axis(others, top, 0.0, axis=2)
        np.put_along_axis(rest, top, others.sum(axis=2, keepdims=True), axis=2)
    odds = _mean(_log(stack) - _log(rest), share)
    return _probabilities(sigmoid(odds) if multilabel else softmax(-np.logaddexp(0.0, -odds)))


def power(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted power mean of exponent 2 (root mean square), rows normalised: certain members count for more.

    Exponent 0 is the geometric mean, 1 soft, infinity max. Multilabel: each class against its absence.
    """
    return _normalised(_root_mean_square, stack, share, multilabel)


def median(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted median of each class, rows normalised (the mean where all medians are 0); multilabel: class by class."""
    return _normalised(lambda p, w: _middle(p, w, 0.5), stack, share, multilabel)


def trimmed(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Mean of each class without the lowest and the highest fifth of the weight, rows normalised; multilabel: class by class.

    Of five equal members one is left out at each end; of fewer, the outermost count in part.
    """
    return _normalised(lambda p, w: _middle(p, w, 0.2), stack, share, multilabel)


def highest(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Maximum of each class, rows normalised; weights only say who is present. Multilabel: each class against its absence."""
    return _normalised(lambda p, w: np.where(w > 0, p, 0.0).max(axis=0), stack, share, multilabel)


def rank(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted mean of the ranks that members give the rows, class by class (ties share their mean rank), over N.

    Scores in (0, 1], for metrics that see only the order within a class, such as ROC-AUC. A row's score depends on all
    other rows, so the whole table must be given at once. Multilabel: the same.
    """
    ranks = np.apply_along_axis(_ranks, 1, stack) / stack.shape[1] if stack.shape[1] else stack
    return Vote(_mean(ranks, share), None, np.zeros(stack.shape[1], dtype=bool), "scores")


_SLACK = 1e-12


def _probabilities(values: F64) -> Vote:
    return Vote(values, None, np.zeros(len(values), dtype=bool), "probabilities")


def _normalised(reduce: Reduction, stack: F64, share: F64, multilabel: bool) -> Vote:
    """Reduce, then make rows sum to 1 (multilabel: each class against its absence); where nothing is left, the plain mean."""
    yes = reduce(stack, share)
    total = yes + reduce(1 - stack, share) if multilabel else yes.sum(axis=1, keepdims=True)
    empty = total == 0
    if empty.any():
        plain = _mean(stack, np.full((len(stack), 1, 1), 1 / len(stack)))
        yes, total = np.where(empty, plain, yes), np.where(empty, 1.0, total)
    return _probabilities(yes / total)


def _root_mean_square(stack: F64, share: F64) -> F64:
    scale = stack.max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)  # squares of 1e-300 would vanish
    return np.asarray(scale * np.sqrt(_mean((stack / scale) ** 2, share)))


def _middle(stack: F64, share: F64, cut: float) -> F64:
    """Mean of what is left of each [M] column when `cut` of its weight is taken off both ends; its median at 0.5."""
    weight = np.broadcast_to(share, stack.shape)
    order = np.lexsort((weight, stack), axis=0)
    values, weight = np.take_along_axis(stack, order, axis=0), np.take_along_axis(weight, order, axis=0)
    upto = np.cumsum(weight, axis=0)
    if cut < 0.5:
        kept = np.clip(upto, cut, 1 - cut) - np.clip(upto - weight, cut, 1 - cut)
        return np.asarray((values * kept).sum(axis=0) / kept.sum(axis=0))
    low, high = (upto >= 0.5 - _SLACK).argmax(axis=0), (upto > 0.5 + _SLACK).argmax(axis=0)
    pair = np.take_along_axis(values, np.stack([low, high]), axis=0)
    return np.asarray(pair.mean(axis=0))


def _ranks(column: F64) -> F64:
    _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def _log(p: F64) -> F64:
    return np.asarray(np.log(np.maximum(p, np.finfo(np.float64).tiny)))


def _mean(stack: F64, share: F64) -> F64:
    return _total(stack * share)


def _total(terms: F64) -> F64:
    """The sum over the first axis, its terms sorted first so that their order cannot matter to the last bit."""
    ordered = np.sort(terms, axis=0)
    total: F64 = ordered[0].copy()
    for term in ordered[1:]:
        total = total + term
    return total


VOTES: dict[str, Callable[[F64, F64, bool], Vote]] = {
    "soft": soft,
    "hard": hard,
    "geometric": geometric,
    "log_odds": log_odds,
    "power": power,
    "median": median,
    "trimmed": trimmed,
    "max": highest,
    "rank": rank,
}
WHOLE_TABLE = frozenset({"rank"})  # these votes look at all rows at once: never give them a table in parts
