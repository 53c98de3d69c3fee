"""What is done to the probabilities of a vote: a scale and a bias of each class's logit, for which numpy suffices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.base.arrays import F64
from toolkit.core.activations import sigmoid, softmax

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Adjustment:
    """softmax(scale · log p + bias), for scale and bias float64 [C]; multilabel: each class's log-odds, scaled and shifted."""

    scale: F64
    bias: F64
    multilabel: bool = False

    def apply(self, p: F64) -> F64:
        """The adjusted probabilities [N, C].

        >>> Adjustment(np.array([1.0, 1.0]), np.log([3.0, 1.0])).apply(np.array([[0.5, 0.5]]))
        array([[0.75, 0.25]])
        """
        logits = self.scale * logits_of(p, multilabel=self.multilabel) + self.bias
        return sigmoid(logits) if self.multilabel else softmax(logits)

    @property
    def temperature(self) -> float:
        """What logits are divided by, where all classes share it; above 1 the probabilities were too sure of themselves."""
        return float(1 / self.scale.mean())


def logits_of(p: F64, *, multilabel: bool) -> F64:
    """Logits that give these probabilities [N, C]: their logarithms; multilabel: log-odds."""
    logs: F64 = np.log(np.maximum(p, EPS))
    return logs - np.log(np.maximum(1 - p, EPS)) if multilabel else logs
