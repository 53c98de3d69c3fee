"""Doubts about members: tables that are too good to be out of fold, told by the errors that they do not share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.base.arrays import F64, Bools, Labels
from toolkit.blending.objectives import decide
from toolkit.blending.oof import MemberRows
from toolkit.core import metrics

HARD = 10  # cells that the best other member has wrong, from which they tell anything
RIGHT = 0.95  # share of them that a member has right, from which it seems to know the answers
SEVERAL = 0.99, 30  # the same, where several members would


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


def too_good(rows: MemberRows) -> list[TooGood]:
    """Members that seem to have seen the rows that score them, beside those that do not.

    Members are put in the order of their errors; the first few are named where each of them is right on nearly all that the
    next one has wrong. On scikit-learn's data sets honest members are right on at most 0.7 of what the best other has wrong;
    overfit ones, on rows they were trained on, on 0.91 to 1.0.
    """
    truth = rows.truth.decided
    wrong = [_wrong(table, truth) for table in rows.stack]
    losses = [metrics.log_loss(truth, table) for table in rows.stack]
    order = sorted(range(len(wrong)), key=lambda place: (int(wrong[place].sum()), losses[place]))
    for first in range(1, len(order)):
        honest = order[first]
        share, enough = (RIGHT, HARD) if first == 1 else SEVERAL
        hard = wrong[honest]
        count = int(hard.sum())
        rights = [int((~wrong[place][hard]).sum()) for place in order[:first]]
        if count >= enough and all(right >= share * count for right in rights):
            return [
                TooGood(rows.members[place], rows.members[honest], right, count, losses[place], losses[honest])
                for place, right in zip(order[:first], rights, strict=True)
                if losses[place] < losses[honest]
            ]
    return []


def _wrong(table: F64, truth: Labels) -> Bools:
    """What a member gets wrong, bool [N], or [N × C] where several classes may hold."""
    return np.asarray(decide(table, truth) != truth).ravel()
