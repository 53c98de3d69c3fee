"""From logits to probabilities: softmax, sigmoid, and what one output of a model makes of its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.core.cards import Output
from toolkit.errors import ModelError, counted


def softmax(logits: F64) -> F64:
    """Rows of logits [N, C] as probabilities.

    >>> softmax(np.log([[1.0, 3.0]]))
    array([[0.25, 0.75]])
    """
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def sigmoid(logits: F64) -> F64:
    """Logits as the probabilities of yes, without overflow at either end.

    >>> sigmoid(np.array([0.0, -1000.0, 1000.0]))
    array([0.5, 0. , 1. ])
    """
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def probabilities(logits: NDArray[Any], output: Output) -> NDArray[np.float64]:
    """Logits (N, width) of one model as the probabilities (N, C) of one of its outputs: the one place where this is done.

    Softmax and sigmoid in float64; a single logit becomes (1 − p, p); "identity" is renormalised against rounding.

    >>> probabilities(np.array([[0.0]]), Output("label", ("no", "yes"), "sigmoid", 0, 1))  # one logit, two classes
    array([[0.5, 0.5]])

    Raises:
        ModelError: NaN or infinite logits.
    """
    x = np.asarray(logits[:, output.start : output.stop], dtype=np.float64)
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).any(axis=1).sum())
        raise ModelError(f"target {output.target!r}: NaN or infinite logits in {counted(bad, 'rows')}")
    if output.activation == "softmax":
        return softmax(x)
    if output.activation == "sigmoid":
        e = np.exp(-np.abs(x))  # never overflows
        p = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
        return np.concatenate([1 - p, p], axis=1) if output.one_logit else p
    return np.clip(x, 0, 1) if output.multilabel else np.asarray(x / x.sum(axis=1, keepdims=True))
