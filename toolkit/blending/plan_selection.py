"""Judging blends: plans of weigher, vote and calibration, chosen inside each outer fold, against the plain mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Labels
from toolkit.base.text import html
from toolkit.blending.adjustment import Adjustment
from toolkit.blending.blend import Blend, cool
from toolkit.blending.calibration import ADJUSTMENTS, temperature
from toolkit.blending.nested import (
    Estimate,
    check_groups,
    compare,
    decide_between,
    nested,
    outer_folds,
    score_of,
    weigher,
    widening,
)
from toolkit.blending.weighers import Weights, fit_weights
from toolkit.core import metrics
from toolkit.core.metrics import Metric
from toolkit.core.voting import vote
from toolkit.errors import DataError, counted


@dataclass(frozen=True, eq=False)
class Verdict:
    """What `judge` found: estimates by name ("best_single", "uniform", "in_sample", "nested"), and what to use and why.

    `weights` were fitted to all rows by the weigher of the plan that is `chosen`; `blend` is the whole of that plan's outcome,
    None for stacking. `picks` counts in how many outer folds each plan was the one chosen, `predicted` holds what the nested
    choice says of each row, float64 [N, C]. `outer` has the blend of each outer fold, settled without it (none where the plain
    mean was chosen, which nothing was fitted for, or one has no weight per member), `folds` int64 [N] these folds.
    """

    estimates: Mapping[str, Estimate]
    chosen: str
    reason: str
    weights: Weights
    blend: Blend | None
    picks: Mapping[str, int]
    predicted: F64
    outer: Mapping[int, Blend]
    folds: NDArray[np.int64]

    def _repr_html_(self) -> str:
        """The estimates side by side, for notebooks."""
        rows = [(name, e.score, e.low, e.high, e.gain, e.gain_low, e.gain_high) for name, e in self.estimates.items()]
        heads = ("", "score", "95 % from", "to", "gain over the mean", "95 % from", "to")
        return html.table(heads, rows, caption=f"{self.chosen}: {self.reason}")


@dataclass(frozen=True)
class BlendPlan:
    """One way to blend: a weigher, a vote, and what is calibrated: nothing, "members" before the vote, or one of ADJUSTMENTS.

    Weights are learned on the weighted mean, whatever the vote.
    """

    weigher: str = "greedy"
    vote: str = "soft"
    calibrate: str = ""

    @property
    def name(self) -> str:
        """`greedy`, `convex, geometric vote, temperature`."""
        how = f", {self.vote} vote" if self.vote != "soft" else ""
        after = {"": "", "members": ", temperature per member"}.get(self.calibrate, f", {self.calibrate}")
        return f"{self.weigher}{how}{after}"

    def suits(self, metric: Metric, *, multilabel: bool) -> bool:
        """Whether the metric can be had from its outcome, and can notice what it calibrates."""
        if (self.vote == "hard" and metric.accepts != "labels") or (self.vote == "rank" and metric.accepts != "scores"):
            return False
        if self.vote in ("hard", "rank"):
            return not self.calibrate
        if self.calibrate == "factors":
            return metric.accepts == "labels"
        return self.weigher != "stacking" or (self.vote == "soft" and self.calibrate != "members" and not multilabel)


ENOUGH = 20_000  # rows by which a plan is chosen, so that the choice takes seconds; its numbers are settled on all rows
CALIBRATIONS = ("", "members", *ADJUSTMENTS)


def plans(
    metric: Metric, weighers: Sequence[str] = (), votes: Sequence[str] = (), calibrate: Sequence[str] = (), *, multilabel: bool
) -> list[BlendPlan]:
    """Every combination that makes sense for the metric, the simplest first; what is left empty is filled with what may pay.

    That is: the mean and one learned weight per member; soft and geometric vote, for labels hard, for ranks rank; and for
    probabilities a temperature, for macro-F1 and its like a factor per class.

    >>> [plan.name for plan in plans(metrics.METRICS["accuracy"], votes=["soft", "hard"], multilabel=False)]
    ['uniform', 'uniform, hard vote', 'greedy', 'greedy, hard vote']

    Raises:
        DataError: none of the combinations suits the metric.
    """
    third = "hard" if metric.accepts == "labels" else "rank" if metric.score is metrics.roc_auc else ""
    fitted = "convex" if metric.accepts == "probabilities" else "greedy"
    after = {"labels": ("", "factors"), "probabilities": ("", "temperature")}.get(metric.accepts, ("",))
    every = product(
        weighers or ("uniform", fitted),
        votes or tuple(filter(None, ("soft", "geometric", third))),
        calibrate or (("",) if metric.score is metrics.accuracy else after),
    )
    suitable = [plan for plan in (BlendPlan(*parts) for parts in every) if plan.suits(metric, multilabel=multilabel)]
    if not suitable:
        raise DataError(
            f"no combination of this weigher, vote and calibration suits {metric.name}, a metric of {metric.accepts}",
            hint="Hard votes and factors decide labels, rank votes make scores, temperatures need probabilities.",
        )
    return suitable


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A plan with its numbers, as settled on some rows."""

    plan: BlendPlan
    weights: Weights
    temperatures: F64
    adjustment: Adjustment | None = None
    multilabel: bool = False

    def before(self, stack: F64) -> F64:
        """What the vote says of tables [M, n, C] that are cooled already; a hard vote as 0 and 1."""
        if self.plan.vote == "soft":
            return self.weights.apply(stack)  # the same as the vote but for the last bits, and much faster
        outcome = vote(stack, how=self.plan.vote, weights=self.weights.weights, multilabel=self.multilabel)
        if outcome.labels is None:
            return np.asarray(outcome.values)
        return outcome.labels.astype(np.float64) if self.multilabel else np.eye(stack.shape[2])[outcome.labels]

    def apply(self, stack: F64) -> F64:
        """What the plan says of tables [M, n, C]."""
        blended = self.before(_cooled(stack, self.temperatures, multilabel=self.multilabel))
        return blended if self.adjustment is None else self.adjustment.apply(blended)

    def blend(self, members: Sequence[str]) -> Blend | None:
        """The plan as others apply it; None for stacking and negative weights, which have no weight per member."""
        if self.weights.bias is not None or self.weights.weights.min() < 0:
            return None
        adjusted = self.plan.calibrate if self.adjustment is not None else ""
        return Blend(tuple(members), self.weights.weights, self.plan.vote, self.temperatures, self.adjustment, adjusted)


def _cooled(stack: F64, temperatures: F64, *, multilabel: bool) -> F64:
    if (temperatures == 1).all():
        return stack
    return np.stack([cool(p, float(t), multilabel=multilabel) for p, t in zip(stack, temperatures, strict=True)])


def _fit(stack: F64, truth: Labels, metric: Metric, every: Sequence[BlendPlan], options: Mapping[str, Any]) -> list[_Fitted]:
    """Each plan settled on these rows; what plans share is fitted once."""
    multilabel, plain = truth.ndim == 2, np.ones(len(stack))
    warm = {False: plain}
    if any(plan.calibrate == "members" for plan in every):
        warm[True] = np.array([temperature(table, truth).temperature for table in stack])
    cold = {members: _cooled(stack, each, multilabel=multilabel) for members, each in warm.items()}
    weights: dict[tuple[str, bool], Weights] = {}
    blends: dict[tuple[str, str], F64] = {}
    plans_fitted = []
    for plan in every:
        members = plan.calibrate == "members"
        if (plan.weigher, members) not in weights:
            weights[plan.weigher, members] = fit_weights(cold[members], truth, metric, plan.weigher, options)
        fitted = _Fitted(plan, weights[plan.weigher, members], warm[members], multilabel=multilabel)
        if plan.calibrate in ADJUSTMENTS:
            if (key := (plan.weigher, plan.vote)) not in blends:
                blends[key] = fitted.before(stack)
            adjustment = ADJUSTMENTS[plan.calibrate](blends[key], truth, metric)
            fitted = _Fitted(plan, fitted.weights, fitted.temperatures, adjustment, multilabel=multilabel)
        plans_fitted.append(fitted)
    return plans_fitted


@dataclass(eq=False)
class _Choice:
    """Plans settled on all rows but those of some folds, each fit made once: leaving out j and k serves both as outer fold."""

    stack: F64
    truth: Labels
    metric: Metric
    folds: NDArray[np.int64]
    options: Mapping[str, Any]
    report: Callable[[int, int], None]
    fits: dict[tuple[frozenset[int], BlendPlan], _Fitted] = field(default_factory=dict)

    def thinned(self) -> _Choice:
        """The same work on rows enough to choose by."""
        rows = np.sort(np.random.default_rng(0).choice(len(self.truth), ENOUGH, replace=False))
        stack = self.stack.take(rows, axis=1)
        return _Choice(stack, self.truth[rows], self.metric, self.folds[rows], self.options, self.report)

    def without(self, left: frozenset[int], every: Sequence[BlendPlan]) -> list[_Fitted]:
        """The plans settled on the rows of all other folds."""
        lacking = [plan for plan in every if (left, plan) not in self.fits]
        if lacking:
            kept = np.flatnonzero(~np.isin(self.folds, list(left)))
            rows = self.stack.take(kept, axis=1) if left else self.stack
            for fitted in _fit(rows, self.truth[kept], self.metric, lacking, self.options):
                self.fits[left, fitted.plan] = fitted
            folds = len(np.unique(self.folds))
            self.report(len({key for key, _ in self.fits}), folds * (folds + 1) // 2 + 1)
        return [self.fits[left, plan] for plan in every]

    def best(self, left: frozenset[int], every: Sequence[BlendPlan]) -> BlendPlan:
        """The plan with the best score on the rows of the other folds, each row by a rule that was settled without its fold."""
        if len(every) == 1:
            return every[0]
        kept = np.flatnonzero(~np.isin(self.folds, list(left)))
        predicted = [np.empty((len(self.folds), self.stack.shape[2])) for _ in every]
        for number in np.unique(self.folds[kept]):
            out = np.flatnonzero(self.folds == number)
            rows = self.stack.take(out, axis=1)
            for place, fitted in enumerate(self.without(left | {int(number)}, every)):
                predicted[place][out] = fitted.apply(rows)
        gains = np.array([self.metric.gain(score_of(self.truth[kept], self.metric, values[kept])) for values in predicted])
        return every[int(np.flatnonzero(gains >= gains.max() - 1e-12)[0])]


def choose(
    stack: F64,
    truth: Labels,
    metric: Metric,
    every: Sequence[BlendPlan],
    folds: NDArray[np.int64],
    *,
    options: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[F64, dict[int, _Fitted], _Fitted]:
    """Choose among plans and score the choice: what is said of each row [N, C], the choice of each outer fold, the final one.

    For each outer fold the plan is chosen by its cross-validated score on the other folds, settled on them, and applied to the
    fold left out: neither choice nor numbers have seen it. The final plan is chosen and settled on all rows alike. Of more
    rows than ENOUGH, that many drawn at random choose.

    Raises:
        DataError: fewer than two folds; fewer than three where there is something to choose.
    """
    numbers = np.unique(folds).tolist()
    if len(numbers) < 2 + (len(every) > 1):
        raise DataError(
            f"{counted(len(numbers), 'folds')} cannot choose among {counted(len(every), 'plans')} and score the choice",
            hint="Use a split with more folds, or try one plan only.",
            code="one-plan",
        )
    work = _Choice(stack, truth, metric, folds, options or {}, report or (lambda _done, _total: None))
    few = work if len(truth) <= ENOUGH or len(every) == 1 else work.thinned()
    predicted, outer = np.empty(stack.shape[1:]), {}
    for number in numbers:
        left, out = frozenset({int(number)}), np.flatnonzero(folds == number)
        outer[int(number)] = work.without(left, [few.best(left, every)])[0]
        predicted[out] = outer[int(number)].apply(stack.take(out, axis=1))
    return predicted, outer, work.without(frozenset(), [few.best(frozenset(), every)])[0]


def judge(
    stack: F64,
    truth: Labels,
    metric: Metric,
    how: str | Sequence[BlendPlan] = "greedy",
    *,
    members: Sequence[str] = (),
    folds: NDArray[np.int64] | None = None,
    groups: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
    always: bool = False,
    report: Callable[[int, int], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Verdict:
    """Should these members be blended so, or by the plain mean? The plain mean, unless the gain exceeds its noise.

    Tables are [M, N, C], truth int64 [N] or bool [N, C]. `how` is a weigher, or plans to choose among. Nested over `folds` (5
    are made if none are given, or too few to choose); `always` takes the best plan whatever comes out, and the reason says so.

    Raises:
        DataError: see `fit_weights`, `choose` and `outer_folds`; folds that tear a group apart.
    """
    every = [BlendPlan(how)] if isinstance(how, str) else list(how)
    if folds is None or (len(every) > 1 and len(np.unique(folds)) < 3):
        folds = outer_folds(truth, groups=groups, seed=seed)
    check_groups(folds, groups)
    names = list(members) or [str(place) for place in range(len(stack))]
    apart, outer, best = choose(stack, truth, metric, every, folds, options=options, report=report)
    plain = _fit(stack, truth, metric, [BlendPlan("uniform")], {})[0]
    tables = {
        "best_single": nested(stack, truth, {"best_single": weigher("best_single", metric)}, folds)["best_single"],
        "uniform": plain.apply(stack),
        "in_sample": best.apply(stack),
        "nested": apart,
    }
    chosen_among = {"best_single": len(stack) > 1, "nested": every != [BlendPlan("uniform")]}
    widen = {name: widening(len(np.unique(folds))) for name, several in chosen_among.items() if several}
    estimates = compare(truth, metric, tables, groups=groups, widen=widen, draws=draws, seed=seed)
    chosen, reason = decide_between(best.plan.name, estimates["nested"], metric)
    if len(every) > 1 and best.plan == BlendPlan("uniform"):
        reason = f"uniform: the plain mean has the best cross-validated score of {counted(len(every), 'plans')}"
    if always and chosen != best.plan.name:
        chosen, reason = best.plan.name, f"{best.plan.name} because it was asked for, although the rule says: {reason}"
    used = best if chosen == best.plan.name else plain
    picks = [fitted.plan for fitted in outer.values()]
    counts = {plan.name: picks.count(plan) for plan in every if plan in picks}
    fitted = used is best and best.plan != BlendPlan("uniform")
    blend = used.blend(names)
    without = {number: own.blend(names) for number, own in outer.items()} if fitted and blend else {}
    settled = {number: own for number, own in without.items() if own is not None}
    blend = blend and replace(blend, fitted=fitted)
    whole = settled if len(settled) == len(without) else {}
    return Verdict(estimates, chosen, reason, used.weights, blend, counts, apart, whole, folds)
