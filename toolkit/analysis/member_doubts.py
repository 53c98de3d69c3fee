"""Doubts about members: tables that are too good to be out of fold, told by the errors that they do not share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from toolkit.base.arrays import F64, Bools, Labels
from toolkit.blending.objectives import decide
from toolkit.blending.oof import MemberRows
from toolkit.core import metrics

MANY, RIGHT = 30, 0.99  # cells that the best other member has wrong, and the share of them that one who knows them has right
SOME, FAR = 10, 10.0  # the same where they are few: all of them right, and a log-loss so many times lower
GUESSING = 2.0  # standard errors above always saying the commonest, from which a member is one to compare with


@dataclass(frozen=True)
class TooGood:
    """A member that is right where the best other one is wrong as hardly an honest one can be.

    Errors of honest members go together: what is hard, or labelled wrongly, is so for each. `right` of the `hard` cells that
    `other` has wrong it has right; `loss` and `other_loss` are log-losses of all rows.
    """

    member: str
    other: str
    right: int
    hard: int
    loss: float
    other_loss: float

    def __str__(self) -> str:
        return (
            f"{self.member} is too good to be out of fold: its log-loss is {self.loss:.3g}, that of {self.other} "
            f"{self.other_loss:.3g}, and of {self.hard:,} that {self.other} gets wrong it has {self.right:,} right; was it "
            "trained on the rows that score it?"
        )


def too_good(rows: MemberRows, *, apart: Collection[str] = ()) -> list[TooGood]:
    """Members that seem to have seen the rows that score them, beside those that do not.

    Members are put in the order of their errors; the first few are named where each of them is right on nearly all that the
    next one has wrong: an honest one would need a hundredth of its errors. Those in `apart`, which are known to be broken, and
    those that only guess are left out. Measured on scikit-learn's data sets (five, one with wrong labels): no alarm among 180
    sets of honest members, which are right on at most 0.7 of what the best other one has wrong.
    """
    truth = rows.truth.decided
    wrong = [_wrong(table, truth) for table in rows.stack]
    losses = [metrics.log_loss(truth, table) for table in rows.stack]
    usable = [place for place, name in enumerate(rows.members) if name not in apart and _knows(wrong[place], truth)]
    order = sorted(usable, key=lambda place: (int(wrong[place].sum()), losses[place]))
    for first in range(1, len(order)):
        honest, doubted = order[first], order[:first]
        hard = wrong[honest]
        count = int(hard.sum())
        rights = [int((~wrong[place][hard]).sum()) for place in doubted]
        known = count >= MANY and min(rights) >= RIGHT * count
        far = first == 1 and count >= SOME and rights[0] == count and losses[order[0]] * FAR <= losses[honest]
        if known or far:
            return [
                TooGood(rows.members[place], rows.members[honest], right, count, losses[place], losses[honest])
                for place, right in zip(doubted, rights, strict=True)
            ]
    return []


def _knows(wrong: Bools, truth: Labels) -> bool:
    """Whether a member does better than one that always says the commonest class (of several labels: the commoner answer)."""
    flat = truth.ravel().astype(np.int64)
    if truth.ndim == 2:
        commonest = float(np.maximum(truth.mean(axis=0), 1 - truth.mean(axis=0)).mean())
    else:
        commonest = float(np.bincount(flat).max() / len(flat))
    error = np.sqrt(commonest * (1 - commonest) / len(flat))
    return bool(1 - wrong.mean() > commonest + GUESSING * error)


def _wrong(table: F64, truth: Labels) -> Bools:
    """What a member gets wrong, bool [N], or [N × C] where several classes may hold."""
    return np.asarray(decide(table, truth) != truth).ravel()
