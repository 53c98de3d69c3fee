"""Images × models × views → logits in the store, streaming, each image decoded once, nothing computed twice."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F32, U8
from toolkit.base.runners.threads import spread
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import render
from toolkit.images.boxes import NO_BOXES, Boxes
from toolkit.images.decode import lacks_end
from toolkit.images.treatments import CutShortError
from toolkit.images.views import Cut, parse
from toolkit.inference import passes
from toolkit.inference.execution import Execution
from toolkit.inference.exports import Views, check_width
from toolkit.inference.outcome import BadImage, PredictOutcome
from toolkit.inference.passes import Everything, PassPlan
from toolkit.inference.store import timings
from toolkit.inference.store.file_index import DIGEST, Digests
from toolkit.inference.store.prediction_store import Store, halved
from toolkit.inference.store.retention import (
    Identities,
    StoreTables,
    announced_size,
    as_logits,
    kept_views,
    merged_name,
    shifted,
    table_key,
)
from toolkit.inference.store.timings import Timing
from toolkit.runtime.devices import choose_device, engine_tag
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session
from toolkit.workspace.image_rows import Item, ItemNumbers, Items

FLUSH_ROWS, FLUSH_SECONDS = 1024, 30.0  # what a kill may cost at most: this many images or this long, whichever is less

_Rows = dict[tuple[str, str], list[tuple[ItemNumbers, F32]]]  # logits of items by (model digest, view)


def predict(
    exports: Sequence[Export],
    views: Views,
    items: Sequence[Item],
    store: Store,
    execution: Execution = Execution(),
    *,
    boxes: Boxes = NO_BOXES,
    plan: PassPlan | None = None,
    until: float = float("inf"),
) -> PredictOutcome:
    """Bring the logits of every item under every view (per model digest) into the store, computing only what is missing.

    Items that cannot be read are collected, not raised; the others are finished and stay in the store, also when the run
    is interrupted or fails later. At `until` (seconds of time.monotonic) no further block is begun. A `plan` may leave out
    passes that its purpose does not need. `boxes` are those that cards name.

    Raises:
        CompetitionError: a card names boxes that there are not, or a table of them cannot be read.
        DeviceError, ModelError: a session cannot be opened.
        StoreError: the store cannot be written; what was flushed before stays.
    """
    started = time.monotonic()
    work = _begin(exports, views, Items.of(items), store, execution, boxes, plan or Everything(exports, views))
    finished = work.run(until)
    bad = [BadImage(work.items[i].id, work.items[i].path, work.bad[i]) for i in sorted(work.bad)]
    partial = [BadImage(work.items[i].id, work.items[i].path, work.partial[i]) for i in sorted(work.partial)]
    work.known[list(work.bad)] = False
    usable = np.flatnonzero(work.known)
    return PredictOutcome(
        items=work.items.take(usable),
        digests=work.digests[usable],
        bad=tuple(bad),
        tables=work.tables,
        device=work.device,
        pixels=render.implementation_tag(execution.implementation),
        passes=work.passes,
        seconds=time.monotonic() - started,
        finished=finished,
        trusted=work.trusted,
        partial=tuple(partial),
        endless=len(work.endless - work.bad.keys() - work.partial.keys()),
    )


def _begin(
    exports: Sequence[Export],
    views: Views,
    items: Items,
    store: Store,
    execution: Execution,
    boxes: Boxes,
    plan: PassPlan,
) -> _Work:
    """The work before its first pass: tables opened, the digests of files that are as they were looked up."""
    device = choose_device(execution.device)
    pixels = render.implementation_tag(execution.implementation)
    identities = Identities(exports, boxes)
    tables = {
        (export.digest, view): identities.table(
            export, store.table(table_key(export, view, pixels, device, execution.precision, execution.keeping.kept_as))
        )
        for export in exports
        for view in kept_views(views[export.digest], execution.keeping)
    }
    digests, known = _known(store, items, identities)
    known &= not execution.verify_images
    trusted = int(known.sum())
    return _Work(exports, views, items, store, execution, device, plan, tables, identities, digests, known, trusted)


def _known(store: Store, items: Items, identities: Identities) -> tuple[Digests, NDArray[np.bool_]]:
    """What stands for each item whose file is as it was, and whose that is."""
    digests, known = store.images.known(items.files)
    for i in np.flatnonzero(known).tolist() if identities.names else ():
        try:
            digests[i] = identities.of(bytes(digests[i]).ljust(DIGEST.itemsize, b"\0"), items.ids[i], items.files[i])
        except ImageError:  # said when it is its turn
            known[i] = False
    return digests, known


@dataclass(eq=False)
class _Block:
    """Some items, those of them that were decoded, and their pixels in that order."""

    items: ItemNumbers
    decoded: ItemNumbers
    pixels: dict[tuple[Preprocess, Cut], NDArray[np.uint8]]


@dataclass(eq=False)
class _Work:
    """The state of one `predict`: digests as they become known, sessions once they are needed, rows on their way to disk."""

    exports: Sequence[Export]
    views: Views
    items: Items
    store: Store
    execution: Execution
    device: str
    plan: PassPlan
    tables: StoreTables
    identities: Identities
    digests: Digests
    known: NDArray[np.bool_]
    trusted: int
    bad: dict[int, str] = field(default_factory=dict)
    partial: dict[int, str] = field(default_factory=dict)
    endless: set[int] = field(default_factory=set)
    passes: int = 0
    spent: dict[str, Timing] = field(default_factory=dict)  # per model
    _sessions: dict[Preprocess, Session] = field(default_factory=dict)
    _waiting: dict[tuple[str, str], list[tuple[Digests, F32]]] = field(default_factory=dict)
    _waiting_rows: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._export = {export.digest: export for export in self.exports}

    def run(self, until: float) -> bool:
        """Make what the plan asks for, block after block; whether that was all of it when time was up."""
        blocks = self.plan.blocks(self.digests, self.known, self.tables)
        total, left = len(self.items), sum(map(len, blocks))
        self.store.require_space(announced_size(self.exports, self.views, left, self.execution.keeping))
        clock = _Clock(self, total - left)
        report = self.execution.progress
        try:
            with closing(_prefetched(self.prepare, blocks, self.warm)) as ready:
                for block in ready if time.monotonic() < until else ():
                    self.compute(block)
                    clock.block_done(len(block.items))
                    if report:
                        report(clock.done, total)
                    if time.monotonic() >= until:
                        break
            if report and clock.done == total and not blocks:
                report(total, total)
        finally:
            self.flush()
            self.store.images.save()
            clock.note()
        for table in self.tables.values():
            table.refresh()
        return clock.done == total

    def warm(self) -> None:
        """Open sessions that are needed for certain while the first images are decoded."""
        for preprocess in dict.fromkeys(export.card.preprocess for export in self.exports):
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            kept = ((e.digest, view) for e in group for view in kept_views(self.views[e.digest], self.execution.keeping))
            if not any(len(self.tables[key]) for key in kept):
                self._session(preprocess)

    def prepare(self, items: ItemNumbers) -> _Block:
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
            if lacks_end(data[i]):
                self.endless.add(i)
        readable = items[self.known[items]]
        wanted = self.plan.wanted(readable, self.digests[readable], self.tables)
        return _Block(items, *self._render(wanted.tolist(), data))

    def compute(self, block: _Block) -> None:
        """Run what is missing for one block and queue it for the disk."""
        usable = np.array([i for i in block.items.tolist() if i not in self.bad], dtype=np.int64)
        computed: _Rows = {}
        run = partial(self._run_models, block, computed)
        self.plan.settle(usable, block.decoded, self.digests[usable], self.tables, run)
        self._queue(self._merged(computed) if computed else {})
        self._waiting_rows += len(block.decoded)
        if self._waiting_rows >= FLUSH_ROWS:
            self.flush()

    def _run_models(
        self, block: _Block, computed: _Rows, view: str, models: Sequence[str], items: ItemNumbers
    ) -> dict[str, F32]:
        """Logits, float32 (n, width), of some of a block's items by model digest; they are added to what was `computed`."""
        session = self._session(self._export[models[0]].card.preprocess)
        cut, turn = parse(view)
        pixels = block.pixels[self._export[models[0]].card.preprocess, cut]
        if not np.array_equal(items, block.decoded):
            pixels = pixels[np.searchsorted(block.decoded, items)]
        started = time.monotonic()
        logits = session.run(session.place(np.ascontiguousarray(pixels)), turn, models)
        for model, values in logits.items():
            check_width(self._export[model], values, len(items))
        self._spent(models, len(items), time.monotonic() - started)
        self.passes += len(items) * len(models)
        kept = {model: self._as_kept(model, values) for model, values in logits.items()}
        for model, values in kept.items():
            computed.setdefault((model, view), []).append((items, values))
        if self.execution.keeping.what != "folds":
            self._queue(computed)
        return kept

    @property
    def busy(self) -> float:
        """Seconds that models took."""
        return sum(timing.seconds for timing in self.spent.values())

    def _spent(self, models: Sequence[str], count: int, seconds: float) -> None:
        """Note what a run took, in equal parts where several models ran at once."""
        for model in models:
            before = self.spent.get(model, Timing(0, 0.0))
            self.spent[model] = Timing(before.passes + count, before.seconds + seconds / len(models))

    def _queue(self, rows: _Rows) -> None:
        """Hand over rows for the disk, which are written when it is time."""
        for key, parts in rows.items():
            self._waiting.setdefault(key, []).extend((self.digests[items], values) for items, values in parts)
        rows.clear()
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put every finished row on disk."""
        while self._waiting:  # a table leaves the queue when its rows are on disk: an interrupt in between loses nothing
            key, parts = next(iter(self._waiting.items()))
            self.tables[key].add(np.concatenate([d for d, _ in parts]), np.concatenate([v for _, v in parts]))
            del self._waiting[key]
        self._waiting_rows, self._flushed = 0, time.monotonic()

    def _render(self, rows: list[int], data: dict[int, bytes]) -> tuple[ItemNumbers, dict[tuple[Preprocess, Cut], U8]]:
        """Decode each row once and cut it for every distinct Preprocess and view; a row that fails joins the bad ones."""
        wanted: dict[Preprocess, dict[Cut, list[U8]]] = {}
        for export in self.exports:
            cuts = wanted.setdefault(export.card.preprocess, {})
            cuts.update((parse(view)[0], []) for view in self.views[export.digest])
        names = {preprocess: list(cuts) for preprocess, cuts in wanted.items()}

        def pixels_of(i: int) -> list[list[U8]] | None:
            try:
                return self._cut(i, data.pop(i, None), names)
            except CutShortError as error:
                return self._what_is_there(i, names, error)
            except ImageError as error:
                self.bad[i] = error.message
                return None

        workers = (os.cpu_count() or 1) if len(rows) > passes.BLOCK else 1  # of large blocks, only one is in the making
        rendered = list(spread(pixels_of, rows, workers))
        good = [i for i, pixels in zip(rows, rendered, strict=True) if pixels is not None]
        for pixels in filter(None, rendered):
            for cuts, images in zip(wanted.values(), pixels, strict=True):
                for parts, image in zip(cuts.values(), images, strict=True):
                    parts.append(image)
        stacked = {(p, cut): np.stack(parts) for p, cuts in wanted.items() for cut, parts in cuts.items() if parts}
        return np.array(good, dtype=np.int64), stacked

    def _what_is_there(self, i: int, wanted: Mapping[Preprocess, list[Cut]], cut_short: CutShortError) -> list[list[U8]] | None:
        """Of a picture cut short, where that is asked for; its rows are kept apart from those of the whole."""
        try:
            if self.execution.on_bad_image != "decode":
                raise cut_short
            pixels = self._cut(i, None, wanted, partial=True)
        except ImageError as error:
            self.bad[i] = error.message
            return None
        self.partial[i] = cut_short.message
        self.digests[i] = self.identities.partial(bytes(self.digests[i]).ljust(DIGEST.itemsize, b"\0"))
        return pixels

    def _cut(
        self, i: int, data: bytes | None, wanted: Mapping[Preprocess, list[Cut]], *, partial: bool = False
    ) -> list[list[U8]]:
        """One item decoded and cut, per Preprocess and in its order of cuts."""
        path, boxes = self.items[i].path, self.identities.boxes
        own = {preprocess.box: boxes.of(preprocess.box, self.items.ids[i], path) for preprocess in wanted}
        implementation = self.execution.implementation
        pixels = render.cut_all(
            data or render.read(path), str(path), wanted, own, implementation=implementation, partial=partial
        )
        return [[pixels[preprocess, cut] for cut in cuts] for preprocess, cuts in wanted.items()]

    def _session(self, preprocess: Preprocess) -> Session:
        if preprocess not in self._sessions:
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            models = {export.digest: export.path for export in group}
            self._sessions[preprocess] = self.execution.open(models, self.device)
        return self._sessions[preprocess]

    def _as_kept(self, model: str, values: F32) -> F32:
        """Logits as the store will give them back, so that a run that reads them and one that made them are the same."""
        if self.execution.keeping.kept_as == "float32" or not np.isfinite(values).all():  # the store refuses the latter
            return values
        return halved(shifted(values, self._export[model].card.outputs)).astype(np.float32)

    def _merged(self, computed: _Rows) -> _Rows:
        """One row per model and item instead of its views' rows; views that were there already come from the store."""
        merged: _Rows = {}
        for model in dict.fromkeys(model for model, _ in computed):
            export, views = self._export[model], self.views[model]
            if len(views) == 1:
                merged[model, views[0]] = computed[model, views[0]]
                continue
            rows = np.unique(np.concatenate([items for (m, _), parts in computed.items() if m == model for items, _ in parts]))
            stack = [self._view_rows(export, view, rows, computed.get((model, view), [])) for view in views]
            merged[model, merged_name(views)] = [(rows, self._as_kept(model, as_logits(stack, export.card.outputs)))]
        return merged

    def _view_rows(self, export: Export, view: str, rows: ItemNumbers, computed: Sequence[tuple[ItemNumbers, F32]]) -> F32:
        """One view's logits of some items, float32 (n, width): those computed now, the others from the store."""
        values = np.empty((len(rows), export.card.width), dtype=np.float32)
        lacking = np.ones(len(rows), dtype=bool)
        for items, part in computed:
            place = np.searchsorted(rows, items)
            values[place], lacking[place] = part, False
        if lacking.any():
            values[lacking] = self.tables[export.digest, view].gather(self.digests[rows[lacking]])
        return values


class _Clock:
    """How far the work is, and what its passes and its images took; the first block is left out of the latter.

    It waits for imports and sessions, which says nothing about the others.
    """

    def __init__(self, work: _Work, done: int) -> None:
        self.work, self.done = work, done
        self._before, self._began = done, (0.0, 0.0)
        self._started = False

    def block_done(self, images: int) -> None:
        """Count the images of a block that is through."""
        self.done += images
        if not self._started:
            self._before, self._began, self._started = self.done, (time.monotonic(), self.work.busy), True

    def note(self) -> None:
        """Keep the timings of what was computed: per model, and per image what was left of the time."""
        work, images = self.work, self.done - self._before
        engine, precision = engine_tag(work.device), work.execution.precision
        spent = {timings.key(model, engine, precision): timing for model, timing in work.spent.items()}
        plain = all(parse(view)[0] == Cut() for views in work.views.values() for view in views)  # others are cut one by one
        if spent and images and plain:
            rest = time.monotonic() - self._began[0] - (work.busy - self._began[1])
            spent[timings.key(timings.AROUND, engine, precision)] = Timing(images, max(rest, 0.0))
        if spent:
            timings.note(work.store.root, spent)


def _prefetched(
    prepare: Callable[[ItemNumbers], _Block], blocks: Sequence[ItemNumbers], meanwhile: Callable[[], object]
) -> Generator[_Block]:
    """Blocks in order, the next ones being decoded in threads while the caller computes (the decoders release the GIL).

    `meanwhile` is called once, while the first ones are decoded.
    """
    todo = deque(blocks)
    pending: deque[Future[_Block]] = deque()
    workers = os.cpu_count() or 1
    ahead = workers if len(blocks) and len(blocks[0]) <= passes.BLOCK else 1  # large blocks: one ready, one in the making
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
