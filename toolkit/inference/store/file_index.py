"""What unchanged files are known to be: digests of images, and cards and digests of exports, without reading them again."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, sealed
from toolkit.core.cards import Card
from toolkit.errors import ToolkitError
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export

DIGEST = np.dtype("S16")  # an image's content digest; numpy compares these as padded bytes, which sixteen of them are
RACY = 2.0  # seconds: a file modified later than this before it was read may change again within one clock tick
RULES = 2  # raise it when what `onnx_file.read` refuses or how it digests changes: entries made under other rules are dropped

Digests = NDArray[Any]  # of dtype DIGEST


def as_digests(digests: Iterable[bytes]) -> Digests:
    """Digests of sixteen bytes as an array that the tables can search."""
    return np.array(list(digests), dtype=DIGEST)


class ImageIndex:
    """path → content digest, trusted while size and modification time are unchanged (as git's index does)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, int] = {}
        self._stats = np.zeros((0, 2), dtype=np.int64)
        self._digests = as_digests(())
        self._learned: dict[str, tuple[int, int, bytes]] = {}
        if path.exists():
            self._load()

    def known(self, paths: Sequence[str | Path]) -> tuple[Digests, NDArray[np.bool_]]:
        """The digests of these files as they are now, and which of them are known; the others have to be read."""
        names = [os.fspath(path) for path in paths]
        rows = np.fromiter((self._rows.get(name, -1) for name in names), dtype=np.int64, count=len(names))
        stats = _stats(names)
        digests, sure = as_digests([b""] * len(names)), np.zeros(len(names), dtype=bool)
        old = np.flatnonzero(rows >= 0)
        sure[old] = (self._stats[rows[old]] == stats[old]).all(axis=1)
        digests[sure] = self._digests[rows[sure]]
        if self._learned:
            for i, name in enumerate(names):
                size, when, digest = self._learned.get(name, (-1, -1, b""))
                if digest and (size, when) == tuple(stats[i]):
                    digests[i], sure[i] = digest, True
        return digests, sure

    def learn(self, path: Path, stat: os.stat_result, digest: bytes) -> None:
        """Remember a digest; `stat` was taken before the file was read."""
        if time.time() - stat.st_mtime > RACY:
            self._learned[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)

    def save(self) -> None:
        """Write what was learned.

        Raises:
            StoreError: the disk takes no more.
        """
        if not self._learned:
            return
        kept = [(name, row) for name, row in self._rows.items() if name not in self._learned]
        rows = np.array([row for _, row in kept], dtype=np.int64)
        names = [name for name, _ in kept] + list(self._learned)
        fresh = np.array([entry[:2] for entry in self._learned.values()], dtype=np.int64)
        stats = np.concatenate([self._stats[rows], fresh])
        digests = np.concatenate([self._digests[rows], as_digests(entry[2] for entry in self._learned.values())])
        text = np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), dtype=np.uint8)
        archive = io.BytesIO()
        np.savez(archive, names=text, stats=stats, digests=digests)
        sealed.write(self.path, archive.getvalue())
        self._take(names, stats, digests)

    def _load(self) -> None:
        try:
            data, _ = sealed.content(files.read(self.path))
            with np.load(io.BytesIO(data), allow_pickle=False) as saved:
                names = saved["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
                stats, digests = saved["stats"], saved["digests"]
            if stats.shape != (len(names), 2) or stats.dtype != np.int64 or digests.shape != (len(names),):
                raise sealed.DamagedError("its parts are of different lengths")
            if digests.dtype != DIGEST:
                raise sealed.DamagedError("it holds no digests of images")
        except Exception as error:  # noqa: BLE001 - an archive of before carries no digest, and there is no end to what damage raises
            sealed.set_aside(self.path, error, "images are read again")
            return
        self._take(names, stats, digests)

    def _take(self, names: Sequence[str], stats: NDArray[np.int64], digests: Digests) -> None:
        self._rows = dict(zip(names, range(len(names)), strict=True))
        self._stats, self._digests, self._learned = stats, digests, {}


class ExportIndex:
    """path → what `onnx_file.read` found there, trusted while size, modification time and inode are unchanged.

    Models that were read once stay listed under their digest when their file is gone, so that stored tables keep a name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._young: dict[str, Export] = {}  # read a moment ago, whether or not they are old enough to be remembered
        self._known = sealed.notes(path, "exports are read again", _understood) or {}

    def read(self, paths: Sequence[Path]) -> list[Export]:
        """The exports at these paths, from memory where a file is the one that was read before.

        Raises:
            ModelError, CardError: see `onnx_file.read`.
        """
        stamps = [_stamp(path) for path in paths]
        fresh = [
            path
            for path, stamp in zip(paths, stamps, strict=True)
            if stamp is None or self._known.get(_name(path), {}).get("stamp") != stamp
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashing lets go of the GIL
            read = dict(zip(fresh, pool.map(onnx_file.read, fresh), strict=True))
        exports = [read.get(path) or self._remembered(path) for path in paths]
        for path, stamp in zip(paths, stamps, strict=True):
            if path in read:
                self._learn(read[path], stamp)
        if read:
            self._save()
        return exports

    def look_again(self, folder: Path) -> None:
        """Read the exports of a folder, and those known ones that are other files now; what cannot be read is left out."""
        changed = [Path(name) for name, entry in self._known.items() if _stamp(Path(name)) not in (None, entry["stamp"])]
        for path in dict.fromkeys([*changed, *sorted(folder.glob("*.onnx"))]):
            with suppress(ToolkitError):
                self._young[_name(path)] = self.read([path])[0]

    def here(self) -> dict[str, tuple[str, Path | None]]:
        """By digest: (title, file) of every model that was ever read; the file is None where it is gone or another one now."""
        models: dict[str, tuple[str, Path | None]] = {}
        for name, entry in self._known.items():
            same = _stamp(Path(name)) == entry["stamp"]
            if same or models.get(entry["digest"], ("", None))[1] is None:
                title = Card.from_json(entry["card"], where=name).title
                models[entry["digest"]] = (title, Path(name) if same else None)
        return models | {export.digest: (export.title, export.path) for export in self._young.values()}

    def _remembered(self, path: Path) -> Export:
        entry = self._known[_name(path)]
        return Export(path, Card.from_json(entry["card"], where=str(path)), entry["digest"], entry["sha256"])

    def _learn(self, export: Export, stamp: list[int] | None) -> None:
        if stamp is not None and time.time() - stamp[1] / 1e9 > RACY:
            entry = {"stamp": stamp, "card": export.card.to_json(), "digest": export.digest, "sha256": export.sha256}
            self._known[_name(export.path)] = entry

    def _save(self) -> None:
        with suppress(ToolkitError):  # a folder that cannot be written is said by whoever has results to lose
            sealed.write_json(self.path, {"rules": RULES, "exports": self._known})


def _understood(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of an index of exports, seen to hold what they should; none where they were made under other rules.

    Raises:
        ToolkitError, ValueError, TypeError, KeyError, AttributeError: they do not.
    """
    if saved["rules"] != RULES:
        return {}
    known = {}
    for name, entry in saved["exports"].items():
        Card.from_json(entry["card"], where=name)
        texts = {key: entry[key] for key in ("card", "digest", "sha256")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{name} has no digest")
        known[str(name)] = {"stamp": [int(number) for number in entry["stamp"]], **texts}
    return known


def _name(path: Path) -> str:
    return str(path.absolute())


def _stamp(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _stats(names: Sequence[str]) -> NDArray[np.int64]:
    """Size and modification time of files, int64 [N, 2], -1 where there is none; the system's calls run without the GIL."""

    def part(some: Sequence[str]) -> list[tuple[int, int]]:
        stats = []
        for name in some:
            try:
                stat = os.stat(name)  # noqa: PTH116 - a Path apiece would double the time of a million files
                stats.append((stat.st_size, stat.st_mtime_ns))
            except (OSError, ValueError):
                stats.append((-1, -1))
        return stats

    if len(names) < 1000:
        return np.array(part(names), dtype=np.int64).reshape(-1, 2)
    size = 1 + len(names) // (os.cpu_count() or 1)
    with ThreadPoolExecutor() as pool:
        parts = pool.map(part, [names[start : start + size] for start in range(0, len(names), size)])
        return np.array([row for stats in parts for row in stats], dtype=np.int64)
