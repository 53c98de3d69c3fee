"""Diagnosis of members from their out-of-fold tables: who errs alike, who is of use, whose classes or folds are not right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.analysis.member_doubts import TooGood, too_good
from toolkit.analysis.scores import per_class
from toolkit.base.arrays import F64, Labels
from toolkit.blending.nested import Estimate, compare, fold_scales, outer_folds, row_scores, score_of, units
from toolkit.blending.objectives import decide
from toolkit.blending.oof import MemberRows
from toolkit.core.metrics import Metric
from toolkit.core.targets import class_order
from toolkit.errors import DataError

FLOOR = 1e-4  # of probabilities in likelihoods: one row that is certain and wrong must not outweigh hundreds
CERTAIN = 4.0  # standard errors by which another class order must fit better: 3e-5 by chance
SAME, NEARLY, ALIKE = 1e-9, 0.01, 0.001  # largest gap of copies; mean gap and share of other labels of near copies
SHOWN = 12  # columns of another order that a sentence names
ODD = 0.01  # by chance at most so often would any fold of a member be as far off


@dataclass(frozen=True)
class Pair:
    """How two members go together: correlation of their errors (phi), share of rows labelled otherwise, share both wrong.

    `copies` is "identical" or "nearly identical" where their tables are.
    """

    first: str
    second: str
    correlation: float
    disagreement: float
    both_wrong: float
    copies: str = ""


@dataclass(frozen=True)
class Permuted:
    """A member whose columns fit better in another order: `columns` says which class the column of each class really holds.

    `gain` is what the order adds per row to the log-probability of the truth, less its column's mean, on folds it was not found
    on; `certainty` that over its standard error; `before` and `after` the share of right labels; `like` a usual mistake.
    """

    member: str
    columns: dict[str, str]
    gain: float
    certainty: float
    before: float
    after: float
    like: str

    def __str__(self) -> str:
        moved = ", ".join(f"{column} holds {held}" for column, held in list(self.columns.items())[:SHOWN])
        return (
            f"{self.member}: its classes are permuted ({self.certainty:.0f} standard errors; {self.before:.1%} right as named, "
            f"{self.after:.1%} in the likeliest order): column {moved}" + (f"; {self.like}" if self.like else "")
        )


@dataclass(frozen=True)
class OddFold:
    """A fold whose score is further from the member's others than chance explains; `chance` is corrected for their number."""

    member: str
    fold: int
    score: float
    typical: float
    chance: float


@dataclass(frozen=True)
class Diagnosis:
    """All that was found: each member's score, what leaving it out of the plain mean brings, F1 by class, and what is odd.

    `without` is of the mean of those members that are not `too_good`: against what has seen the rows, honest ones look idle.
    """

    scores: dict[str, Estimate]
    mean: Estimate
    without: dict[str, Estimate]
    pairs: tuple[Pair, ...]
    classes: dict[str, dict[str, float]]
    permuted: tuple[Permuted, ...]
    odd_folds: tuple[OddFold, ...]
    notes: tuple[str, ...]
    rows: int
    too_good: tuple[TooGood, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def diagnose(rows: MemberRows, metric: Metric, *, draws: int = 1000, seed: int = 0) -> Diagnosis:
    """Look at every member, every pair and every fold.

    Raises:
        DataError: a metric that cannot be had from these tables.
    """
    truth, names = rows.truth.decided, rows.members
    mean = rows.stack.mean(axis=0)
    tables = {"": mean} | dict(zip(names, rows.stack, strict=True))
    estimates = compare(truth, metric, tables, baseline="", groups=rows.groups, draws=draws, seed=seed)
    whole = estimates.pop("")
    permuted = [permutation(rows, place, seed=seed) for place in range(len(names))]
    odd = [finding for place in range(len(names)) for finding in odd_folds(rows, place, metric, seed=seed)]
    doubted = too_good(rows, apart={found.member for found in permuted if found})
    return Diagnosis(
        estimates,
        whole,
        ablation(honest(rows, doubted), metric, draws=draws, seed=seed),
        tuple(pairs(rows)),
        _by_class(rows, mean),
        tuple(finding for finding in permuted if finding),
        tuple(odd),
        (*rows.notes, *_scales(rows, metric)),
        len(rows.ids),
        tuple(doubted),
    )


def _scales(rows: MemberRows, metric: Metric) -> Iterator[str]:
    """Of each member whose score over all rows is not what those of its folds explain: both."""
    for name, table in zip(rows.members, rows.stack, strict=True):
        scales = rows.folds is not None and fold_scales(rows.truth.decided, metric, table, rows.folds, groups=rows.groups)
        if scales and scales.note:
            yield f"{name}: {scales.note}"


def doubts(rows: MemberRows) -> list[str]:
    """What speaks against the members' tables, in sentences: too good to be out of fold, or columns in another order."""
    return doubted(rows)[1]


def doubted(rows: MemberRows) -> tuple[list[TooGood], list[str]]:
    """Members that seem to have seen the rows, and all that speaks against the members' tables, in sentences."""
    orders = [order for place in range(len(rows.members)) if (order := permutation(rows, place))]
    known = too_good(rows, apart={order.member for order in orders})
    return known, [*map(str, known), *map(str, orders)]


def honest(rows: MemberRows, doubted: Sequence[TooGood]) -> MemberRows:
    """The members but for those that seem to have seen the rows."""
    kept = [place for place, name in enumerate(rows.members) if name not in {doubt.member for doubt in doubted}]
    return replace(rows, members=tuple(rows.members[place] for place in kept), stack=rows.stack[kept]) if doubted else rows


def pairs(rows: MemberRows) -> list[Pair]:
    """Every two members against each other."""
    truth = rows.truth.decided
    labels = [decide(table, truth) for table in rows.stack]
    wrong = [np.asarray(mine != truth).reshape(len(truth), -1) for mine in labels]
    compared = []
    for a, b in combinations(range(len(labels)), 2):
        x, y = wrong[a].ravel().astype(np.float64), wrong[b].ravel().astype(np.float64)
        spread = float(x.std() * y.std())
        phi = float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread else 0.0
        other = np.asarray(labels[a] != labels[b]).reshape(len(truth), -1).any(axis=1)
        gap = np.abs(rows.stack[a] - rows.stack[b])
        copies = "identical" if gap.max(initial=0.0) <= SAME else ""
        if not copies and gap.sum(axis=1).mean() < NEARLY and other.mean() < ALIKE:
            copies = "nearly identical"
        both = float((wrong[a].any(axis=1) & wrong[b].any(axis=1)).mean())
        compared.append(Pair(rows.members[a], rows.members[b], phi, float(other.mean()), both, copies))
    return compared


def ablation(rows: MemberRows, metric: Metric, *, draws: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """The plain mean without each member, and what that gains over the mean of all; nothing for a member alone."""
    count = len(rows.members)
    if count < 2:
        return {}
    total = rows.stack.sum(axis=0)
    tables = {"": total / count}
    tables |= {name: (total - table) / (count - 1) for name, table in zip(rows.members, rows.stack, strict=True)}
    estimates = compare(rows.truth.decided, metric, tables, baseline="", groups=rows.groups, draws=draws, seed=seed)
    return {name: estimates[name] for name in rows.members}


def _by_class(rows: MemberRows, mean: F64) -> dict[str, dict[str, float]]:
    """F1 of each class: of the plain mean (under "") and of every member."""
    truth = rows.truth.decided
    tables = {"": mean} | dict(zip(rows.members, rows.stack, strict=True))
    f1 = {name: [class_score.f1 for class_score in per_class(truth, table)] for name, table in tables.items()}
    return {label: {name: f1[name][c] for name in tables} for c, label in enumerate(rows.truth.classes)}


def permutation(rows: MemberRows, place: int, *, seed: int = 0) -> Permuted | None:
    """Whether a member's columns stand in another order than their names say; None if not.

    The order in which columns speak most for the truth (an assignment problem) is found on all folds but one and tried on
    that one, so that the many orders there are cannot raise a false alarm.
    """
    table, truth, classes = rows.stack[place], rows.truth.decided, rows.truth.classes
    lift = _lift(table, multilabel=truth.ndim == 2)
    unit, count = units(rows.groups, len(truth))
    if min(count, len(classes)) < 2:
        return None
    folds = outer_folds(truth, min(5, count), groups=rows.groups, seed=seed)
    gains, hits, before = np.zeros(len(truth)), np.zeros(len(truth)), np.zeros(len(truth))
    for fold in np.unique(folds):
        out = folds == fold
        order = likeliest(lift[~out], truth[~out])
        gains[out] = _evidence(lift[out][:, order], truth[out]) - _evidence(lift[out], truth[out])
        hits[out], before[out] = _right(table[out][:, order], truth[out]), _right(table[out], truth[out])
    sums = np.bincount(unit, gains, count)
    error = float(sums.std(ddof=1) * np.sqrt(count))
    if not error or gains.sum() <= CERTAIN * error:
        return None
    order = likeliest(lift, truth)
    # order[c] is the column in which class c stands
    columns = {classes[column]: classes[c] for c, column in enumerate(order) if column != c}
    if not columns:
        return None
    certainty = float(gains.sum() / error)
    return Permuted(
        rows.members[place],
        columns,
        float(gains.mean()),
        certainty,
        float(before.mean()),
        float(hits.mean()),
        _like(order, classes),
    )


def likeliest(lift: F64, truth: Labels) -> NDArray[np.int64]:
    """For each class the column, each used once, that speaks most for it in its rows; a class stays where nothing is gained."""
    from scipy.optimize import linear_sum_assignment

    if truth.ndim == 2:
        gain = truth.T.astype(np.float64) @ lift
    else:
        gain = np.zeros((lift.shape[1], lift.shape[1]))
        np.add.at(gain, truth, lift)
    slack = 1e-9 * max(1.0, float(np.abs(gain).max()))
    return np.asarray(linear_sum_assignment(-(gain + slack * np.eye(len(gain))))[1], dtype=np.int64)


def _lift(table: F64, *, multilabel: bool) -> F64:
    """Logarithms (multilabel: log-odds) less their column's mean.

    Without that, a member that knows nothing and says one class too often would seem to have that column under another name.
    """
    logs = np.log(np.maximum(table, FLOOR))
    logs = logs - np.log(np.maximum(1 - table, FLOOR)) if multilabel else logs
    return np.asarray(logs - logs.mean(axis=0))


def _evidence(lift: F64, truth: Labels) -> F64:
    """What each row says for its own classes, float64 [N]."""
    if truth.ndim == 2:
        return np.asarray((lift * truth).sum(axis=1))
    return np.asarray(lift[np.arange(len(truth)), truth])


def _right(table: F64, truth: Labels) -> F64:
    """The share of a row's labels that are right, float64 [N]."""
    same = np.asarray(decide(table, truth) == truth, dtype=np.float64)
    return same.mean(axis=1) if same.ndim == 2 else same


def _like(order: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The usual mistake that an order of columns looks like."""
    here = {name: i for i, name in enumerate(classes)}
    orders = {
        "as text ('10' before '2')": sorted(classes),
        "by number": list(class_order(classes)),
        "backwards": list(classes)[::-1],
    }
    for how, names in orders.items():
        places = np.array([here[name] for name in names])
        if np.array_equal(places, np.arange(len(classes))):
            continue
        if np.array_equal(order[places], np.arange(len(classes))):
            return f"its columns look sorted {how}"
        if np.array_equal(order, places):
            return f"its columns look as if names sorted {how} were written over others"
    return ""


def odd_folds(rows: MemberRows, place: int, metric: Metric, *, seed: int = 0) -> list[OddFold]:
    """Folds whose score is further from the member's median fold than when rows (or groups) are dealt to folds at random."""
    if rows.folds is None:
        return []
    truth, table = rows.truth.decided, rows.stack[place]
    numbers, fold = np.unique(rows.folds, return_inverse=True)
    unit, count = units(rows.groups, len(truth))
    if len(numbers) < 3:
        return []
    home = np.zeros(count, dtype=np.int64)
    home[unit] = fold  # of another split than the members', a group may be torn; its last row then says where it is dealt
    losses = row_scores(truth, metric, [table])
    rng, draws = np.random.default_rng(seed), 999 if losses is not None else 199

    def scores(dealt: NDArray[np.int64]) -> F64:
        if losses is not None:
            return np.asarray(np.bincount(dealt, losses[0], len(numbers)) / np.bincount(dealt, minlength=len(numbers)))
        return np.array([_score(truth[dealt == k], metric, table[dealt == k]) for k in range(len(numbers))])

    seen = scores(fold)
    off = np.abs(seen - np.nanmedian(seen))
    chance = np.zeros(len(numbers))
    for _ in range(draws):
        drawn = scores(rng.permutation(home)[unit])
        chance += np.nanmax(np.abs(drawn - np.nanmedian(drawn))) >= off - 1e-12
    chance = (chance + 1) / (draws + 1)
    typical = float(np.nanmedian(seen))
    return [
        OddFold(rows.members[place], int(numbers[k]), float(seen[k]), typical, float(chance[k]))
        for k in range(len(numbers))
        if chance[k] <= ODD
    ]


def _score(truth: Labels, metric: Metric, table: F64) -> float:
    try:
        return score_of(truth, metric, table)
    except DataError:  # a fold without two classes
        return np.nan
