"""Images × models × views → logits in the store, streaming, each image decoded once, nothing computed twice."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.core.activations import probabilities
from toolkit.core.cards import Output, Preprocess
from toolkit.errors import ImageError
from toolkit.images import boxes as boxing
from toolkit.images import render
from toolkit.images.boxes import Boxes
from toolkit.images.views import Cut, parse
from toolkit.inference.store import timings
from toolkit.inference.store.file_index import DIGEST, Digests
from toolkit.inference.store.prediction_store import Store, halved
from toolkit.inference.store.retention import (
    Identities,
    Keeping,
    Tables,
    announced_size,
    as_logits,
    complete,
    kept_views,
    merge,
    merged_name,
    shifted,
    table_key,
)
from toolkit.inference.store.timings import Timing
from toolkit.runtime.devices import choose_device, engine_tag
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session, open_session
from toolkit.workspace.image_rows import Item, Items, Rows

BLOCK = 64  # images that travel together: decoded, placed and run at once
FLUSH_ROWS, FLUSH_SECONDS = 1024, 30.0  # what a kill may cost at most: this many images or this long, whichever is less

Progress = Callable[[int, int], None]  # images done, images in all
Opener = Callable[..., Session]
F32 = NDArray[np.float32]
Run = Callable[[str, Sequence[str], Rows], Mapping[str, F32]]  # (view, model digests, items) → logits, which are kept


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used, and why in a sentence."""

    id: str
    path: Path
    why: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `predict` leaves: a table per (model digest, view), the content digest of each usable item, the bad ones.

    `passes` counts image × model × view runs that were made now; everything else was in the store. `finished` is false where
    time was up before every item had its rows.
    """

    items: Items
    digests: Digests
    bad: tuple[BadImage, ...]
    tables: Tables
    device: str
    pixels: str
    passes: int
    seconds: float
    finished: bool = True

    def logits(self, export: Export, view: str, digests: Digests) -> F32:
        """Stored logits, float32 (N, width)."""
        return self.tables[export.digest, view].gather(digests)

    def probabilities(self, export: Export, output: Output, views: Sequence[str], digests: Digests) -> NDArray[np.float64]:
        """One fold model's probabilities, float64 (N, C) in the order of `output.classes`: the mean over its views."""
        whole = self.tables.get((export.digest, merged_name(views)))
        if whole is None:
            return merge([self.logits(export, view, digests) for view in views], output)
        there = whole.present(digests)
        found = np.empty((len(digests), len(output.classes)))
        found[there] = probabilities(whole.gather(digests[there]), output)
        if not there.all():  # computed when every view was kept
            found[~there] = merge([self.logits(export, view, digests[~there]) for view in views], output)
        return found


class Plan(Protocol):
    """Which items are worked on together, which of them need pixels, and what is run on those."""

    def blocks(self, digests: Digests, known: NDArray[np.bool_], tables: Tables) -> Sequence[Rows]:
        """Items in the order of work; `known` says whose digest stands in `digests`. Items left out cost nothing more."""
        ...

    def wanted(self, items: Rows, digests: Digests, tables: Tables) -> Rows:
        """Those of a block's readable items that have to be decoded. Called in worker threads."""
        ...

    def settle(self, items: Rows, pixels: Rows, digests: Digests, tables: Tables, run: Run) -> None:
        """Run what is missing for a block's usable items; `pixels` are those that were decoded."""
        ...


def predict(
    exports: Sequence[Export],
    views: Mapping[str, Sequence[str]],
    items: Sequence[Item],
    store: Store,
    *,
    device: str = "auto",
    batch: int | None = None,
    precision: str = "fp32",
    implementation: str = "fast",
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    boxes: Boxes = boxing.NONE,
    plan: Plan | None = None,
    until: float = float("inf"),
    progress: Progress | None = None,
    opener: Opener = open_session,
) -> Outcome:
    """Bring the logits of every item under every view (per model digest) into the store, computing only what is missing.

    Items that cannot be read are collected, not raised; the others are finished and stay in the store, also when the run
    is interrupted or fails later. `precision` is what the opener's sessions compute in; it keeps their rows apart. At `until`
    (of time.monotonic) no further block is begun. A `plan` may leave out passes that its purpose does not need. `boxes` are
    those that cards name.

    Raises:
        CompetitionError: a card names boxes that there are not, or a table of them cannot be read.
        DeviceError, ModelError: a session cannot be opened.
        StoreError: the store cannot be written; what was flushed before stays.
    """
    started = time.monotonic()
    device = choose_device(device)
    pixels = render.implementation_tag(implementation)
    identities = Identities(exports, boxes)
    tables = {
        (export.digest, view): identities.table(
            export, store.table(table_key(export, view, pixels, device, precision, keeping.kept_as))
        )
        for export in exports
        for view in kept_views(views[export.digest], keeping)
    }
    items = Items.of(items)
    digests, known = _known(store, items, identities)
    plan = plan or Everything(exports, views)
    work = _Work(
        exports, views, items, digests, known, tables, identities, store, keeping, plan, implementation,
        lambda models: opener(models, device=device, batch=batch),
    )  # fmt: skip
    blocks = plan.blocks(digests, known, tables)
    store.require_space(announced_size(exports, views, sum(map(len, blocks)), keeping))
    done, total = len(items) - sum(map(len, blocks)), len(items)
    finished, before, began = True, done, None
    try:
        with closing(_prefetched(work.prepare, blocks, work.warm)) as ready:
            for block in ready if time.monotonic() < until else ():
                work.compute(block)
                done += len(block.items)
                if began is None:  # the first block waits for imports and sessions, which says nothing about the others
                    before, began = done, (time.monotonic(), work.busy)
                if progress:
                    progress(done, total)
                if time.monotonic() >= until:
                    break
        finished = done == total
        if progress and finished and not blocks:
            progress(done, total)
    finally:
        work.flush()
        store.images.save()
        _note(store, work, engine_tag(device), precision, done - before, began)
    for table in tables.values():
        table.refresh()
    bad = [BadImage(items[i].id, items[i].path, work.bad[i]) for i in sorted(work.bad)]
    known[list(work.bad)] = False
    good = np.flatnonzero(known)
    return Outcome(
        items=items.take(good),
        digests=digests[good],
        bad=tuple(bad),
        tables=tables,
        device=device,
        pixels=pixels,
        passes=work.passes,
        seconds=time.monotonic() - started,
        finished=finished,
    )


def _known(store: Store, items: Items, identities: Identities) -> tuple[Digests, NDArray[np.bool_]]:
    """What stands for each item whose file is as it was, and whose that is."""
    digests, known = store.images.known(items.files)
    for i in np.flatnonzero(known).tolist() if identities.names else ():
        try:
            digests[i] = identities.of(bytes(digests[i]).ljust(DIGEST.itemsize, b"\0"), items.ids[i], items.files[i])
        except ImageError:  # said when it is its turn
            known[i] = False
    return digests, known


def _note(store: Store, work: _Work, engine: str, precision: str, images: int, began: tuple[float, float] | None) -> None:
    """Keep the timings of what was computed: per model, and per image what was left of the time since `began`."""
    found = {timings.key(model, engine, precision): one for model, one in work.spent.items()}
    plain = all(parse(view)[0] == Cut() for views in work.views.values() for view in views)  # others are cut one by one
    if found and images and began and plain:
        rest = time.monotonic() - began[0] - (work.busy - began[1])
        found[timings.key(timings.AROUND, engine, precision)] = Timing(images, max(rest, 0.0))
    if found:
        timings.note(store.root, found)


@dataclass(frozen=True, eq=False)
class Everything:
    """The plan that brings every view of every model into the store."""

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]

    def blocks(self, digests: Digests, known: NDArray[np.bool_], tables: Tables) -> list[Rows]:
        """Items that some table lacks, BLOCK at a time."""
        todo = ~known
        todo[known] = self._lacking(digests[known], tables)
        rows = np.flatnonzero(todo)
        return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]

    def wanted(self, items: Rows, digests: Digests, tables: Tables) -> Rows:
        """Those that some table lacks."""
        return items[self._lacking(digests, tables)]

    def settle(self, items: Rows, pixels: Rows, digests: Digests, tables: Tables, run: Run) -> None:
        """Models of a view that lack the same rows go together, those of one input size at a time."""
        place = np.searchsorted(items, pixels)
        for preprocess in dict.fromkeys(export.card.preprocess for export in self.exports):
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            for view, rows, models in self._missing(group, digests[place], tables):
                run(view, models, pixels[rows])

    def _lacking(self, digests: Digests, tables: Tables) -> NDArray[np.bool_]:
        lacking = np.zeros(len(digests), dtype=bool)
        for export in self.exports:
            lacking |= ~complete(export, self.views[export.digest], digests, tables)
        return lacking

    def _missing(self, group: Sequence[Export], digests: Digests, tables: Tables) -> Iterator[tuple[str, Rows, list[str]]]:
        """(view, rows, models) still to run."""
        whole = {e.digest: complete(e, self.views[e.digest], digests, tables) for e in group}
        for view in dict.fromkeys(view for export in group for view in self.views[export.digest]):
            alike: dict[bytes, list[str]] = {}
            for export in group:
                if view in self.views[export.digest]:
                    lacking = ~whole[export.digest] & ~tables[export.digest, view].present(digests)
                    if lacking.any():
                        alike.setdefault(lacking.tobytes(), []).append(export.digest)
            for mask, models in alike.items():
                yield view, np.flatnonzero(np.frombuffer(mask, dtype=bool)), models


@dataclass(eq=False)
class _Block:
    """Some items, those of them that were decoded, and their pixels in that order."""

    items: Rows
    decoded: Rows
    pixels: dict[tuple[Preprocess, Cut], NDArray[np.uint8]]


@dataclass(eq=False)
class _Work:
    """The state of one `predict`: digests as they become known, sessions once they are needed, rows on their way to disk."""

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]
    items: Items
    digests: Digests
    known: NDArray[np.bool_]
    tables: Tables
    identities: Identities
    store: Store
    keeping: Keeping
    plan: Plan
    implementation: str
    open: Callable[[Mapping[str, Path]], Session]
    bad: dict[int, str] = field(default_factory=dict)
    passes: int = 0
    spent: dict[str, Timing] = field(default_factory=dict)  # per model
    _sessions: dict[Preprocess, Session] = field(default_factory=dict)
    _waiting: dict[tuple[str, str], list[tuple[Digests, F32]]] = field(default_factory=dict)
    _waiting_rows: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._export = {export.digest: export for export in self.exports}

    def warm(self) -> None:
        """Open sessions that are needed for certain while the first images are decoded."""
        for preprocess in dict.fromkeys(export.card.preprocess for export in self.exports):
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            if not any(len(self.tables[e.digest, v]) for e in group for v in kept_views(self.views[e.digest], self.keeping)):
                self._session(preprocess)

    def prepare(self, items: Rows) -> _Block:
        """Digest the items that are not known and decode those that the plan wants; runs in a worker thread."""
        data: dict[int, bytes] = {}
        for i in items[~self.known[items]].tolist():
            path = self.items[i].path
            try:
                before = path.stat() if path.exists() else None
                data[i] = render.read(path)
                digest = render.digest(data[i])
                if before is not None:
                    self.store.images.learn(path, before, digest)
                self.digests[i] = self.identities.of(digest, self.items.ids[i], path)
            except ImageError as error:
                self.bad[i] = error.message
                continue
            self.known[i] = True
        readable = items[self.known[items]]
        wanted = self.plan.wanted(readable, self.digests[readable], self.tables)
        return _Block(items, *self._render(wanted.tolist(), data))

    def compute(self, block: _Block) -> None:
        """Run what is missing for one block and queue it for the disk."""
        usable = np.array([i for i in block.items.tolist() if i not in self.bad], dtype=np.int64)
        made: dict[tuple[str, str], list[tuple[Rows, F32]]] = {}

        def run(view: str, models: Sequence[str], items: Rows) -> dict[str, F32]:
            preprocess = self._export[models[0]].card.preprocess
            session = self._session(preprocess)
            cut, turn = parse(view)
            pixels = block.pixels[preprocess, cut]
            if not np.array_equal(items, block.decoded):
                pixels = pixels[np.searchsorted(block.decoded, items)]
            started = time.monotonic()
            logits = session.run(session.place(np.ascontiguousarray(pixels)), turn, models)
            self._spent(models, len(items), time.monotonic() - started)
            self.passes += len(items) * len(models)
            found = {model: self._as_kept(model, values) for model, values in logits.items()}
            for model, values in found.items():
                made.setdefault((model, view), []).append((items, values))
            if self.keeping.what != "folds":
                self._queue(made)
            return found

        self.plan.settle(usable, block.decoded, self.digests[usable], self.tables, run)
        self._queue(self._merged(made) if made else {})
        self._waiting_rows += len(block.decoded)
        if self._waiting_rows >= FLUSH_ROWS:
            self.flush()

    @property
    def busy(self) -> float:
        """Seconds that models took."""
        return sum(one.seconds for one in self.spent.values())

    def _spent(self, models: Sequence[str], passes: int, seconds: float) -> None:
        """Note what a run took, in equal parts where several models ran at once."""
        for model in models:
            before = self.spent.get(model, Timing(0, 0.0))
            self.spent[model] = Timing(before.passes + passes, before.seconds + seconds / len(models))

    def _queue(self, made: dict[tuple[str, str], list[tuple[Rows, F32]]]) -> None:
        """Hand over rows for the disk, which are written when it is time."""
        for key, parts in made.items():
            self._waiting.setdefault(key, []).extend((self.digests[items], values) for items, values in parts)
        made.clear()
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put every finished row on disk."""
        while self._waiting:  # a table leaves the queue when its rows are on disk: an interrupt in between loses nothing
            key, parts = next(iter(self._waiting.items()))
            self.tables[key].add(np.concatenate([d for d, _ in parts]), np.concatenate([v for _, v in parts]))
            del self._waiting[key]
        self._waiting_rows, self._flushed = 0, time.monotonic()

    def _render(self, rows: list[int], data: dict[int, bytes]) -> tuple[Rows, dict[tuple[Preprocess, Cut], NDArray[np.uint8]]]:
        """Decode each row once and cut it for every distinct Preprocess and view; a row that fails joins the bad ones."""
        wanted: dict[Preprocess, dict[Cut, list[NDArray[np.uint8]]]] = {}
        for export in self.exports:
            cuts = wanted.setdefault(export.card.preprocess, {})
            cuts.update((parse(view)[0], []) for view in self.views[export.digest])
        order = {preprocess: list(cuts) for preprocess, cuts in wanted.items()}

        def cut(i: int) -> list[list[NDArray[np.uint8]]] | None:
            path, boxes = self.items[i].path, self.identities.boxes
            try:
                raw = data.pop(i, None) or render.read(path)
                own = {p.box: boxes.of(p.box, self.items.ids[i], path) for p in wanted}
                pixels = render.cut_all(raw, str(path), order, own, implementation=self.implementation)
                return [[pixels[p, cut] for cut in cuts] for p, cuts in order.items()]
            except ImageError as error:
                self.bad[i] = error.message
                return None

        with ThreadPoolExecutor(
            os.cpu_count() if len(rows) > BLOCK else 1
        ) as pool:  # of large blocks, only one is in the making
            every = list(pool.map(cut, rows))
        good = [i for i, made in zip(rows, every, strict=True) if made is not None]
        for made in filter(None, every):
            for cuts, pixels in zip(wanted.values(), made, strict=True):
                for parts, one in zip(cuts.values(), pixels, strict=True):
                    parts.append(one)
        stacked = {(p, cut): np.stack(parts) for p, cuts in wanted.items() for cut, parts in cuts.items() if parts}
        return np.array(good, dtype=np.int64), stacked

    def _session(self, preprocess: Preprocess) -> Session:
        if preprocess not in self._sessions:
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            self._sessions[preprocess] = self.open({export.digest: export.path for export in group})
        return self._sessions[preprocess]

    def _as_kept(self, model: str, values: F32) -> F32:
        """Logits as the store will give them back, so that a run that reads them and one that made them are the same."""
        if self.keeping.kept_as == "float32" or not np.isfinite(values).all():  # the store refuses what is not finite
            return values
        return halved(shifted(values, self._export[model].card.outputs)).astype(np.float32)

    def _merged(self, made: Mapping[tuple[str, str], list[tuple[Rows, F32]]]) -> dict[tuple[str, str], list[tuple[Rows, F32]]]:
        """One row per model and item instead of its views' rows; views that were there already come from the store."""
        found: dict[tuple[str, str], list[tuple[Rows, F32]]] = {}
        for model in dict.fromkeys(model for model, _ in made):
            export, views = self._export[model], self.views[model]
            if len(views) == 1:
                found[model, views[0]] = made[model, views[0]]
                continue
            rows = np.unique(np.concatenate([items for (m, _), parts in made.items() if m == model for items, _ in parts]))
            stack = []
            for view in views:
                values = np.empty((len(rows), export.card.width), dtype=np.float32)
                lacking = np.ones(len(rows), dtype=bool)
                for items, part in made.get((model, view), []):
                    place = np.searchsorted(rows, items)
                    values[place], lacking[place] = part, False
                if lacking.any():
                    values[lacking] = self.tables[model, view].gather(self.digests[rows[lacking]])
                stack.append(values)
            whole = as_logits(stack, export.card.outputs)
            found[model, merged_name(views)] = [(rows, self._as_kept(model, whole))]
        return found


def _prefetched(
    prepare: Callable[[Rows], _Block], blocks: Sequence[Rows], meanwhile: Callable[[], object]
) -> Generator[_Block]:
    """Blocks in order, the next ones being decoded in threads while the caller computes (the decoders release the GIL).

    `meanwhile` is called once, while the first ones are decoded.
    """
    todo = deque(blocks)
    pending: deque[Future[_Block]] = deque()
    workers = os.cpu_count() or 1
    ahead = workers if len(blocks) and len(blocks[0]) <= BLOCK else 1  # large blocks: one ready, one in the making
    with ThreadPoolExecutor(workers) as pool:
        try:
            while todo or pending:
                while todo and len(pending) <= ahead:
                    pending.append(pool.submit(prepare, todo.popleft()))
                if len(pending) + len(todo) == len(blocks):
                    meanwhile()
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
