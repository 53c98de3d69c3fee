"""Exact optima: convex losses over weights >= 0 that sum to 1, and regularised multinomial regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.core.activations import softmax

_NOTHING = 1e-15  # what no member thinks possible costs the same whatever the weights


def least_brier(gram: F64, linear: F64, constant: float) -> tuple[F64, int, float]:
    """The weights [M] >= 0, summing to 1, with the least w'Gw - 2w'b + c; steps taken; how much lower it could be at most.

    There it equals x'Ex with E the Gram matrix of the members' errors, and its least point is that of x'Ex/2 - 1'x, scaled.
    """
    errors = gram - linear[:, None] - linear[None, :] + constant
    weights = nonnegative(errors, np.ones(len(linear)))
    weights /= weights.sum()
    start = np.full(len(linear), 1 / len(linear))
    if weights @ errors @ weights >= start @ errors @ start:
        weights = start
    slope = errors @ weights
    return weights, int(not np.array_equal(weights, start)), 2 * float(slope @ weights - slope.min())


def least_log_loss(p: F64, steps: int = 100) -> tuple[F64, int, float]:
    """The weights [M] >= 0, summing to 1, with the least mean of -log Σ w·p, for p float64 [M, N] >= 0; steps; the gap.

    Newton steps on Σw - mean log Σ w·p over w >= 0 alone, whose least point sums to 1 (Kim, Carbonetto, Stephens, Anitescu
    2020). The duality gap, max_j mean(p_j / Σ w·p) - 1, bounds how much lower the loss could be.
    """
    p = p[:, p.max(axis=0) > _NOTHING]
    weights, taken, gap = np.full(len(p), 1 / len(p)), 0, 0.0
    while p.size:
        ratio = p / (weights @ p)
        pull = ratio.mean(axis=1)
        gap = float(pull.max() - 1)
        if gap < 1e-13 or taken == steps:
            break
        target = nonnegative(ratio @ ratio.T / p.shape[1], 2 * pull - 1)
        moved = _walk(weights, target / target.sum(), ratio)
        if moved is None:
            break
        weights, taken = moved, taken + 1
    return weights, taken, gap


def _walk(weights: F64, target: F64, ratio: F64) -> F64 | None:
    """The first of ever shorter steps towards the target that lowers the log-loss; None if none does."""
    change = (target - weights) @ ratio  # relative to the blend, so that its logarithm keeps the digits of a small gain
    length = 1.0
    while length > 1e-8:
        if (length * change).min() > -1 and np.log1p(length * change).mean() > 0:
            return np.asarray(weights + length * (target - weights))
        length /= 2
    return None


def nonnegative(curvature: F64, pull: F64) -> F64:
    """The x [M] >= 0 with the least x'Qx/2 - b'x, for Q positive semidefinite [M, M].

    >>> nonnegative(np.eye(2), np.array([1.0, -1.0])).round(6)
    array([1., 0.])
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    ridge = 1e-13 * float(np.trace(curvature)) + 1e-150  # members that are copies of each other make Q singular
    lower = np.linalg.cholesky(curvature + ridge * np.eye(len(pull)))
    solution: F64 = nnls(lower.T, solve_triangular(lower, pull, lower=True), maxiter=100 * len(pull))[0]
    return solution


def regression(
    features: F64, truth: NDArray[Any], start: F64, *, c: float, non_negative: bool, steps: int
) -> tuple[F64, F64, int]:
    """Multinomial logistic regression of int64 [N] on float64 [N, F]: coefficients [C, F], bias [C], steps taken.

    Least sum of log-losses plus the squared coefficients over 2c, from `start` [C, F], by L-BFGS.
    """
    from scipy.optimize import minimize

    rows, (classes, width) = np.arange(len(truth)), start.shape
    centre = features.mean(axis=0)
    features = features - centre  # only the bias notices, and far fewer steps are needed

    def loss(x: F64) -> tuple[float, F64]:
        coefficients, bias = x[:-classes].reshape(classes, width), x[-classes:]
        logits = features @ coefficients.T + bias
        p = softmax(logits)
        top = logits.max(axis=1)
        fit = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[rows, truth]
        p[rows, truth] -= 1
        slope = np.concatenate([(p.T @ features + coefficients / c).ravel(), p.sum(axis=0)])
        return float(fit.sum() + (coefficients**2).sum() / (2 * c)) / len(truth), slope / len(truth)

    bounds = [(0 if non_negative else None, None)] * start.size + [(None, None)] * classes
    limits = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-10, "gtol": 1e-6}
    optimum = minimize(
        loss, np.concatenate([start.ravel(), np.zeros(classes)]), jac=True, method="L-BFGS-B", bounds=bounds, options=limits
    )
    coefficients = optimum.x[:-classes].reshape(classes, width)
    return coefficients, optimum.x[-classes:] - coefficients @ centre, int(optimum.nit)
