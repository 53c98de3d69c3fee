"""Decoded images: memory-mapped from a cache on disk that all folds and runs share, or decoded whenever they are asked for."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, sealed
from toolkit.base.runners.threads import spread
from toolkit.core.cards import Preprocess
from toolkit.errors import StoreError, counted
from toolkit.images import render
from toolkit.images.boxes import Box
from toolkit.inference.store.file_index import ImageIndex

CHUNK = 256  # images decoded before the file is told, so that a build never holds more than this in memory

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


class Pixels(Protocol):
    """What holds the images of `Samples`: an array, in memory or on disk, or something that makes its rows when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, …)."""
        ...

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """One image, or an array of them."""
        ...


class Mapped:
    """The rows of a .npy file, read from disk when they are asked for; sent to another process as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = np.load(path, mmap_mode="r")
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.array(self._array[rows])

    def __reduce__(self) -> Any:
        return Mapped, (self.path,)


class Undecoded:
    """Images that are read and decoded each time they are asked for: uint8 (3, H, W), or (n, 3, H, W) for several rows."""

    def __init__(self, paths: Sequence[Path], preprocess: Preprocess, boxes: Sequence[Box | None] = ()) -> None:
        self.paths, self.preprocess = list(paths), preprocess
        self.boxes = list(boxes) or [None] * len(self.paths)
        self.shape = (len(self.paths), 3, *preprocess.size)
        self.dtype = np.dtype(np.uint8)
        self._home = os.getpid()

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        if isinstance(rows, int | np.integer):
            return self._load(int(rows))
        wanted = np.arange(len(self.paths))[rows].tolist()
        if os.getpid() != self._home or len(wanted) < 2:  # in a loader's worker: there is one per core already
            return np.stack([self._load(row) for row in wanted])
        return np.stack(list(spread(self._load, wanted, os.cpu_count() or 1)))  # decoding releases the GIL

    def _load(self, row: int) -> NDArray[np.uint8]:
        return render.load(self.paths[row], self.preprocess, box=self.boxes[row])


def decoded(
    root: Path,
    paths: Sequence[Path],
    preprocess: Preprocess,
    boxes: Sequence[Box | None] = (),
    *,
    say: Say,
    progress: Progress | None = None,
) -> Pixels:
    """The images (or what lies in their `boxes`) as a memory-mapped uint8 array (N, 3, H, W) below `root`/cache.

    It is made first where it is not there. Its name is the digest of the images' contents and boxes in order and of everything
    that makes their pixels, so that every fold and run on the same images finds it and a changed image does not. It may be
    larger than the memory. `say` is told the size before it is built.

    Raises:
        ImageError: an image that cannot be read.
        StoreError: the disk is too small for it, or cannot be written.
    """
    path = root / "cache" / f"pixels-{_key(root, paths, preprocess, boxes)}.npy"
    shape = (len(paths), 3, *preprocess.size)
    if not whole(path, shape, np.uint8):
        size = int(np.prod(shape, dtype=np.int64))
        say(f"decoding {counted(len(paths), 'images')} once into {path} ({_bytes(size)})")
        files.sweep(root / "cache")
        room(path, size)
        source = Undecoded(paths, preprocess, boxes)
        parts = (source[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
        store(path, shape, np.uint8, parts, progress)
    return Mapped(path)


def store(
    path: Path, shape: tuple[int, ...], dtype: Any, parts: Iterator[NDArray[Any]], progress: Progress | None = None
) -> Path:
    """Make a .npy file of this shape from its parts, one after another, and its digest: whole or not at all.

    Raises:
        StoreError: the disk is full or cannot be written.
    """

    def fill(file: IO[bytes]) -> None:
        seal, done = sealed.Sealing(path.name), 0
        header = _header(shape, dtype)
        seal.add(header)
        file.write(header)
        for part in parts:
            data = np.ascontiguousarray(part, dtype=dtype)
            seal.add(data)
            file.write(data.data)
            done += len(part)
            if progress:
                progress(done, shape[0])
        file.write(seal.tail())

    return files.write(path, fill)


def whole(path: Path, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether there is such a file and it is what was written, which is looked at once per process; else it is set aside.

    Files of before carry no digest: of them header and size are looked at.
    """
    if not path.exists():
        return False
    try:
        stat = path.stat()
        if _seen.get(path) != (stamp := (stat.st_size, stat.st_mtime_ns, stat.st_ino)):
            _check(path, stat.st_size, shape, dtype)
    except (sealed.DamagedError, OSError) as error:
        sealed.set_aside(path, error, "it is made again")
        return False
    _seen[path] = stamp
    return True


def _check(path: Path, size: int, shape: tuple[int, ...], dtype: Any) -> None:
    header = _header(shape, dtype)
    bare = len(header) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size not in (bare, bare + sealed.TAIL):
        raise sealed.DamagedError("it has another size than it should")
    with files.unbuffered(path) as file:
        if file.read(len(header)) != header:
            raise sealed.DamagedError("it holds something else than it should")
        if size > bare:
            sealed.check(file, bare, path.name)


_seen: dict[Path, tuple[int, int, int]] = {}  # files whose digest this process looked at, and what the system said of them


def _header(shape: tuple[int, ...], dtype: Any) -> bytes:
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def room(path: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold: a memory-mapped file that runs out of disk kills the process.

    Raises:
        StoreError: says how much is missing.
    """
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    if free < size * 1.02:
        raise StoreError(
            f"{path} needs {_bytes(size)}, the disk has {_bytes(free)} left",
            hint="Free some space, use smaller images, or decode them in every epoch.",
            code="no-cache",
        )


def _key(root: Path, paths: Sequence[Path], preprocess: Preprocess, boxes: Sequence[Box | None]) -> str:
    index = ImageIndex(root / "store" / "images.npz")
    found, known = index.known(paths)

    def digest(place: int) -> bytes:
        before = paths[place].stat() if paths[place].exists() else None
        content = render.digest(render.read(paths[place]))
        if before:
            index.learn(paths[place], before, content)
        return content

    unknown = np.flatnonzero(~known).tolist()
    found[unknown] = list(spread(digest, unknown, os.cpu_count() or 1))
    index.save()
    content = found.tobytes() + (repr(list(boxes)).encode() if any(boxes) else b"")
    description = f"{preprocess.digest} {render.implementation_tag()} {len(paths)} ".encode()
    return hashlib.blake2b(description + content, digest_size=8).hexdigest()


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):,.1f} MB"
