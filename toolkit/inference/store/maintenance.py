"""Looking after the prediction store: what lies in it, small segments merged, and tables removed that nobody can use."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import documents, files
from toolkit.base.schema import checked
from toolkit.errors import StoreError
from toolkit.inference.store.file_index import ExportIndex
from toolkit.inference.store.prediction_store import Segment, StoreTable, TableKey, exclusive, segment_paths, write_segment

MERGED_ROWS = 65_536  # a compacted segment's rows, or as many as fit MERGED_BYTES
MERGED_BYTES = 1 << 28


@dataclass(frozen=True)
class Kept:
    """One table: what it was computed with, whose it is, how large, and when a row was last added (seconds since 1970).

    It is stale where no file with that model is left, and passing where a run that keeps nothing will remove it.
    """

    folder: Path
    key: TableKey
    title: str
    stale: bool
    passing: bool
    rows: int
    segments: int
    size: int
    written: float

    @property
    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"folder": self.folder.name}


@dataclass(frozen=True)
class Compacted:
    """How many segments there were and are, and how many bytes that freed."""

    before: int
    after: int
    freed: int


def survey(root: Path, folds: Path) -> list[Kept]:
    """Every table, by model and view; `folds` is where exports lie that the store may not have seen yet.

    Raises:
        StoreError: a table that cannot be read.
    """
    index = ExportIndex(root / "exports.json")
    index.look_again(folds)
    here = index.here()
    tables = []
    for folder in [*sorted((root / "tables").glob("*")), *sorted((root / "passing").glob("*"))]:
        if not (folder / "key.json").exists():
            continue
        table = _open(folder)
        title, path = here.get(table.key.model, (f"model {table.key.model[:8]}", None))
        paths = [segment.path for segment in table.segments]
        stats = [path.stat() for path in [*paths, folder / "key.json"]]
        size, written = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
        passing = folder.parent.name == "passing"
        tables.append(Kept(folder, table.key, title, path is None, passing, len(table), len(paths), size, written))
    return sorted(tables, key=lambda kept: (kept.title, kept.key.view, kept.key.engine, kept.key.kept_as))


def compact(root: Path) -> Compacted:
    """Merge the segments of each table into large ones, each row once, and sweep what killed runs left.

    The new segment is complete before the old ones go, so that a crash leaves rows twice at most, never not at all.

    Raises:
        StoreError: another run is using the store, a damaged segment, or a disk that takes no more.
    """
    with exclusive(root):
        before = after = freed = 0
        for folder in sorted((root / "tables").glob("*")):
            old = segment_paths(folder)
            size = sum(path.stat().st_size for path in old)
            new = _compacted(_open(folder)) if len(old) > 1 else old
            before, after, freed = before + len(old), after + len(new), freed + size - sum(p.stat().st_size for p in new)
        files.sweep(root, age=0)
    return Compacted(before, after, freed)


def prune(root: Path, tables: Sequence[Kept]) -> int:
    """Remove tables; the bytes that are free again.

    Raises:
        StoreError: another run is using the store.
    """
    with exclusive(root):
        for kept in tables:
            with files.explained(kept.folder):
                for path in segment_paths(kept.folder):
                    path.unlink()
                (kept.folder / "key.json").unlink()  # last: a table without its key is no table
                for rest in kept.folder.iterdir():
                    rest.unlink()
                kept.folder.rmdir()
    return sum(kept.size for kept in tables)


def useless(tables: Sequence[Kept], *, stale: bool, older: int | None) -> list[Kept]:
    """Those whose model is gone (and what runs that keep nothing left), and those that got no row for so many days."""
    old = time.time() - 86_400 * older if older is not None else 0.0
    return [kept for kept in tables if (stale and (kept.stale or kept.passing)) or kept.written < old]


def _compacted(table: StoreTable) -> list[Path]:
    """The segments of a table after merging."""
    old = table.segments
    keys = np.concatenate([segment.keys for segment in old])
    keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
    step = max(1, min(MERGED_ROWS, MERGED_BYTES // max(1, old[0].width * old[0].dtype.itemsize)))
    if len(old) <= -(-len(keys) // step):
        return [segment.path for segment in old]
    new: list[Segment] = []
    stamp = old[0].path.name[:20]  # they sort as the first of the old ones did
    for number, start in enumerate(range(0, len(keys), step)):
        some = keys[start : start + step]
        path = table.folder / f"{stamp}-{number:06d}-{secrets.token_hex(4)}.seg"
        new.append(write_segment(path, some, table.gather(some).astype(old[0].dtype)))
    for segment in old:
        segment.path.unlink()
    return [segment.path for segment in new]


def _open(folder: Path) -> StoreTable:
    try:
        key = checked(documents.read_json(folder / "key.json"), TableKey)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{folder / 'key.json'} cannot be read ({error})", hint=f"Remove the folder {folder}.") from error
    return StoreTable(folder, key)
