"""Labels only: images leave when no model that is still to run can change what the vote says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, Bools
from toolkit.core import voting
from toolkit.core.voting import Vote
from toolkit.errors import DataError
from toolkit.images.views import parse
from toolkit.inference import passes
from toolkit.inference.exports import WeightedModels, output_of
from toolkit.inference.passes import Everything, RunModels
from toolkit.inference.store.file_index import Digests
from toolkit.inference.store.retention import StoreTables, merge
from toolkit.runtime.graphs import onnx_file, shared_trunks
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Target
from toolkit.workspace.image_rows import ItemNumbers, Items

WINDOW = 512  # images that race together: of fewer, the last batches of each model are too empty (a chunk of 64 loses a tenth)
WINDOW_BYTES = 1 << 28  # of pixels, or of probabilities, that a window may hold


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
    def settled(self) -> Bools:
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


@dataclass(frozen=True, eq=False)
class LabelVote:
    """The question that labels answer: which label the vote gives each of `ids` for each target.

    `vote` is one of STOPPING; `per_id` says how the probabilities of a row's images are merged ("mean", "max").
    """

    targets: Sequence[Target]
    ids: Sequence[str]
    vote: str = "soft"
    per_id: str = ""


@dataclass(frozen=True)
class _Ballot:
    """One vote to be cast: a model's, or where views are averaged anyway, one of its views'."""

    export: Export
    views: tuple[str, ...]
    weight: float


@dataclass(eq=False)
class _Window:
    """ItemNumbers that race together. Their images lie grouped by row: those of row i from `starts[i]` on."""

    rows: ItemNumbers  # places in `LabelVote.ids`
    images: ItemNumbers  # items
    digests: Digests
    starts: ItemNumbers
    races: list[Race]
    counted: Bools  # [rows, ballots]
    values: dict[tuple[int, int], F64]  # probabilities per (ballot, target), NaN where not counted

    @property
    def open(self) -> Bools:
        """ItemNumbers whose outcome is not certain yet for every target."""
        return np.asarray(~np.logical_and.reduce([race.settled for race in self.races]))

    def members(self, rows: Bools) -> ItemNumbers:
        """Places of the images of some rows."""
        return np.flatnonzero(np.repeat(rows, np.diff([*self.starts.tolist(), len(self.images)])))


class EarlyStopping:
    """A plan that runs the heaviest models first, and each only on the images whose label it could still change.

    The labels are those of the full vote, to the last tie: a row is left only when the leader is ahead by more than all that is
    left (see `Race`), and rows that never settle are put through the vote itself. What is stored counts first, for nothing.
    Where a shared backbone makes the other folds free, or nothing is missing, `off` says so and nothing is left out.

    Raises:
        DataError: a vote that has no such bound.
    """

    def __init__(self, models: WeightedModels, items: Items, question: LabelVote) -> None:
        if question.vote not in STOPPING:
            raise DataError(
                f"labels alone come from a vote that stops when nothing can change it any more, and {question.vote!r} has no "
                "such bound",
                hint=f"Vote {' or '.join(STOPPING)}, or ask for more than labels.",
                code="labels-only-vote",
            )
        self.models, self.items, self.question = models, items, question
        self.off = ""
        self.used = 0  # image × model × view passes that counted, computed now or stored
        ids, targets = question.ids, question.targets
        place = dict(zip(ids, range(len(ids)), strict=True))
        self._row = np.array([place[name] for name in items.ids], dtype=np.int64)
        weights = models.weights or [1.0] * len(models.exports)
        self._voters = [(e, w / sum(weights)) for e, w in zip(models.exports, weights, strict=True) if w > 0]
        self._weights = [w for w in weights if w > 0]
        by_view = len(set(self._row.tolist())) == len(self._row) and question.vote == "soft"
        cast = [ballot for voter in self._voters for ballot in self._cast(*voter, by_view=by_view)]
        self._ballots = sorted(cast, key=lambda ballot: -ballot.weight)
        self._labels = [
            np.zeros((len(ids), len(t.classes)), dtype=bool) if t.multilabel else np.zeros(len(ids), dtype=np.int64)
            for t in targets
        ]
        self._ties = [np.zeros(len(ids), dtype=bool) for _ in targets]
        self._done = np.zeros(len(ids), dtype=bool)
        self._everything = Everything(models.exports, models.views)
        self._waiting: dict[bytes, _Window] = {}

    @property
    def images(self) -> int:
        """Images of rows that have a label now."""
        return int(self._done[self._row].sum())

    @property
    def possible(self) -> int:
        """Passes that the full vote takes for these."""
        return self.images * sum(len(self.models.views[export.digest]) for export in self.models.exports)

    @property
    def record(self) -> dict[str, Any]:
        """How many passes the labels took, of how many, and how many per image; or why nothing was left out."""
        if self.off:
            return {"off": self.off}
        images, possible = max(self.images, 1), self.possible
        return {"passes": self.used, "possible": possible, "mean": self.used / images, "of": possible / images}

    def labels(self, target: int) -> tuple[list[str], Vote]:
        """The ids that have a usable image, and their labels for a target (by its number)."""
        labels, ties = self._labels[target][self._done], self._ties[target][self._done]
        return [self.question.ids[i] for i in np.flatnonzero(self._done).tolist()], Vote(None, labels, ties, "labels")

    def blocks(self, digests: Digests, known: Bools, tables: StoreTables) -> Sequence[ItemNumbers]:
        """Windows of whole rows, or everything that is missing where stopping brings nothing."""
        missing = self._everything.blocks(digests, known, tables)
        self.off = "" if missing else "every row was in the store"
        if missing and len(self._voters) > 1 and _shared([export for export, _ in self._voters]):
            self.off = "folds that share a backbone cost next to nothing, so all of them ran"
        if self.off:
            return missing
        order = np.argsort(self._row, kind="stable")
        starts = np.flatnonzero(np.diff(self._row[order], prepend=-1))
        size, cuts = self._size(), [0]
        for start in starts.tolist():
            if start - cuts[-1] >= size:
                cuts.append(start)
        return [np.sort(order[a:b]) for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True)]

    def wanted(self, items: ItemNumbers, digests: Digests, tables: StoreTables) -> ItemNumbers:
        """The images of rows that what is stored does not settle."""
        if self.off:
            return self._everything.wanted(items, digests, tables)
        window = self._opened(items, digests, tables)
        self._waiting[items.tobytes()] = window
        lacking = np.zeros(len(items), dtype=bool)
        for ballot in self._ballots:
            for view in ballot.views:
                lacking |= ~tables[ballot.export.digest, view].present(window.digests)
        still = window.members(window.open)
        return np.sort(window.images[still[lacking[still]]])

    def settle(self, items: ItemNumbers, pixels: ItemNumbers, digests: Digests, tables: StoreTables, run: RunModels) -> None:
        """Ballot after ballot over the rows that are open, until none is or all are counted."""
        if self.off:
            self._everything.settle(items, pixels, digests, tables, run)
            return
        window = self._waiting.pop(items.tobytes(), None) or self._opened(items, digests, tables)
        for number, ballot in enumerate(self._ballots):
            rows = window.open & ~window.counted[:, number]
            if rows.any():
                self._count(window, number, rows, [self._logits(window, rows, ballot, v, tables, run) for v in ballot.views])
        self._close(window)

    def _cast(self, export: Export, weight: float, *, by_view: bool) -> list[_Ballot]:
        views = tuple(self.models.views[export.digest])
        if not by_view:
            return [_Ballot(export, views, weight)]
        return [_Ballot(export, (view,), weight / len(views)) for view in views]

    def _size(self) -> int:
        """Images in a window, so that neither its pixels nor its probabilities take too much memory."""
        cuts = {(e.card.preprocess, parse(view)[0]) for e in self.models.exports for view in self.models.views[e.digest]}
        pixels = sum(3 * preprocess.size[0] * preprocess.size[1] for preprocess, _ in cuts)
        numbers = 8 * len(self._ballots) * sum(len(target.classes) for target in self.question.targets)
        return max(passes.BLOCK, min(WINDOW, WINDOW_BYTES // max(pixels, numbers)))

    def _opened(self, items: ItemNumbers, digests: Digests, tables: StoreTables) -> _Window:
        """A window in which everything that is stored was counted as far as it was needed."""
        order = np.argsort(self._row[items], kind="stable")
        rows, starts = np.unique(self._row[items][order], return_index=True)
        races = [Race(len(rows), len(target.classes), multilabel=target.multilabel) for target in self.question.targets]
        counted = np.zeros((len(rows), len(self._ballots)), dtype=bool)
        window = _Window(rows, items[order], digests[order], starts, races, counted, {})
        for number, ballot in enumerate(self._ballots):
            there = np.ones(len(items), dtype=bool)
            for view in ballot.views:
                there &= tables[ballot.export.digest, view].present(window.digests)
            whole = np.logical_and.reduceat(there, starts) if len(rows) else np.zeros(0, dtype=bool)
            if (ready := window.open & whole).any():
                asked = window.digests[window.members(ready)]
                self._count(window, number, ready, [tables[ballot.export.digest, v].gather(asked) for v in ballot.views])
        return window

    def _logits(self, window: _Window, rows: Bools, ballot: _Ballot, view: str, tables: StoreTables, run: RunModels) -> Any:
        """One view's logits for the images of some rows: stored ones where there are such, the others computed."""
        places = window.members(rows)
        table = tables[ballot.export.digest, view]
        there = table.present(window.digests[places])
        if not there.any():
            return run(view, [ballot.export.digest], window.images[places])[ballot.export.digest]
        logits = np.empty((len(places), ballot.export.card.width), dtype=np.float32)
        logits[there] = table.gather(window.digests[places[there]])
        if not there.all():
            logits[~there] = run(view, [ballot.export.digest], window.images[places[~there]])[ballot.export.digest]
        return logits

    def _count(self, window: _Window, number: int, rows: Bools, logits: Sequence[Any]) -> None:
        """Put one ballot of some rows into the races."""
        ballot, places = self._ballots[number], np.flatnonzero(rows)
        images = window.members(rows)
        for t, target in enumerate(self.question.targets):
            output = output_of(ballot.export, target.name)
            p = merge(logits, output)[:, [output.classes.index(name) for name in target.classes]]
            if len(images) > len(places):
                counts = np.diff([*window.starts.tolist(), len(window.images)])[rows]
                p = voting.per_row(p[None], np.cumsum([0, *counts[:-1]]), self.question.per_id, multilabel=target.multilabel)[0]
            held = window.values.setdefault((number, t), np.full((len(window.rows), p.shape[1]), np.nan))
            held[places] = p
            window.races[t].add(places, ballots(p, self.question.vote, multilabel=target.multilabel), ballot.weight)
        window.counted[rows, number] = True
        self.used += len(images) * len(ballot.views)

    def _close(self, window: _Window) -> None:
        """The labels of a window: the leaders of what is settled, and the vote's own word on the rest."""
        for t, (target, race) in enumerate(zip(self.question.targets, window.races, strict=True)):
            labels, settled = race.leaders, race.settled
            if not settled.all():
                stack = np.stack([self._whole(window, export, t, ~settled) for export, _ in self._voters])
                vote = voting.vote(stack, how=self.question.vote, weights=self._weights, multilabel=target.multilabel)
                labels[~settled] = decided(vote, multilabel=target.multilabel)
                self._ties[t][window.rows[~settled]] = vote.ties
            self._labels[t][window.rows] = labels
        self._done[window.rows] = True

    def _whole(self, window: _Window, export: Export, target: int, rows: Bools) -> F64:
        """A model's probabilities, its views merged as everywhere."""
        parts = [window.values[n, target][rows] for n, ballot in enumerate(self._ballots) if ballot.export is export]
        if len(parts) == 1:
            return parts[0]
        merged = voting.vote(np.stack(parts), how="soft", multilabel=self.question.targets[target].multilabel).values
        assert merged is not None
        return merged


def decided(vote: Vote, *, multilabel: bool) -> NDArray[Any]:
    """The labels that a vote comes to: those carried, the most probable class, or every class from 0.5 on."""
    if vote.labels is not None:
        return vote.labels
    assert vote.values is not None
    return vote.values >= 0.5 if multilabel else vote.values.argmax(axis=1)


def _shared(exports: Sequence[Export]) -> bool:
    """Whether some of the models have a backbone in common, which then runs once for all of them."""
    return bool(shared_trunks.find_trunks({export.digest: onnx_file.load(export.path) for export in exports})[0])
