"""The prediction store: tables of immutable segments, keyed by what was computed, looked up by image content."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import files
from toolkit.errors import StoreError

SEGMENT_ROWS = 4096
DIGEST = np.dtype("S16")  # an image's content digest; numpy compares these as padded bytes, which sixteen of them are

Digests = NDArray[Any]  # of dtype DIGEST
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class TableKey:
    """What a table of logits was computed with: change any of these and it is another table."""

    model: str
    pixels: str
    view: str
    engine: str
    precision: str = "fp32"

    @property
    def digest(self) -> str:
        """The folder's name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class _Segment:
    """One complete file: its keys, and where its values start, to be mapped when they are wanted."""

    path: Path
    keys: Digests
    offset: int
    width: int

    def values(self, rows: NDArray[np.int64]) -> F32:
        mapped = np.memmap(self.path, np.float32, "r", self.offset, (len(self.keys), self.width))
        return np.array(mapped[rows])


@dataclass(eq=False)
class Table:
    """Raw logits of one model on one view: float32 (width,) per image digest. A key that is present is valid."""

    folder: Path
    key: TableKey
    _segments: list[_Segment] = field(default_factory=list)
    _order: Digests = field(default_factory=lambda: np.array([], dtype=DIGEST))  # all keys, sorted
    _home: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))  # (segment, row) of each

    _indexed: int = 0  # segments that the index covers

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*.seg")):
            self._segments.append(_read_segment(path))
        self._index()

    def present(self, digests: Digests) -> NDArray[np.bool_]:
        """Whether each digest had a row when the table was opened or last gathered from, bool [N].

        Rows added since do not count: sorting a million keys again after every few hundred images would cost more than
        computing the rare duplicate image twice.
        """
        return np.asarray(self._find(digests) >= 0)

    def gather(self, digests: Digests) -> F32:
        """The rows of these digests, float32 [N, width].

        Raises:
            StoreError: a digest has no row.
        """
        if self._indexed < len(self._segments):
            self._index()
        place = self._find(digests)
        if (place < 0).any():
            raise StoreError(f"{int((place < 0).sum()):,} rows are not in the store", hint="Run the same command again.")
        if not len(digests):
            return np.zeros((0, self._segments[0].width if self._segments else 0), dtype=np.float32)
        home = self._home[place]
        found = np.empty((len(digests), self._segments[0].width), dtype=np.float32)
        for number in np.unique(home[:, 0]):
            here = np.flatnonzero(home[:, 0] == number)
            found[here] = self._segments[number].values(home[here, 1])
        return found

    def add(self, digests: Digests, values: F32) -> None:
        """Keep rows for good: they are on disk when this returns. Rows that are already there are left out.

        Raises:
            StoreError: values that are not finite or not one row per digest, or a disk that takes no more.
        """
        if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(digests) or not np.isfinite(values).all():
            raise StoreError(f"{self.key.model[:12]} {self.key.view}: logits must be finite float32, a row per image")
        _, first = np.unique(digests, return_index=True)
        fresh = np.sort(first[~self.present(digests[first])])
        for start in range(0, len(fresh), SEGMENT_ROWS):
            rows = fresh[start : start + SEGMENT_ROWS]
            self._segments.append(_write_segment(self.folder, digests[rows], values[rows]))

    def _find(self, digests: Digests) -> NDArray[np.int64]:
        """Place in the sorted keys, -1 where absent."""
        if not len(self._order):
            return np.full(len(digests), -1, dtype=np.int64)
        place = np.searchsorted(self._order, digests).clip(max=len(self._order) - 1)
        return np.where(self._order[place] == digests, place, -1)

    def _index(self) -> None:
        if not self._segments:
            return
        keys = np.concatenate([segment.keys for segment in self._segments])
        sizes = [len(segment.keys) for segment in self._segments]
        numbers = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes])
        self._order, first = np.unique(keys, return_index=True)
        self._home = np.stack([numbers, rows], axis=1)[first]
        self._indexed = len(self._segments)


class Store:
    """All tables of a workspace, and the index that knows an unchanged file's digest without reading it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files.sweep(root)
        self.images = ImageIndex(root / "images.npz")

    def table(self, key: TableKey) -> Table:
        """The table of that key, empty if nothing was computed yet.

        Raises:
            StoreError: it cannot be read, or made.
        """
        folder = self.root / "tables" / key.digest
        if not (folder / "key.json").exists():
            files.write_text(folder / "key.json", json.dumps(asdict(key), indent=1))
        return Table(folder, key)


class ImageIndex:
    """path → content digest, trusted while size and modification time are unchanged (as git's index does)."""

    RACY = 2.0  # seconds: a file modified later than this before it was read may change again within one clock tick

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[int, int, bytes]] = {}
        self._changed = False
        if path.exists():
            self._load()

    def known(self, path: Path) -> bytes | None:
        """The digest of the file as it is now, or None if it has to be read."""
        entry = self._known.get(str(path))
        if entry is None:
            return None
        try:
            stat = path.stat()
        except OSError:
            return None
        return entry[2] if (stat.st_size, stat.st_mtime_ns) == entry[:2] else None

    def learn(self, path: Path, stat: os.stat_result, digest: bytes) -> None:
        """Remember a digest; `stat` was taken before the file was read."""
        if time.time() - stat.st_mtime > self.RACY:
            self._known[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)
            self._changed = True

    def save(self) -> None:
        """Write what was learned.

        Raises:
            StoreError: the disk takes no more.
        """
        if not self._changed:
            return
        paths = list(self._known)
        stats = np.array([self._known[path][:2] for path in paths], dtype=np.int64)
        digests = np.array([self._known[path][2] for path in paths], dtype=DIGEST)
        names = np.frombuffer("\0".join(paths).encode("utf-8", "surrogateescape"), dtype=np.uint8)
        files.write(self.path, lambda file: np.savez(file, names=names, stats=stats, digests=digests))
        self._changed = False

    def _load(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                names = saved["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
                rows = zip(names, saved["stats"].tolist(), saved["digests"], strict=True)
                self._known = {name: (size, when, _full(digest)) for name, (size, when), digest in rows}
        except (OSError, ValueError, KeyError, EOFError):
            self._known = {}  # it only saves time: a damaged index is made again


def as_digests(digests: Iterable[bytes]) -> Digests:
    """Digests of sixteen bytes as an array that the tables can search."""
    return np.array(list(digests), dtype=DIGEST)


def _full(digest: bytes) -> bytes:
    """Undo numpy, which drops trailing zero bytes of an S16 when it hands one out."""
    return bytes(digest).ljust(16, b"\0")


def _write_segment(folder: Path, keys: Digests, values: F32) -> _Segment:
    path = folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.seg"

    def fill(file: Any) -> None:
        np.save(file, keys)
        np.save(file, np.ascontiguousarray(values))

    files.write(path, fill)
    return _read_segment(path)


def _read_segment(path: Path) -> _Segment:
    try:
        with path.open("rb") as file:
            keys = np.load(file, allow_pickle=False)
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = header(file)
            offset = file.tell()
        if keys.dtype != DIGEST or dtype != np.float32 or shape[0] != len(keys):
            raise ValueError("not a segment")
        if path.stat().st_size != offset + 4 * shape[0] * shape[1]:
            raise ValueError("wrong size")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise StoreError(f"{path} is damaged ({error})", hint="Delete that file; its rows are computed again.") from error
    return _Segment(path, keys, offset, int(shape[1]))
