"""Votes that stop: when the weight that is still to come cannot change the winner, the rest need not be computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64

# Each ballot moves a class by its weight at most, because probabilities and single choices lie in [0, 1]. Logits, logarithms,
# ranks and medians have no such bound: one late member may turn any lead round.
STOPPING = ("soft", "hard")

SLACK = 1e-9  # of a total weight of 1: far above what rounding adds up to (1e-14), far below what a lead is worth


class Race:
    """The state of N votes over C classes while ballots come in: who leads, and whom the weight left could still make win.

    A row is settled when its leader is ahead by more than the weight that is left, and the slack: a tie never settles, so that
    the vote's own rule decides it. Multilabel: when every class is above 0.5, or below it by more than what is left.
    """

    def __init__(self, rows: int, classes: int, *, multilabel: bool = False) -> None:
        self.multilabel = multilabel
        self.totals = np.zeros((rows, classes))
        self.left = np.ones(rows)
        self._settled = np.zeros(rows, dtype=bool)

    def add(self, rows: NDArray[np.int64], ballots: F64, weight: float) -> None:
        """Count one ballot for some rows: values in [0, 1], float64 [n, C], and its share of the total weight of 1."""
        self.totals[rows] += weight * ballots
        self.left[rows] -= weight

    @property
    def settled(self) -> NDArray[np.bool_]:
        """Whether nothing that is left can change the row's outcome, bool [N]; once it is so, it stays so."""
        left = self.left + SLACK
        if self.multilabel:
            self._settled |= ((self.totals > 0.5 + SLACK) | (self.totals + left[:, None] < 0.5)).all(axis=1)
        elif self.totals.shape[1] < 2:
            self._settled[:] = True
        else:
            second, first = np.partition(self.totals, -2, axis=1)[:, -2:].T
            self._settled |= first - second > left
        return self._settled.copy()

    @property
    def leaders(self) -> NDArray[Any]:
        """The outcome of settled rows: class indices, int64 [N]; multilabel: bool [N, C]."""
        return self.totals > 0.5 if self.multilabel else self.totals.argmax(axis=1)


def ballots(probabilities: F64, how: str, *, multilabel: bool = False) -> F64:
    """What one model's probabilities [n, C] say in a vote: themselves, or in a hard vote the class it puts first."""
    if how == "soft":
        return probabilities
    if multilabel:
        return (probabilities >= 0.5).astype(np.float64)
    chosen = np.zeros(probabilities.shape)
    np.put_along_axis(chosen, probabilities.argmax(axis=1)[:, None], 1.0, axis=1)
    return chosen
