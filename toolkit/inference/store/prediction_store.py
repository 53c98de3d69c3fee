"""The prediction store: tables of immutable segments, keyed by what was computed, looked up by image content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, sealed
from toolkit.base.arrays import F32
from toolkit.errors import StoreError, counted
from toolkit.inference.store.file_index import DIGEST, Digests, ImageIndex

SEGMENT_ROWS = 4096
KEPT_AS = ("float32", "float16")  # how values lie on disk


@dataclass(frozen=True)
class TableKey:
    """What a table of logits was computed with and is kept as: change any of these and it is another table."""

    model: str
    pixels: str
    view: str
    engine: str
    precision: str = "fp32"
    kept_as: str = "float32"

    @property
    def digest(self) -> str:
        """The folder's name."""
        fields = asdict(self)
        if self.kept_as == "float32":  # tables of float32 had their names before there was another way
            del fields["kept_as"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Segment:
    """One complete file: its keys, and where its values start, to be read when they are wanted."""

    path: Path
    keys: Digests
    offset: int
    width: int
    dtype: np.dtype[Any]
    sealed: bool = False  # whether it carries a digest

    def values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Some rows, as they are kept."""
        first, count = int(rows[0]), len(rows)
        step = self.width * self.dtype.itemsize
        if np.array_equal(rows, np.arange(first, first + count)):
            values = np.fromfile(self.path, self.dtype, count * self.width, offset=self.offset + first * step)
            return values.reshape(count, self.width)
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, (len(self.keys), self.width))
        return np.array(mapped[rows])


class _Lookup:
    """Where each of a table's keys stands; tables with the same keys in the same order share one, and its last answer."""

    def __init__(self, keys: Digests) -> None:
        self.keys = keys
        self._sorted: tuple[Digests, NDArray[np.int64]] | None = None
        self._last: tuple[Digests, NDArray[np.int64]] = (np.array([], dtype=DIGEST), np.zeros(0, dtype=np.int64))

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """The place of each digest among the keys, -1 where absent."""
        asked, places = self._last
        if asked is not digests:
            places = self._find(digests)
            self._last = (digests, places)
        return places

    def _find(self, digests: Digests) -> NDArray[np.int64]:
        if not len(self.keys):
            return np.full(len(digests), -1, dtype=np.int64)
        if self._sorted is None:
            self._sorted = np.unique(self.keys, return_index=True)
        order, first = self._sorted
        if len(digests) > 1:  # images are mostly asked for as they were added
            start = first[min(int(np.searchsorted(order, digests[0])), len(order) - 1)]
            if np.array_equal(self.keys[start : start + len(digests)], digests):
                return np.arange(start, start + len(digests))
        place = np.searchsorted(order, digests).clip(max=len(order) - 1)
        return np.where(order[place] == digests, first[place], -1)


@dataclass(eq=False)
class StoreTable:
    """Raw logits of one model on one view: float32 (width,) per image digest. A key that is present is valid.

    `also` is a folder of further segments that are read and never written.
    """

    folder: Path
    key: TableKey
    also: Path | None = None
    lookups: dict[bytes, _Lookup] = field(default_factory=dict)  # by digest of the keys: tables are filled alike
    segments: list[Segment] = field(default_factory=list)
    _indexed: int = -1

    def __post_init__(self) -> None:
        for folder in (self.folder, *([self.also] if self.also else [])):
            self.segments += open_segments(folder)
        widths = [segment.width for segment in self.segments]
        if len(set(widths)) > 1:  # of 0.1.0, whose digests would have said so
            self._keep_the_usual(max(set(widths), key=widths.count))
        self.refresh()

    def _keep_the_usual(self, width: int) -> None:
        for segment in self.segments:
            if segment.width != width:
                sealed.set_aside(
                    segment.path, f"its rows have {counted(segment.width, 'values')}", "they are computed again where wanted"
                )
        self.segments = [segment for segment in self.segments if segment.width == width]

    def __len__(self) -> int:
        return len(self._lookup.keys)

    def present(self, digests: Digests) -> NDArray[np.bool_]:
        """Whether each digest had a row when the table was opened or last refreshed, bool [N].

        Rows added since do not count: sorting a million keys again after every few hundred images would cost more than
        computing the rare duplicate image twice.
        """
        return np.asarray(self._lookup.find(digests) >= 0)

    def gather(self, digests: Digests) -> F32:
        """The rows of these digests, float32 [N, width].

        Raises:
            StoreError: a digest has no row.
        """
        place = self._lookup.find(digests)
        if (place < 0).any() and self._indexed < len(self.segments):
            self.refresh()
            place = self._lookup.find(digests)
        if (place < 0).any():
            raise StoreError(
                f"{counted(int((place < 0).sum()), 'rows are')} not in the store", hint="Run the same command again."
            )
        rows = np.empty((len(digests), self.segments[0].width if self.segments else 0), dtype=np.float32)
        home = np.searchsorted(self._starts, place, side="right") - 1
        for number in np.unique(home):
            here = np.flatnonzero(home == number)
            rows[here] = self.segments[number].values(place[here] - self._starts[number])
        return rows

    def add(self, digests: Digests, values: F32) -> None:
        """Keep rows for good: they are on disk when this returns. Rows that are already there are left out.

        Raises:
            StoreError: values that are not finite or not one row per digest, or a disk that takes no more.
        """
        if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(digests) or not np.isfinite(values).all():
            raise StoreError(f"{self.key.model[:12]} {self.key.view}: logits must be finite float32, a row per image")
        _, first = np.unique(digests, return_index=True)
        fresh = np.sort(first[~self.present(digests[first])])
        kept = values if self.key.kept_as == "float32" else halved(values)
        for start in range(0, len(fresh), SEGMENT_ROWS):
            rows = fresh[start : start + SEGMENT_ROWS]
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.seg"
            self.segments.append(write_segment(self.folder / name, digests[rows], kept[rows]))

    def refresh(self) -> None:
        """Let rows that were added since count as present."""
        if self._indexed == len(self.segments):
            return
        sizes = [len(segment.keys) for segment in self.segments]
        keys = np.concatenate([segment.keys for segment in self.segments]) if sizes else np.array([], dtype=DIGEST)
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._indexed = len(sizes)
        name = hashlib.blake2b(keys.tobytes(), digest_size=16).digest()
        self._lookup = self.lookups.setdefault(name, _Lookup(keys))


@dataclass(frozen=True, eq=False)
class RenamedTable:
    """A table whose rows stand under other digests than those it is asked with: `names` leads from these to those.

    Models that look at different boxes of an image share no row of it, while the caller has one digest for the image.
    """

    table: StoreTable
    names: Mapping[bytes, bytes]

    def __len__(self) -> int:
        return len(self.table)

    def present(self, digests: Digests) -> NDArray[np.bool_]:
        """See `StoreTable.present`."""
        return self.table.present(self._named(digests))

    def gather(self, digests: Digests) -> F32:
        """See `StoreTable.gather`.

        Raises:
            StoreError: a digest has no row.
        """
        return self.table.gather(self._named(digests))

    def add(self, digests: Digests, values: F32) -> None:
        """See `StoreTable.add`.

        Raises:
            StoreError: see there.
        """
        self.table.add(self._named(digests), values)

    def refresh(self) -> None:
        """See `StoreTable.refresh`."""
        self.table.refresh()

    def _named(self, digests: Digests) -> Digests:
        return np.array([self.names[digest] for digest in digests.tolist()], dtype=DIGEST)


class Store:
    """All tables of a workspace, and the index that knows an unchanged file's digest without reading it.

    While it is open, `exclusive` is refused to other processes, so that nobody removes what a run is using. With `passing`,
    what is added goes to a place of its own, which `forget` empties.
    """

    def __init__(self, root: Path, *, passing: bool = False) -> None:
        self.root = root
        self.passing = passing
        self._lock: int | None = None  # so that there is one to close if taking it fails
        self._lock = _lock(root, exclusive=False)
        files.sweep(root)
        self.images = ImageIndex(root / "images.npz")
        self._lookups: dict[bytes, _Lookup] = {}

    def table(self, key: TableKey) -> StoreTable:
        """The table of that key, empty if nothing was computed yet.

        Raises:
            StoreError: it cannot be read, or made.
        """
        kept = self.root / "tables" / key.digest
        folder = self.root / "passing" / key.digest if self.passing else kept
        if read_key(folder) != key:
            files.write_text(folder / "key.json", json.dumps(asdict(key), indent=1))
        return StoreTable(folder, key, kept if self.passing else None, self._lookups)

    def require_space(self, size: int) -> None:
        """Make sure that the disk takes `size` bytes more.

        Raises:
            StoreError: it does not.
        """
        folder = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(folder).free
        if size > free:
            raise StoreError(
                f"{self.root} would grow by {size / 1e9:,.1f} GB, and the disk has {free / 1e9:,.1f} GB left",
                hint="Keep one merged row per model or half the digits, free some space, or move the workspace.",
                code="store-space",
            )

    def forget(self) -> bool:
        """Remove what lies in the passing place, unless another run may be using it; whether it is gone."""
        self.close()
        with suppress(StoreError), exclusive(self.root):
            shutil.rmtree(self.root / "passing", ignore_errors=True)
            return True
        return False

    def close(self) -> None:
        """Let others remove tables again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def read_key(folder: Path) -> TableKey | None:
    """What a table's folder says that it holds; None where it does not say, or what it says is not what it is called."""
    then = "the next run that uses the table writes it again"
    key: TableKey | None = sealed.notes(folder / "key.json", then, partial(_key_of, folder.name))
    return key


def _key_of(folder: str, fields: dict[str, Any]) -> TableKey:
    key = TableKey(**fields)
    if key.digest != folder:
        raise sealed.DamagedError("it is the key of another table")
    return key


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the store alone, so that segments can be removed.

    Raises:
        StoreError: another process is using it.
    """
    handle = _lock(root, exclusive=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def halved(values: F32) -> NDArray[np.float16]:
    """Logits as float16; what is beyond its range becomes the largest it holds."""
    limit = float(np.finfo(np.float16).max)
    return np.asarray(values.clip(-limit, limit).astype(np.float16))


def segment_paths(folder: Path) -> list[Path]:
    """The complete segments of a table's folder, in the order of their making."""
    return sorted(folder.glob("*.seg"))


def write_segment(path: Path, keys: Digests, values: NDArray[Any]) -> Segment:
    """Write rows as one segment with its digest, complete or not at all.

    Raises:
        StoreError: the disk takes no more.
    """
    parts: list[Any] = []
    for array in (keys, np.ascontiguousarray(values)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        parts += [header.getvalue(), array.tobytes()]
    parts.append(sealed.tail(*parts, context=path.parent.name))
    files.write(path, lambda file: [file.write(part) for part in parts])
    size = sum(map(len, parts))
    _CHECKED[path] = _stamp(path)
    return Segment(path, keys, size - sealed.TAIL - values.nbytes, values.shape[1], values.dtype, sealed=True)


def read_segment(path: Path) -> Segment:
    """The keys of a segment, and where its values lie; its digest is looked at once per run, where it carries one.

    Raises:
        DamagedError: it is not what was written, or cannot be read.
    """
    try:
        with files.unbuffered(path) as file:
            stamp = _stamp(file.fileno())
            size = stamp[0]
            carries = sealed.carries(file, size)
            ends = size - sealed.TAIL if carries else size
            (count,), _, start = _header(file, 0, ends, _KEYS)
            values = start + DIGEST.itemsize * count
            (rows, width), dtype, offset = _header(file, values, ends, _VALUES)
            if rows != count or ends != offset + dtype.itemsize * rows * width:
                raise sealed.DamagedError("it has another size than it says")
            if carries and _CHECKED.get(path) != stamp:
                sealed.check(file, ends, path.parent.name)
                _CHECKED[path] = stamp
            file.seek(start)
            keys = np.frombuffer(sealed.exactly(file, values - start), dtype=DIGEST)
    except (OSError, ValueError, OverflowError) as error:
        raise sealed.DamagedError(str(error)) from error
    return Segment(path, keys, offset, width, dtype, sealed=carries)


def open_segments(folder: Path) -> list[Segment]:
    """The segments of a folder that are what was written; the others are set aside, so that their rows are made again."""

    def opened(path: Path) -> Segment | None:
        try:
            return read_segment(path)
        except sealed.DamagedError as error:
            sealed.set_aside(path, error.message, "its rows are computed again where they are wanted")
            return None

    paths = segment_paths(folder)
    if len(paths) < 2:
        return [segment for segment in map(opened, paths) if segment]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # reading and hashing let go of the interpreter
        return [segment for segment in pool.map(opened, paths) if segment]


_CHECKED: dict[Path, tuple[int, ...]] = {}  # segments whose digest this process saw, with what the system said of the file
_KEYS = re.compile(rb"{'descr': '\|S16', 'fortran_order': False, 'shape': \((\d{1,12}),\), } *\n")
_VALUES = re.compile(rb"{'descr': '(<f4|<f2)', 'fortran_order': False, 'shape': \((\d{1,12}), (\d{1,8})\), } *\n")
_HEAD = b"\x93NUMPY\x01\x00"


def _header(file: IO[bytes], start: int, ends: int, form: re.Pattern[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and end of one of numpy's headers, which begins at `start`; only what we write is understood."""
    file.seek(start)
    head = sealed.exactly(file, len(_HEAD) + 2)
    size = int.from_bytes(head[-2:], "little")
    stop = start + len(head) + size
    match = form.fullmatch(sealed.exactly(file, size)) if head.startswith(_HEAD) and stop <= ends else None
    if match is None:
        raise sealed.DamagedError("it is no segment")
    *kind, rows = match.groups() if form is _KEYS else match.groups()[:2]
    shape = (int(rows),) if form is _KEYS else (int(rows), int(match[3]))
    dtype = np.dtype(kind[0].decode()) if kind else DIGEST
    if shape[0] * dtype.itemsize > ends - stop:
        raise sealed.DamagedError("it is cut short")
    return shape, dtype, stop


def _stamp(file: Path | int) -> tuple[int, ...]:
    stat = os.stat(file)  # noqa: PTH116 - also of a handle
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def rows_size(rows: int, widths: Sequence[int], kept_as: str) -> int:
    """Bytes that `rows` images take in tables of these widths."""
    return rows * sum(width * np.dtype(kept_as).itemsize + DIGEST.itemsize for width in widths)


def _lock(root: Path, *, exclusive: bool) -> int | None:
    """A lock on the store, held until the handle is closed or the process ends however; None where locks are not to be had."""
    try:
        import fcntl

        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError as error:
        os.close(handle)
        raise StoreError(f"{root} is in use by another run", hint="Wait until it has ended, then try again.") from error
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
