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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import images, voting
from toolkit.cards import Output, Preprocess
from toolkit.errors import ImageError
from toolkit.graphs import Export
from toolkit.sessions import Session, choose_device, engine_tag, open_session, probabilities
from toolkit.store import Digests, Store, Table, TableKey, as_digests

BLOCK = 64  # images that travel together: decoded, placed and run at once
FLUSH_ROWS, FLUSH_SECONDS = 1024, 30.0  # what a kill may cost at most: this many images or this long, whichever is less

Progress = Callable[[int, int], None]  # images done, images in all
Opener = Callable[..., Session]


@dataclass(frozen=True)
class Item:
    """One image file and the row it belongs to."""

    id: str
    path: Path


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used, and why in a sentence."""

    id: str
    path: Path
    why: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What `predict` leaves: a table per (model digest, view), the content digest of each usable item, the bad ones.

    `passes` counts image × model × view runs that were made now; everything else was in the store.
    """

    items: tuple[Item, ...]
    digests: Digests
    bad: tuple[BadImage, ...]
    tables: Mapping[tuple[str, str], Table]
    device: str
    pixels: str
    passes: int
    seconds: float

    def logits(self, export: Export, view: str, digests: Digests) -> NDArray[np.float32]:
        """Stored logits, float32 (N, width)."""
        return self.tables[export.digest, view].gather(digests)

    def probabilities(self, export: Export, output: Output, views: Sequence[str], digests: Digests) -> NDArray[np.float64]:
        """One fold model's probabilities, float64 (N, C) in the order of `output.classes`: the mean over its views."""
        stack = np.stack([probabilities(self.logits(export, view, digests), output) for view in views])
        merged = voting.vote(stack, how="soft", multilabel=output.multilabel).values
        assert merged is not None
        return merged


def predict(
    exports: Sequence[Export],
    views: Mapping[str, Sequence[str]],
    items: Sequence[Item],
    store: Store,
    *,
    device: str = "auto",
    batch: int | None = None,
    implementation: str = "fast",
    progress: Progress | None = None,
    opener: Opener = open_session,
) -> Outcome:
    """Bring the logits of every item under every view (per model digest) into the store, computing only what is missing.

    Items that cannot be read are collected, not raised; the others are finished and stay in the store, also when the run
    is interrupted or fails later.

    Raises:
        DeviceError, ModelError: a session cannot be opened.
        StoreError: the store cannot be written; what was flushed before stays.
    """
    started = time.monotonic()
    device = choose_device(device)
    pixels = images.implementation_tag(implementation)
    tables = {
        (export.digest, view): store.table(
            TableKey(export.digest, f"{pixels}/{export.card.preprocess.digest}", view, engine_tag(device))
        )
        for export in exports
        for view in views[export.digest]
    }
    work = _Work(exports, views, tables, store, implementation, lambda models: opener(models, device=device, batch=batch))
    try:
        with closing(_prefetched(work.prepare, list(items))) as blocks:
            done = 0
            for block in blocks:
                work.compute(block)
                done += len(block.items)
                if progress:
                    progress(done, len(items))
    finally:
        work.flush()
        store.images.save()
    good = [(item, digest) for item, digest in work.seen if digest is not None]
    return Outcome(
        items=tuple(item for item, _ in good),
        digests=as_digests(digest for _, digest in good),
        bad=tuple(work.bad),
        tables=tables,
        device=device,
        pixels=pixels,
        passes=work.passes,
        seconds=time.monotonic() - started,
    )


@dataclass(eq=False)
class _Block:
    """Some items, their digests (None where unreadable) and, for rows that lack something, their pixels."""

    items: list[Item]
    digests: list[bytes | None]
    bad: list[BadImage]
    rows: list[int]  # items that some table lacks; pixels follow this order
    pixels: dict[Preprocess, NDArray[np.uint8]]


@dataclass(eq=False)
class _Work:
    """The state of one `predict`: which tables lack what, sessions opened when first needed, rows waiting for the disk."""

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]
    tables: Mapping[tuple[str, str], Table]
    store: Store
    implementation: str
    open: Callable[[Mapping[str, Path]], Session]
    seen: list[tuple[Item, bytes | None]] = field(default_factory=list)
    bad: list[BadImage] = field(default_factory=list)
    passes: int = 0
    _sessions: dict[Preprocess, Session] = field(default_factory=dict)
    _waiting: dict[tuple[str, str], list[tuple[Digests, Any]]] = field(default_factory=dict)
    _waiting_rows: int = 0
    _flushed: float = field(default_factory=time.monotonic)

    def prepare(self, items: list[Item]) -> _Block:
        """Digest the items and decode those that some table lacks; runs in a worker thread."""
        data: dict[int, bytes] = {}
        digests: list[bytes | None] = []
        bad: dict[int, str] = {}
        for i, item in enumerate(items):
            digest = self.store.images.known(item.path)
            if digest is None:
                try:
                    before = item.path.stat() if item.path.exists() else None
                    data[i] = images.read(item.path)
                    digest = images.digest(data[i])
                    if before is not None:
                        self.store.images.learn(item.path, before, digest)
                except ImageError as error:
                    bad[i] = error.message
            digests.append(digest)
        rows = [i for i in self._lacking(digests) if digests[i] is not None]
        pixels, rows = self._render(items, digests, data, rows, bad)
        return _Block(items, digests, [BadImage(items[i].id, items[i].path, bad[i]) for i in sorted(bad)], rows, pixels)

    def compute(self, block: _Block) -> None:
        """Run what is missing for one block and queue it for the disk."""
        self.seen += zip(block.items, block.digests, strict=True)
        self.bad += block.bad
        if not block.rows:
            return
        digests = as_digests(block.digests[i] or b"" for i in block.rows)
        for preprocess, pixels in block.pixels.items():
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            for view, rows, models in self._missing(group, digests):
                session = self._session(preprocess, group)
                logits = session.run(session.place(np.ascontiguousarray(pixels[rows])), view, models)
                self.passes += len(rows) * len(models)
                for model in models:
                    self._waiting.setdefault((model, view), []).append((digests[rows], logits[model]))
        self._waiting_rows += len(block.rows)
        if self._waiting_rows >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put every finished row on disk."""
        while self._waiting:  # a table leaves the queue when its rows are on disk: an interrupt in between loses nothing
            key, parts = next(iter(self._waiting.items()))
            self.tables[key].add(np.concatenate([d for d, _ in parts]), np.concatenate([v for _, v in parts]))
            del self._waiting[key]
        self._waiting_rows, self._flushed = 0, time.monotonic()

    def _lacking(self, digests: list[bytes | None]) -> list[int]:
        """Rows that at least one table lacks."""
        keys = as_digests(digest or b"" for digest in digests)
        lacking = np.zeros(len(digests), dtype=bool)
        for table in self.tables.values():
            lacking |= ~table.present(keys)
        return np.flatnonzero(lacking).tolist()

    def _render(
        self, items: list[Item], digests: list[bytes | None], data: dict[int, bytes], rows: list[int], bad: dict[int, str]
    ) -> tuple[dict[Preprocess, NDArray[np.uint8]], list[int]]:
        """Decode each row once and cut it for every distinct Preprocess; a row that fails joins the bad ones."""
        wanted = list(dict.fromkeys(export.card.preprocess for export in self.exports))
        found: dict[Preprocess, list[NDArray[np.uint8]]] = {preprocess: [] for preprocess in wanted}
        good = []
        for i in rows:
            where = str(items[i].path)
            try:
                raw = data.pop(i, None) or images.read(items[i].path)
                decoded = {
                    orientation: images.decode(raw, where, implementation=self.implementation, exif=orientation == "exif")
                    for orientation in {preprocess.orientation for preprocess in wanted}
                }
                cut = [
                    images.render(decoded[p.orientation], p, implementation=self.implementation, where=where) for p in wanted
                ]
            except ImageError as error:
                bad[i] = error.message
                digests[i] = None
                continue
            good.append(i)
            for preprocess, pixels in zip(wanted, cut, strict=True):
                found[preprocess].append(pixels)
        return {preprocess: np.stack(parts) for preprocess, parts in found.items() if parts}, good

    def _missing(self, group: Sequence[Export], digests: Digests) -> Iterator[tuple[str, NDArray[np.int64], list[str]]]:
        """(view, rows, models) still to run: models of a view that lack the same rows go together."""
        for view in dict.fromkeys(view for export in group for view in self.views[export.digest]):
            alike: dict[bytes, list[str]] = {}
            for export in group:
                if view in self.views[export.digest]:
                    lacking = ~self.tables[export.digest, view].present(digests)
                    if lacking.any():
                        alike.setdefault(lacking.tobytes(), []).append(export.digest)
            for mask, models in alike.items():
                yield view, np.flatnonzero(np.frombuffer(mask, dtype=bool)), models

    def _session(self, preprocess: Preprocess, group: Sequence[Export]) -> Session:
        if preprocess not in self._sessions:
            self._sessions[preprocess] = self.open({export.digest: export.path for export in group})
        return self._sessions[preprocess]


def _prefetched(prepare: Callable[[list[Item]], _Block], items: list[Item]) -> Generator[_Block]:
    """Blocks in order, the next ones being decoded in threads while the caller computes (the decoders release the GIL)."""
    starts = deque(range(0, len(items), BLOCK))
    pending: deque[Future[_Block]] = deque()
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        try:
            while starts or pending:
                while starts and len(pending) <= workers:
                    start = starts.popleft()
                    pending.append(pool.submit(prepare, items[start : start + BLOCK]))
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
