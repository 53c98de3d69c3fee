"""Plans: which members, views and precision give the best score within a time, from stored timings and held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.blending import oof
from toolkit.blending.nested import Estimate, compare, outer_folds, row_scores, score_of, widening
from toolkit.blending.oof import MemberRows
from toolkit.core.alignment import align_members, shared_ids
from toolkit.core.metrics import Metric
from toolkit.core.predictions import Predictions
from toolkit.ensemble.unseen import out_of_fold, stored_only
from toolkit.errors import DataError, ToolkitError, counted, few
from toolkit.images.views import VIEW_SETS, views
from toolkit.inference.execution import Execution
from toolkit.inference.exports import read_exports
from toolkit.inference.store import timings
from toolkit.inference.store.timings import Timing
from toolkit.runtime.devices import PRECISIONS, choose_device, engine_tag
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace import make_split
from toolkit.workspace.competition import Competition

EVERY = 2000  # combinations that are all looked at; of more, the best are grown member by member
WIDTH = 40  # how many are grown
AS_TRAINED = next(iter(PRECISIONS))
ENOUGH = 20_000  # rows on which combinations are compared


@dataclass(frozen=True, eq=False)
class Option:
    """A member with a set of views in one precision: seconds for all test images, and its held-out probabilities [N, C]."""

    member: str
    tta: str
    precision: str
    seconds: float
    table: F64


@dataclass(frozen=True)
class PlanLine:
    """A combination: the view set of each member, its precision, seconds, score, and whether it fits the time."""

    members: Mapping[str, str]
    precision: str
    seconds: float
    estimate: Estimate
    fits: bool


@dataclass(frozen=True)
class TimePlan:
    """The combinations that nothing faster beats, the best that fits, its nested score, and the files of its models.

    `nested` is the score of choosing so: the combination picked on other folds, scored on the fold left out.
    """

    budget: float
    device: str
    images: int
    rows: int
    lines: tuple[PlanLine, ...]
    chosen: PlanLine
    nested: Estimate
    models: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """Plain values, without the files."""
        return {name: value for name, value in asdict(self).items() if name != "models"}


def plan(
    competition: Competition, paths: Sequence[Path], budget: float, *, device: str = "auto", images: int | None = None
) -> TimePlan:
    """Find the combination of members, view sets and precision with the best score that takes at most `budget` seconds.

    Scores are of the mean over members, on rows that no model saw: those of oof/ without views, and with views those that the
    store has (`toolkit tta` brings them there). Timings are those noted while predicting on this device.

    Raises:
        DataError: several targets, nothing timed or scored, or a time that nothing fits.
        ModelError, DeviceError: see `read_exports` and `choose_device`.
    """
    if len(competition.targets) != 1:
        raise DataError(f"a plan goes by the score of one target, and there are {len(competition.targets)}")
    exports = read_exports(paths, competition)
    device = choose_device(device)
    images = len(competition.images("test")) if images is None else images
    options, rows, notes = options_of(competition, exports, device, images)
    around = _around(competition, device)
    alike = ([option for option in options if option.precision == precision] for precision in PRECISIONS)
    combos = [combo for group in alike for combo in combinations(group, rows, competition.score)]
    costs = np.array([seconds(combo, around, images) for combo in combos])
    if images and not (costs <= budget).any():
        raise DataError(
            f"nothing predicts {counted(images, 'images')} in {budget:,.0f} s: the fastest takes about {costs.min():,.0f} s",
            hint="Give it more time, another device, or a smaller model.",
            code="device",
        )
    front, chosen, nested = _settled(combos, costs, rows, competition.score, budget)
    models = tuple(export.path for export in exports if export.card.member in chosen.members)
    return TimePlan(budget, device, images, len(rows.ids), front, chosen, nested, models, notes)


def options_of(
    competition: Competition, exports: Sequence[Export], device: str, images: int
) -> tuple[list[Option], MemberRows, tuple[str, ...]]:
    """What each member can be run with, as far as timings and held-out rows are known; the rows they share; what is not known.

    Raises:
        DataError: no member has both.
    """
    known, engine = timings.read(competition.path("store")), engine_tag(device)
    tables: dict[tuple[str, str, str], Predictions] = {}
    costs, notes = [], []
    for member in dict.fromkeys(export.card.member for export in exports):
        own = [export for export in exports if export.card.member == member]
        for precision in PRECISIONS:
            each = _each(own, known, engine, precision)
            if each is None:
                notes += [f"{member} was never timed on {device}"] if precision == AS_TRAINED else []
                continue
            for name in VIEW_SETS:
                table = _held_out(competition, own, name, device, precision)
                if table is not None:
                    tables[member, name, precision] = table
                    costs.append(each * len(views(name)) * images)
                elif name == "none":
                    notes.append(f"{member} has no held-out rows in {precision}")
    if not tables:
        raise DataError(
            f"no member has both timings and held-out rows: {few(notes)}",
            hint="Predict some test images once with each, and train with out-of-fold tables.",
            code="timings",
        )
    named = {" ".join(key): table for key, table in tables.items()}
    ids = shared_ids(named, common=True)
    if not ids:
        raise DataError(f"the members' held-out rows have none in common: {few(named)}")
    rows = oof.rows_of(competition, competition.targets[0], align_members(named, ids))
    thin = np.sort(np.random.default_rng(0).permutation(len(ids))[:ENOUGH])
    rows = rows.take(thin) if len(ids) > ENOUGH else rows
    options = [Option(*key, cost, table) for key, cost, table in zip(tables, costs, rows.stack, strict=True)]
    return options, rows, tuple(notes)


def combinations(options: Sequence[Option], rows: MemberRows, metric: Metric) -> list[tuple[Option, ...]]:
    """Every choice of at most one option per member, if they are not too many; else the best ones of each size."""
    members = list(dict.fromkeys(option.member for option in options))
    by_member = {name: [None, *(option for option in options if option.member == name)] for name in members}
    if math.prod(map(len, by_member.values())) <= EVERY:
        picked = (tuple(option for option in combo if option) for combo in product(*by_member.values()))
        return [combo for combo in picked if combo]
    every: dict[frozenset[int], tuple[Option, ...]] = {}
    grown: list[tuple[Option, ...]] = [()]
    for _ in members:
        wider = {
            frozenset(map(id, (*combo, option))): (*combo, option)
            for combo in grown
            for option in options
            if option.member not in {chosen.member for chosen in combo}
        }
        every |= wider
        ranked = sorted(wider.values(), key=lambda combo: -_gain(combo, rows, metric))
        by_cost = sorted(wider.values(), key=lambda combo: -_gain(combo, rows, metric) / (1 + sum(o.seconds for o in combo)))
        grown = list({frozenset(map(id, combo)): combo for combo in (*ranked[:WIDTH], *by_cost[:WIDTH])}.values())
    return list(every.values())


def seconds(combo: Iterable[Option], around: Timing | None, images: int) -> float:
    """About how long a combination takes: its passes, and what each image costs besides."""
    return sum(option.seconds for option in combo) + (around.each * images if around else 0.0)


def pareto(costs: F64, gains: F64) -> list[int]:
    """Those that nothing at most as slow beats, the fastest first."""
    kept: list[int] = []
    for place in np.lexsort((-gains, costs)).tolist():
        if not kept or gains[place] > gains[kept[-1]] + 1e-12:
            kept.append(place)
    return kept


def _settled(
    combos: Sequence[tuple[Option, ...]], costs: F64, rows: MemberRows, metric: Metric, budget: float
) -> tuple[tuple[PlanLine, ...], PlanLine, Estimate]:
    """The combinations that nothing faster beats, the best that fits, and the score of choosing so on other folds."""
    truth = rows.truth.decided
    folds = outer_folds(truth, groups=rows.groups) if rows.folds is None else rows.folds
    whole, without = _gains(combos, rows, metric, folds)
    fits = np.flatnonzero(costs <= budget)
    front = pareto(costs, whole)
    best = max(fits[np.flatnonzero(whole[fits] >= whole[fits].max() - 1e-12)].tolist(), key=lambda place: -costs[place])
    apart = np.empty(rows.stack.shape[1:])
    for number, fold in enumerate(np.unique(folds)):
        place = fits[int(without[fits, number].argmax())]
        apart[folds == fold] = _mean(combos[place])[folds == fold]
    places = list(dict.fromkeys([*front, best]))
    tables = {str(place): _mean(combos[place]) for place in places} | {"nested": apart}
    widen = {"nested": widening(len(np.unique(folds)))}
    scores = compare(truth, metric, tables, baseline=str(best), groups=rows.groups, widen=widen)

    def line(place: int) -> PlanLine:
        sets = {option.member: option.tta for option in combos[place]}
        cost = float(costs[place])
        return PlanLine(sets, combos[place][0].precision, cost, scores[str(place)], bool(cost <= budget))

    return tuple(map(line, front)), line(best), scores["nested"]


def _gains(combos: Sequence[tuple[Option, ...]], rows: MemberRows, metric: Metric, folds: NDArray[np.int64]) -> tuple[F64, F64]:
    """The gain of every combination: on all rows [K], and on the rows of all folds but each [K, folds]."""
    truth, (numbers, place) = rows.truth.decided, np.unique(folds, return_inverse=True)
    whole, without = np.empty(len(combos)), np.empty((len(combos), len(numbers)))
    sizes = np.bincount(place)
    for number, combo in enumerate(combos):
        table = _mean(combo)
        losses = row_scores(truth, metric, [table])
        if losses is not None:
            sums = np.bincount(place, losses[0], len(numbers))
            whole[number] = metric.gain(1.0) * sums.sum() / len(truth)
            without[number] = metric.gain(1.0) * (sums.sum() - sums) / (len(truth) - sizes)
            continue
        whole[number] = metric.gain(score_of(truth, metric, table))
        for k in range(len(numbers)):
            without[number, k] = metric.gain(score_of(truth[place != k], metric, table[place != k]))
    return whole, without


def _mean(combo: Sequence[Option]) -> F64:
    return np.asarray(np.mean([option.table for option in combo], axis=0))


def _gain(combo: Sequence[Option], rows: MemberRows, metric: Metric) -> float:
    return metric.gain(score_of(rows.truth.decided, metric, _mean(combo)))


def _each(own: Sequence[Export], known: Mapping[str, Timing], engine: str, precision: str) -> float | None:
    """Seconds that a member's models take for one image and view; those never timed take as long as its others."""
    noted = [known.get(timings.key(export.digest, engine, precision)) for export in own]
    timed = [timing.each for timing in noted if timing]
    return float(np.mean(timed)) * len(own) if timed else None


def _around(competition: Competition, device: str) -> Timing | None:
    """What an image costs besides its passes on this device."""
    known, engine = timings.read(competition.path("store")), engine_tag(device)
    noted = [known.get(timings.key(timings.AROUND, engine, precision)) for precision in PRECISIONS]
    timed = [timing for timing in noted if timing]
    return Timing(sum(timing.passes for timing in timed), sum(timing.seconds for timing in timed)) if timed else None


def _held_out(competition: Competition, own: Sequence[Export], name: str, device: str, precision: str) -> Predictions | None:
    """A member's held-out predictions with a set of views: from the store if all are there, else from oof/; or None."""
    target = competition.targets[0]
    member = own[0].card.member
    try:
        split = make_split.load(competition)
        stored = stored_only(Execution(device=device, precision=precision))
        return out_of_fold(competition, own, split, name, stored)[target.name]
    except ToolkitError:
        path = competition.path("oof", f"{member}.parquet")
        if name != "none" or precision != AS_TRAINED or not path.is_file():
            return None
        return oof.probabilities(competition, path, target)
