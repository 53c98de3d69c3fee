"""What an ensemble's members say of rows that they did not see, with the views that its predictions were made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from toolkit.blending.combination import Combination
from toolkit.core import prediction_files
from toolkit.core.lineage import optimistic
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble import evidence
from toolkit.ensemble.combine import combine
from toolkit.ensemble.unseen import NotStoredError, stored_only, unseen
from toolkit.errors import DataError, counted, few
from toolkit.images import views as view_sets
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

Say = Callable[[str], object]  # told what is about to be computed

IDENTITY = ("id",)


@dataclass(frozen=True, eq=False)
class Making:
    """How predictions were made, as far as it decides their score.

    - `weights`: per target, of each member; `views`: of each member.
    - `combination`: the vote, the blends, whether labels alone were asked for.
    - `exports`: the models that are in them; `shares`: the weight of each by its digest.
    - `chosen`: members whose views were chosen on held-out rows, with the set that the other folds choose for each fold of the
      split: none where that is not known.
    """

    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    combination: Combination = Combination()
    exports: Sequence[Export] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @property
    def members(self) -> list[str]:
        """Those that weigh anything."""
        return list(dict.fromkeys(name for own in self.weights.values() for name, weight in own.items() if weight))

    @property
    def helpers(self) -> list[str]:
        """Members that weigh nothing in the blends, but something where these were settled without some fold."""
        blends = (self.combination.blend or {}).values()
        without = [own for blend in blends if blend.outer for own in blend.outer.blends.values()]
        weighing = {name for blend in blends for name in blend.weighing}  # those of them that are not here were left out
        return [name for name in dict.fromkeys(name for own in without for name in own.weighing) if name not in weighing]

    def held_out(self, split: Split | None, member: str) -> list[Export]:
        """A member's models that weigh something (all of one that weighs nothing) and did not see a fold of this split."""
        own = [export for export in self.exports if export.card.member == member]
        weighing = [export for export in own if self.shares.get(export.digest)] or own
        return [e for e in weighing if split is not None and e.card.fold is not None and e.card.split == split.digest]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Members' tables per target, how many rows there are in all, why scores of them are too good, and what is not known."""

    tables: Mapping[str, Mapping[str, Predictions]]
    of: int
    optimistic: tuple[str, ...]
    notes: tuple[str, ...]


def held_out_rows(
    competition: Competition,
    making: Making,
    execution: Execution = Execution(),
    *,
    rows: int | None,
    seconds: float = 0.0,
    say: Say | None = None,
) -> HeldOut:
    """The members' tables: of oof/ where one is of these models and views, else predicted by each fold's own models.

    These go through the store: all rows if it has them, else a sample of so many `rows` (None: all, 0: nothing is computed),
    which `say` is told first, with the time it takes where `seconds` says how long a pass does.

    Raises:
        DataError: a member has neither a table nor a model with rows that it did not see, or nothing may be computed.
        ModelError, DeviceError, StoreError: see `unseen`.
    """
    split = Split.if_made(competition)
    stored: dict[str, Mapping[str, Predictions]] = {}
    lacking: list[str] = []
    marks = _Marks()
    for export in making.exports:
        marks.add(export.card.member, export.card.chosen, export.card.known_lineage.unknown)
    for name in (*making.members, *making.helpers):
        table = _table(competition, making, split, name, execution)
        if table is not None:
            stored[name] = _of_its_folds(table.predictions, making, split, name)
            marks.add(name, str(table.meta.get("selected", "last")), table.meta.get("unknown", ()))
        elif name in making.members or making.held_out(split, name):
            lacking.append(name)
    notes = list(marks.notes())
    if made_of_all := [export.title for export in making.exports if export.card.fold is None]:
        notes.append(f"the folds of its member stand for {few(made_of_all)}, which no row is held out of")
    request = _Request(competition, making, split, lacking, execution, rows, seconds, say)
    tables = stored | (_computed(request) if lacking else {})
    by_target = {t.name: {name: own[t.name] for name, own in tables.items()} for t in competition.targets}
    counts = [len(next(iter(own.values()))) for own in stored.values()] + ([request.count] if lacking else [])
    return HeldOut(by_target, min(counts), tuple(marks.optimistic()), tuple(notes))


class _Marks:
    """What keeps scores from being out of sample, or from being known to be: each reason once, with those that it is of."""

    def __init__(self) -> None:
        self.why: dict[str, dict[str, None]] = {}
        self.unknown: dict[str, None] = {}

    def add(self, member: str, selected: str, unknown: Sequence[str]) -> None:
        """How a member's models were chosen, and what they began from that does not say what it has seen."""
        if why := optimistic(selected):
            self.why.setdefault(why, {})[member] = None
        self.unknown |= dict.fromkeys(unknown)

    def optimistic(self) -> Iterator[str]:
        """Why it is too good."""
        yield from (f"{few(names)}: {why}" for why, names in self.why.items())

    def notes(self) -> Iterator[str]:
        """Of whom it is not known."""
        if self.unknown:
            yield f"what {few(self.unknown)} has seen is not known: held-out rows among it would make the score optimistic"


# --- from oof/ ------------------------------------------------------------------------------------------------------------


def _table(
    competition: Competition, making: Making, split: Split | None, member: str, execution: Execution
) -> prediction_files.PredictionTable | None:
    """A member's table of oof/; None where there is none of these models, views and precision."""
    path = competition.path("oof", f"{member}.parquet")
    if execution.computes_in != "fp32" or making.chosen.get(member) or not path.is_file():
        return None
    table = prediction_files.read_table(path)
    kinds = {own.kind for own in table.predictions.values()}
    named = {target.name for target in competition.targets}
    if kinds != {"probabilities"} or not named <= set(table.predictions):
        return None
    if set(_views(table.meta, member)) != set(making.views.get(member, IDENTITY)):
        return None
    models = making.held_out(split, member)
    if split is not None and models and _of_other_models(competition, split, table.predictions, models):
        return None
    return table


def _views(meta: Mapping[str, Any], member: str) -> tuple[str, ...]:
    """The views that a table was made with; nothing where it names some that this version does not know."""
    named = str(meta.get("view_set") or meta.get("tta") or "none")
    try:
        return view_sets.views(view_sets.per_member(named, [member])[member])
    except DataError:
        return ()


def _of_other_models(
    competition: Competition, split: Split, predictions: Mapping[str, Predictions], models: Sequence[Export]
) -> bool:
    """Whether these fold models' cards say other scores than a table has: it is of other checkpoints.

    Several models of a fold are in a table as their mean, which no card states.
    """
    if len({export.card.fold for export in models}) < len(models):
        return False
    truth = competition.truth()
    for export in models:
        metric = METRICS.get(export.card.metric or competition.metric)
        if metric is None or export.card.score is None or export.card.fold is None:
            continue
        ids = split.held_out(export.card.fold)
        if evidence.other_score(predictions, truth, metric, ids, export.card.score) is not None:
            return True
    return False


def _of_its_folds(
    predictions: Mapping[str, Predictions], making: Making, split: Split | None, member: str
) -> Mapping[str, Predictions]:
    """The rows of the folds that take part."""
    folds = {export.card.fold for export in making.held_out(split, member)}
    if split is None or not folds:
        return predictions
    ids = {name for fold in folds if fold is not None for name in split.held_out(fold)}
    kept = [name for name in next(iter(predictions.values())).ids if name in ids]
    return {name: own.align(kept) for name, own in predictions.items()} if kept else predictions


# --- by the models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Request:
    """Whose rows are to be computed, how many of them, and who is told."""

    competition: Competition
    making: Making
    split: Split | None
    members: Sequence[str]
    execution: Execution
    rows: int | None
    seconds: float
    say: Say | None

    @property
    def exports(self) -> list[Export]:
        """Their models that have held-out rows."""
        return [export for name in self.members for export in self.making.held_out(self.split, name)]

    @property
    def folds(self) -> list[int]:
        """The folds that these did not see."""
        return sorted({export.card.fold for export in self.exports if export.card.fold is not None})

    @property
    def count(self) -> int:
        """How many rows these hold out."""
        return sum(len(self.split.held_out(fold)) for fold in self.folds) if self.split else 0

    @property
    def views(self) -> dict[str, tuple[str, ...]]:
        """The views of each model by its digest: where they were chosen, the choice of the other folds."""
        wanted = {}
        for export in self.exports:
            name, fold = export.card.member, export.card.fold
            chosen = self.making.chosen.get(name, {}).get(fold) if fold is not None else None
            wanted[export.digest] = view_sets.views(chosen) if chosen else self.making.views.get(name, IDENTITY)
        return wanted


def _computed(request: _Request) -> dict[str, dict[str, Predictions]]:
    """Each fold's models on rows that they did not see: all where the store has them, else a sample."""
    if lost := [name for name in request.members if not request.making.held_out(request.split, name)]:
        raise DataError(f"{few(lost)} has neither a table in oof/ made so nor a fold of {SPLIT_FILE} that it did not see")
    if _images_known(request):
        with suppress(NotStoredError):
            return _predicted(request, stored_only(request.execution), None)
    if request.rows == 0:
        raise DataError("held-out rows with these views were not computed")
    rows = min(request.rows or request.count, request.count)
    if request.say:
        views = request.views
        passes = sum(len(views[export.digest]) for export in request.exports) * rows // len(request.folds)
        time = f", about {max(passes * request.seconds, 1):,.0f} s" if request.seconds else ""
        of = f"{rows:,} of {counted(request.count, 'held-out rows')}"
        request.say(f"Scoring out of fold with these views: {of}, {counted(passes, 'passes')}{time}")
    return _predicted(request, request.execution, request.rows)


def _images_known(request: _Request) -> bool:
    """Whether the store knows every held-out image without reading it; else it cannot have what models say of them all."""
    assert request.split is not None
    ids = {name for fold in request.folds for name in request.split.held_out(fold)}
    paths = [path for name, path in request.competition.images("train") if name in ids]
    with Store(request.competition.path("store")) as store:
        return bool(store.images.known(paths)[1].all())


def _predicted(request: _Request, execution: Execution, limit: int | None) -> dict[str, dict[str, Predictions]]:
    competition, views = request.competition, request.views
    assert request.split is not None
    parts: dict[str, dict[str, list[Predictions]]] = {}
    for group, ids, outcome in unseen(competition, request.exports, request.split, views, execution, limit=limit):
        there = {item.id for item in outcome.items} - {image.id for image in outcome.bad}
        good = [name for name in ids if name in there]
        for member in dict.fromkeys(export.card.member for export in group):
            own = [export for export in group if export.card.member == member]
            weights = [request.making.shares.get(export.digest, 0.0) for export in own]
            models = WeightedModels(own, views, weights if any(weights) else None)
            for target in competition.targets:
                table = combine(competition, target, models, outcome, good)[0]
                parts.setdefault(member, {}).setdefault(target.name, []).append(table)
    if not parts:
        raise DataError("no held-out image can be used")
    return {member: {name: concat(tables) for name, tables in own.items()} for member, own in parts.items()}
