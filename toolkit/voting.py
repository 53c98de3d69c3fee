"""Votes: merging views and combining fold models are the same reduction over (M, N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Vote:
    """The outcome of a vote over N rows and C classes: `values` float64 [N, C], or labels; `ties` is bool [N].

    A soft vote has values. A hard vote has labels (int64 [N]; multilabel: bool [N, C]).
    """

    values: F64 | None
    labels: NDArray[Any] | None
    ties: NDArray[np.bool_]


def vote(stack: F64, *, how: str = "soft", weights: Sequence[float] | None = None, multilabel: bool = False) -> Vote:
    """Reduce M tables of probabilities [M, N, C] to one; the order of the members does not change a bit of the result.

    Weights are >= 0 and need not sum to 1; a member of weight 0 is as good as absent.

    Raises:
        DataError: an unknown vote, no members, or weights that are negative, not finite, all zero or not one per member.
    """
    stack = np.asarray(stack, dtype=np.float64)
    if how not in VOTES:
        raise DataError(f"unknown vote {how!r}", hint=f"Use one of: {', '.join(VOTES)}.")
    if stack.ndim != 3 or not len(stack):
        raise DataError(f"a vote needs members × rows × classes, not an array of shape {stack.shape}")
    share = np.ones(len(stack)) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (len(stack),) or not np.isfinite(share).all() or (share < 0).any() or not share.any():
        raise DataError(f"{len(stack)} members need as many weights, none negative and not all zero; got {share.tolist()}")
    present = share > 0
    return VOTES[how](stack[present], share[present] / _total(share[present]), multilabel)


def soft(stack: F64, share: F64, multilabel: bool) -> Vote:
    """Weighted mean of the probabilities."""
    return Vote(_mean(stack, share), None, np.zeros(stack.shape[1], dtype=bool))


def hard(stack: F64, share: F64, multilabel: bool) -> Vote:
    """The class with most weight of members that put it first; a tie goes to the higher mean probability among the tied.

    If that ties too, the first class wins. A member whose own top probability is shared gives its vote to the first of them.
    Multilabel: each class is yes where more than half of the weight says p >= 0.5; an even split is settled by the mean.
    """
    mean = _mean(stack, share)
    if multilabel:
        yes = _total((stack >= 0.5) * share[:, None, None])
        tied = np.isclose(yes, 0.5, rtol=0, atol=_SLACK)
        labels: NDArray[Any] = np.where(tied, mean >= 0.5, yes > 0.5)
        return Vote(None, labels, np.asarray(tied.any(axis=1)))
    ballots = np.zeros(stack.shape)
    np.put_along_axis(ballots, stack.argmax(axis=2)[:, :, None], share[:, None, None], axis=2)
    votes = _total(ballots)
    # sums of different shares may differ in the last bits where exact arithmetic would tie
    leaders = votes >= votes.max(axis=1, keepdims=True) - _SLACK
    return Vote(None, np.where(leaders, mean, -1.0).argmax(axis=1), np.asarray(leaders.sum(axis=1) > 1))


_SLACK = 1e-12


def _mean(stack: F64, share: F64) -> F64:
    return _total(stack * share[:, None, None])


def _total(terms: F64) -> F64:
    """The sum over the first axis, its terms sorted first so that their order cannot matter to the last bit."""
    ordered = np.sort(terms, axis=0)
    total: F64 = ordered[0].copy() if ordered.ndim > 1 else ordered[:1].sum()
    for term in ordered[1:]:
        total = total + term
    return total


VOTES: dict[str, Callable[[F64, F64, bool], Vote]] = {"soft": soft, "hard": hard}
