"""Blend weights learned on out-of-fold tables: WEIGHERS, from the plain mean to hill climbing, each saying how it ended.

Stacking is here to compare with, for callers of the library: it has no weight per member, and so no place in blend.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Labels
from toolkit.blending import simplex_solvers
from toolkit.blending.adjustment import EPS
from toolkit.blending.objectives import Objective, Search, decide, objective, quadratic, search, true_probability
from toolkit.core import metrics
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS, Metric, brier
from toolkit.errors import DataError, counted

_BETTER = 1e-12  # a smaller gain is rounding
_DIGITS = 6  # gains equal to six decimals are ties, so that a member of no use is not taken up for noise


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weigher found: `weights` float64 [M], summing to 1, or for stacking [C, M, C] with a `bias` [C].

    `score` is the metric on the rows they were fitted to, so it is optimistic. `steps` counts moves away from the start: 0 says
    that the weigher stopped where it started, and `message` why. `picks` are greedy's members in order, `path` the score
    after each of them.
    """

    how: str
    weights: F64
    score: float
    steps: int
    message: str
    picks: tuple[int, ...] = ()
    path: tuple[float, ...] = ()
    bias: F64 | None = None

    @property
    def kind(self) -> Literal["probabilities", "scores"]:
        """What `apply` makes: negative weights make scores."""
        return "scores" if self.bias is None and self.weights.min() < 0 else "probabilities"

    def apply(self, stack: F64) -> F64:
        """The blend [N, C] of M tables of probabilities [M, N, C], members in the order they were fitted in."""
        if self.bias is None:
            return np.asarray(np.tensordot(self.weights, stack, axes=1))
        return softmax(_features(stack) @ self.weights.reshape(len(self.bias), -1).T + self.bias)


def fit_weights(
    stack: F64, truth: Labels, metric: Metric, how: str = "greedy", options: Mapping[str, Any] | None = None
) -> Weights:
    """Weights for M tables of probabilities [M, N, C] by one of WEIGHERS; truth is int64 [N], or bool [N, C] if multilabel.

    `options` are that weigher's own, by name.

    >>> truth = np.array([0, 1, 0, 1])
    >>> good, bad = np.eye(2)[truth] * 0.6 + 0.2, np.eye(2)[1 - truth] * 0.6 + 0.2
    >>> fit_weights(np.stack([good, bad]), truth, METRICS["log_loss"], "convex").weights.round(3)
    array([1., 0.])

    Raises:
        DataError: an unknown weigher or option, shapes that do not fit, values that are not finite.
    """
    stack, truth = np.ascontiguousarray(stack, dtype=np.float64), np.asarray(truth)
    if how not in WEIGHERS:
        raise DataError(f"unknown weigher {how!r}", hint=f"Use one of: {', '.join(WEIGHERS)}.")
    wanted = stack.shape[1 : 1 + truth.ndim]
    if stack.ndim != 3 or not len(stack) or not len(truth) or truth.shape != wanted:
        raise DataError(f"members × rows × classes of shape {stack.shape} do not fit a truth of shape {truth.shape}")
    if bad := [m for m in range(len(stack)) if not np.isfinite(stack[m].sum())]:
        raise DataError(f"members {bad} (counted from 0) have NaN or infinite values")
    fitted = WEIGHERS[how](stack, truth, metric, **(options or {}))
    return replace(fitted, how=how)


def uniform(stack: F64, truth: Labels, metric: Metric) -> Weights:
    """Every member the same.

    >>> truth = np.array([0, 1])
    >>> uniform(np.stack([np.eye(2), np.full((2, 2), 0.5)]), truth, METRICS["accuracy"]).weights
    array([0.5, 0.5])
    """
    weights = np.full(len(stack), 1 / len(stack))
    return _found(weights, objective(stack, truth, metric).of(weights), metric, 0, "the plain mean, nothing was fitted")


def best_single(stack: F64, truth: Labels, metric: Metric) -> Weights:
    """All weight to the member with the best score; the first of equals.

    >>> truth = np.array([0, 1])
    >>> best_single(np.stack([1 - np.eye(2), np.eye(2)]), truth, METRICS["accuracy"]).weights
    array([0., 1.])
    """
    gains = _singles(objective(stack, truth, metric))
    best = int(gains.argmax())
    return _found(_unit(best, len(stack)), gains[best], metric, 0, f"member {best} alone scores best")


def greedy(
    stack: F64,
    truth: Labels,
    metric: Metric,
    *,
    steps: int = 50,
    patience: int = 20,
    sorted_start: bool = False,
    bags: int = 1,
    share: float = 0.5,
    seed: int = 0,
) -> Weights:
    """Ensemble selection (Caruana et al. 2004): pick, again and again, the member that helps the mean of all picks most.

    At most `steps` picks, `patience` of them without a better score; the best prefix counts. Ties go to members already picked,
    then to the lower log-loss, then to the first. `sorted_start` begins with the best members as long as their mean gets
    better; with `bags` > 1 the weights are the mean over that many searches, each among a random `share` of the members.

    >>> truth = np.array([0, 1])
    >>> greedy(np.stack([1 - np.eye(2), np.eye(2)]), truth, METRICS["accuracy"]).picks
    (1,)
    """
    everyone = np.arange(len(stack))
    if bags == 1:
        picks, path = _pick(stack, truth, metric, everyone, steps, patience, sorted_start=sorted_start)
        weights = np.bincount(picks, minlength=len(stack)) / len(picks)
        message = f"{counted(len(picks), 'picks')} of {counted(len(set(picks)), 'members')}; more did not help"
        if len(picks) == steps:
            message = f"all {counted(steps, 'picks')} of {counted(len(set(picks)), 'members')} helped: more steps may be better"
        scores = tuple(metric.gain(gain) for gain in path)
        return replace(_found(weights, path[-1], metric, len(picks), message), picks=tuple(picks), path=scores)
    rng, weights = np.random.default_rng(seed), np.zeros(len(stack))
    size = min(len(stack), max(2, round(share * len(stack))))
    for _ in range(bags):
        bag = np.sort(rng.choice(everyone, size, replace=False))
        picks, _ = _pick(stack, truth, metric, bag, steps, patience, sorted_start=sorted_start)
        weights += np.bincount(picks, minlength=len(stack)) / len(picks) / bags
    return _found(
        weights,
        objective(stack, truth, metric).of(weights),
        metric,
        bags,
        f"the mean of {bags} searches among {counted(size, 'members')} each",
    )


def _pick(
    stack: F64, truth: Labels, metric: Metric, among: NDArray[np.int64], steps: int, patience: int, *, sorted_start: bool
) -> tuple[list[int], list[float]]:
    """The best prefix of greedy picks and the gain after each."""
    state = search(stack, truth, metric)
    tie_breaker = state if metric.score is metrics.log_loss else search(stack, truth, METRICS["log_loss"])
    picks: list[int] = []
    path: list[float] = []
    best = 0
    queue = _start(state, stack, truth, metric, among) if sorted_start else []
    while len(picks) < steps and len(picks) - best <= patience:
        gains = state.gains(among)
        place = list(among).index(queue.pop(0)) if queue else _choose(gains, among, picks, tie_breaker)
        picks.append(int(among[place]))
        path.append(float(gains[place]))
        state.add(picks[-1])
        if tie_breaker is not state:
            tie_breaker.add(picks[-1])
        if _round(path[-1]) > _round(path[best]):
            best = len(path) - 1
    return picks[: best + 1], path[: best + 1]


def _choose(gains: F64, among: NDArray[np.int64], picks: Sequence[int], tie_breaker: Search) -> int:
    rounded = np.array([_round(gain) for gain in gains])
    tied = np.flatnonzero(rounded == rounded.max())
    used = tied[np.isin(among[tied], picks)]
    tied = used if len(used) else tied
    if len(tied) == 1:
        return int(tied[0])
    second = tie_breaker.gains(among[tied])
    return int(tied[np.flatnonzero(np.isclose(second, second.max(), atol=0, rtol=1e-12))[0]])


def _round(gain: float) -> float:
    """Six decimals, unless the whole loss is smaller than would leave any to compare."""
    return round(gain, _DIGITS) if abs(gain) > 1e-4 else gain


def _start(state: Search, stack: F64, truth: Labels, metric: Metric, among: NDArray[np.int64]) -> list[int]:
    """The best members in order, as many as make their mean best."""
    order = among[np.argsort(-state.gains(among), kind="stable")]
    trial = search(stack, truth, metric)
    gains = []
    for member in order:
        gains.append(float(trial.gains(np.array([member]))[0]))
        trial.add(int(member))
    return [int(member) for member in order[: int(np.argmax(gains)) + 1]]


def convex(stack: F64, truth: Labels, metric: Metric, *, steps: int = 100) -> Weights:
    """The weights >= 0 with the least Brier score (if that is the metric) or else the least log-loss: the exact optimum.

    The message carries a proof: a bound on how much any other weights could be better.
    """
    goal = objective(stack, truth, metric)
    if metric.score is brier:
        name, (weights, count, gap) = "brier", simplex_solvers.least_brier(*quadratic(stack, truth))
    else:
        p = goal.members if metric.score is metrics.log_loss else true_probability(stack, truth)
        name, (weights, count, gap) = "log_loss", simplex_solvers.least_log_loss(p, steps)
    message = f"no weights >= 0 have a {name} lower by more than {max(gap, 0.0):.1e}"
    if count == 0:
        message = f"stopped where it started, at uniform: {message}"
    return _found(weights, goal.of(weights), metric, count, message)


def nelder_mead(stack: F64, truth: Labels, metric: Metric, *, evaluations: int = 100) -> Weights:
    """Nelder-Mead on |x| / Σ|x| from uniform, each vertex half way to one member; at most `evaluations` per member.

    For metrics without a slope, and few members.
    """
    from scipy.optimize import minimize

    count = len(stack)
    goal, start = objective(stack, truth, metric), np.full(count, 1 / count)
    simplex = np.vstack([start, (start + np.eye(count)) / 2])[: count + 1]
    limits = {"initial_simplex": simplex, "maxfev": evaluations * count, "adaptive": True, "xatol": 1e-6, "fatol": _BETTER}
    optimum = minimize(lambda x: -goal.of(_simplex(x)), start, method="Nelder-Mead", options=limits)
    moved = goal.of(_simplex(optimum.x)) > goal.of(start) + _BETTER
    weights = _simplex(optimum.x) if moved else start
    message = f"{optimum.nit} iterations, {optimum.nfev} blends scored; a local optimum at best"
    if not moved:
        message = f"stopped where it started, at uniform: none of {optimum.nfev} blends was better"
    return _found(weights, goal.of(weights), metric, int(optimum.nit) if moved else 0, message)


def coordinate(stack: F64, truth: Labels, metric: Metric, *, first: float = 0.5, least: float = 0.005) -> Weights:
    """Move towards or away from one member at a time, by half of the last length once nothing helps, with weights >= 0.

    From the better of uniform and the best single member; the first move is `first` of the way, the last `least`.
    """
    goal, count = objective(stack, truth, metric), len(stack)
    singles = _singles(goal)
    weights = np.full(count, 1 / count)
    where = "uniform"
    if singles.max() > goal.of(weights) + _BETTER:
        weights, where = _unit(int(singles.argmax()), count), f"member {int(singles.argmax())}"
    blend, gain, steps, length = np.tensordot(weights, goal.members, axes=1), goal.of(weights), 0, first
    while length >= least:
        moved = False
        for member, towards in [(m, d) for m in range(count) for d in (1, -1)]:
            left = 1 - weights[member]
            part = length * left if towards > 0 else -min(length, weights[member] / left) if left > _BETTER else 0.0
            trial = (1 - part) * blend + part * goal.members[member]
            if part and (better := goal.gain(trial)) > gain + _BETTER:
                weights = np.maximum((1 - part) * weights + part * _unit(member, count), 0.0)
                blend, gain, steps, moved = trial, better, steps + 1, True
        if not moved:
            length /= 2
    message = f"{steps} moves from {where}; none of {least:g} helps any more"
    if not steps:
        message = f"stopped where it started, at {where}: no move between {least:g} and {first:g} helps"
    return _found(weights / weights.sum(), gain, metric, steps, message)


def hill_climb(
    stack: F64, truth: Labels, metric: Metric, *, grid: float = 0.01, largest: float = 0.5, negative: bool = False
) -> Weights:
    """From the best member: mix in, again and again, the unused member and weight that help most, until none does.

    Weights tried are `grid`, 2 · `grid`, … `largest`, with `negative` from -`largest` (the result is then of kind "scores").

    Raises:
        DataError: negative weights for a metric that needs probabilities.
    """
    if negative and metric.score in {metrics.log_loss, brier}:
        raise DataError(f"negative weights make scores, and {metric.name} needs probabilities", hint="Use another weigher.")
    goal, count = objective(stack, truth, metric), len(stack)
    singles = _singles(goal)
    pool = np.argsort(-singles, kind="stable").tolist()
    weights, gain = _unit(pool[0], count), float(singles[pool[0]])
    blend, start, path = goal.members[pool.pop(0)], int(singles.argmax()), [gain]
    tried = np.arange(-largest if negative else grid, largest + grid / 2, grid)
    while pool:
        gains = [[goal.gain((1 - t) * blend + t * goal.members[m]) for t in tried] for m in pool]
        row, column = np.unravel_index(int(np.argmax(gains)), (len(pool), len(tried)))
        if gains[row][column] <= gain + _BETTER:
            break
        gain, part, member = gains[row][column], float(tried[column]), pool.pop(int(row))
        blend = (1 - part) * blend + part * goal.members[member]
        weights = (1 - part) * weights + part * _unit(member, count)
        path.append(gain)
    steps = len(path) - 1
    message = f"{counted(steps, 'members')} mixed into member {start}; no other helps"
    if not steps:
        message = f"stopped where it started, at member {start}: no other helps"
    return replace(_found(weights, gain, metric, steps, message), path=tuple(metric.gain(value) for value in path))


def stacking(
    stack: F64, truth: Labels, metric: Metric, *, c: float = 1.0, non_negative: bool = False, steps: int = 500
) -> Weights:
    """Multinomial logistic regression on the members' log-probabilities, L2 of strength 1/`c` as in scikit-learn.

    `weights` are its coefficients [C, M, C] (class, member, member's class), `bias` [C]; `non_negative` keeps them >= 0.

    Raises:
        DataError: a multilabel truth.
    """
    if truth.ndim == 2:
        raise DataError("stacking needs classes that exclude each other", hint="Use greedy or convex.")
    members, _, classes = stack.shape
    start = np.tile(np.eye(classes), members).reshape(classes, -1) / members
    coefficients, bias, count = simplex_solvers.regression(
        _features(stack), truth, start, c=c, non_negative=non_negative, steps=steps
    )
    message = f"{counted(count, 'steps')}" if count < steps else f"not there yet after {counted(steps, 'steps')}"
    if not count:
        message = "stopped where it started, at the geometric mean"
    fitted = Weights("", coefficients.reshape(classes, members, classes), 0.0, count, message, bias=bias)
    values = fitted.apply(stack)
    return replace(fitted, score=metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values))


def _features(stack: F64) -> F64:
    """Log-probabilities of all members side by side: [N, M · C]."""
    logs: F64 = np.log(np.maximum(stack, EPS))
    return np.asarray(logs.transpose(1, 0, 2).reshape(stack.shape[1], -1))


def _found(weights: F64, gain: float, metric: Metric, steps: int, message: str) -> Weights:
    return Weights("", weights, float(metric.gain(gain)), steps, message)


def _singles(goal: Objective) -> F64:
    return np.array([goal.gain(member) for member in goal.members])


def _unit(member: int, count: int) -> F64:
    weights = np.zeros(count)
    weights[member] = 1.0
    return weights


def _simplex(x: F64) -> F64:
    size = np.abs(x)
    return size / size.sum() if size.any() else np.full(len(x), 1 / len(x))


WEIGHERS: dict[str, Callable[..., Weights]] = {
    "uniform": uniform,
    "best_single": best_single,
    "greedy": greedy,
    "convex": convex,
    "nelder_mead": nelder_mead,
    "coordinate": coordinate,
    "hill_climb": hill_climb,
    "stacking": stacking,
}
