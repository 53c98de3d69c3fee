"""Labels only: images leave when no model that is still to run can change what the vote says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.core import voting
from toolkit.core.voting import Vote
from toolkit.errors import DataError
from toolkit.images.views import parse
from toolkit.inference.exports import output_of
from toolkit.inference.predict import BLOCK, Everything, Run
from toolkit.inference.stop_bounds import STOPPING, Race, ballots
from toolkit.inference.store.file_index import Digests
from toolkit.inference.store.retention import Tables, merge
from toolkit.runtime.graphs import onnx_file, shared_trunks
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Target
from toolkit.workspace.image_rows import Items, Rows

WINDOW = 512  # images that race together: of fewer, the last batches of each model are too empty (a chunk of 64 loses a tenth)
WINDOW_BYTES = 1 << 28  # of pixels, or of probabilities, that a window may hold


@dataclass(frozen=True)
class _Ballot:
    """One vote to be cast: a model's, or where views are averaged anyway, one of its views'."""

    export: Export
    views: tuple[str, ...]
    weight: float


@dataclass(eq=False)
class _Window:
    """Rows that race together. Their images lie grouped by row: those of row i from `starts[i]` on."""

    rows: Rows  # places in `Deciding.ids`
    images: Rows  # items
    digests: Digests
    starts: Rows
    races: list[Race]
    counted: NDArray[np.bool_]  # [rows, ballots]
    values: dict[tuple[int, int], F64]  # probabilities per (ballot, target), NaN where not counted

    @property
    def open(self) -> NDArray[np.bool_]:
        """Rows whose outcome is not certain yet for every target."""
        return np.asarray(~np.logical_and.reduce([race.settled for race in self.races]))

    def members(self, rows: NDArray[np.bool_]) -> Rows:
        """Places of the images of some rows."""
        return np.flatnonzero(np.repeat(rows, np.diff([*self.starts.tolist(), len(self.images)])))


@dataclass(eq=False)
class Deciding:
    """A plan that runs the heaviest models first, and each only on the images whose label it could still change.

    The labels are those of the full vote, to the last tie: a row is left only when the leader is ahead by more than all that is
    left (see `stopping.Race`), and rows that never settle are put through the vote itself. What is stored counts first, for
    nothing. Where a shared backbone makes the other folds free, or nothing is missing, `off` says so and nothing is left out.

    Raises:
        DataError: a vote that has no such bound.
    """

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]
    share: Sequence[float]
    targets: Sequence[Target]
    items: Items
    ids: Sequence[str]
    how: str = "soft"
    per_id: str = ""
    off: str = ""
    used: int = 0  # image × model × view passes that counted, computed now or stored

    def __post_init__(self) -> None:
        if self.how not in STOPPING:
            raise DataError(
                f"--labels-only stops a vote when nothing can change it any more, and --vote {self.how} has no such bound",
                hint=f"Use --vote {' or '.join(STOPPING)}, or leave --labels-only out.",
            )
        place = dict(zip(self.ids, range(len(self.ids)), strict=True))
        self._row = np.array([place[name] for name in self.items.ids], dtype=np.int64)
        single = len(set(self._row.tolist())) == len(self._row)
        self._models = [(e, w / sum(self.share)) for e, w in zip(self.exports, self.share, strict=True) if w > 0]
        self._ballots = sorted(
            (ballot for e, w in self._models for ballot in self._cast(e, w, by_view=single and self.how == "soft")),
            key=lambda ballot: -ballot.weight,
        )
        self._labels = [
            np.zeros((len(self.ids), len(t.classes)), dtype=bool) if t.multilabel else np.zeros(len(self.ids), dtype=np.int64)
            for t in self.targets
        ]
        self._ties = [np.zeros(len(self.ids), dtype=bool) for _ in self.targets]
        self._done = np.zeros(len(self.ids), dtype=bool)
        self._everything = Everything(self.exports, self.views)
        self._waiting: dict[bytes, _Window] = {}

    @property
    def images(self) -> int:
        """Images of rows that have a label now."""
        return int(self._done[self._row].sum())

    @property
    def possible(self) -> int:
        """Passes that the full vote takes for these."""
        return self.images * sum(len(self.views[export.digest]) for export in self.exports)

    def outcome(self, target: int) -> tuple[list[str], Vote]:
        """The ids that have a usable image, and their labels."""
        labels, ties = self._labels[target][self._done], self._ties[target][self._done]
        return [self.ids[i] for i in np.flatnonzero(self._done).tolist()], Vote(None, labels, ties, "labels")

    def blocks(self, digests: Digests, known: NDArray[np.bool_], tables: Tables) -> Sequence[Rows]:
        """Windows of whole rows, or everything that is missing where stopping brings nothing."""
        missing = self._everything.blocks(digests, known, tables)
        self.off = "" if missing else "every row was in the store"
        if missing and len(self._models) > 1 and _shared([export for export, _ in self._models]):
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

    def wanted(self, items: Rows, digests: Digests, tables: Tables) -> Rows:
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

    def settle(self, items: Rows, pixels: Rows, digests: Digests, tables: Tables, run: Run) -> None:
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
        views = tuple(self.views[export.digest])
        if not by_view:
            return [_Ballot(export, views, weight)]
        return [_Ballot(export, (view,), weight / len(views)) for view in views]

    def _size(self) -> int:
        """Images in a window, so that neither its pixels nor its probabilities take too much memory."""
        cuts = {(e.card.preprocess, parse(view)[0]) for e in self.exports for view in self.views[e.digest]}
        pixels = sum(3 * preprocess.size[0] * preprocess.size[1] for preprocess, _ in cuts)
        numbers = 8 * len(self._ballots) * sum(len(target.classes) for target in self.targets)
        return max(BLOCK, min(WINDOW, WINDOW_BYTES // max(pixels, numbers)))

    def _opened(self, items: Rows, digests: Digests, tables: Tables) -> _Window:
        """A window in which everything that is stored was counted as far as it was needed."""
        order = np.argsort(self._row[items], kind="stable")
        rows, starts = np.unique(self._row[items][order], return_index=True)
        races = [Race(len(rows), len(target.classes), multilabel=target.multilabel) for target in self.targets]
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

    def _logits(self, window: _Window, rows: NDArray[np.bool_], ballot: _Ballot, view: str, tables: Tables, run: Run) -> Any:
        """One view's logits for the images of some rows: stored ones where there are such, the others computed."""
        places = window.members(rows)
        table = tables[ballot.export.digest, view]
        there = table.present(window.digests[places])
        if not there.any():
            return run(view, [ballot.export.digest], window.images[places])[ballot.export.digest]
        found = np.empty((len(places), ballot.export.card.width), dtype=np.float32)
        found[there] = table.gather(window.digests[places[there]])
        if not there.all():
            made = run(view, [ballot.export.digest], window.images[places[~there]])
            found[~there] = made[ballot.export.digest]
        return found

    def _count(self, window: _Window, number: int, rows: NDArray[np.bool_], logits: Sequence[Any]) -> None:
        """Put one ballot of some rows into the races."""
        ballot, places = self._ballots[number], np.flatnonzero(rows)
        images = window.members(rows)
        for t, target in enumerate(self.targets):
            output = output_of(ballot.export, target.name)
            p = merge(logits, output)[:, [output.classes.index(name) for name in target.classes]]
            if len(images) > len(places):
                counts = np.diff([*window.starts.tolist(), len(window.images)])[rows]
                p = voting.per_row(p[None], np.cumsum([0, *counts[:-1]]), self.per_id, multilabel=target.multilabel)[0]
            held = window.values.setdefault((number, t), np.full((len(window.rows), p.shape[1]), np.nan))
            held[places] = p
            window.races[t].add(places, ballots(p, self.how, multilabel=target.multilabel), ballot.weight)
        window.counted[rows, number] = True
        self.used += len(images) * len(ballot.views)

    def _close(self, window: _Window) -> None:
        """The labels of a window: the leaders of what is settled, and the vote's own word on the rest."""
        for t, (target, race) in enumerate(zip(self.targets, window.races, strict=True)):
            labels, settled = race.leaders, race.settled
            if not settled.all():
                stack = np.stack([self._whole(window, export, t, ~settled) for export, _ in self._models])
                weights = [w for w in self.share if w > 0]
                vote = voting.vote(stack, how=self.how, weights=weights, multilabel=target.multilabel)
                labels[~settled] = decided(vote, multilabel=target.multilabel)
                self._ties[t][window.rows[~settled]] = vote.ties
            self._labels[t][window.rows] = labels
        self._done[window.rows] = True

    def _whole(self, window: _Window, export: Export, target: int, rows: NDArray[np.bool_]) -> F64:
        """A model's probabilities, its views merged as everywhere."""
        parts = [window.values[n, target][rows] for n, ballot in enumerate(self._ballots) if ballot.export is export]
        if len(parts) == 1:
            return parts[0]
        merged = voting.vote(np.stack(parts), how="soft", multilabel=self.targets[target].multilabel).values
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
