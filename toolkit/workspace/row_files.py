"""Which file each row means: the one that its pattern names, or the one unambiguous file that is called a little otherwise."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from toolkit.errors import counted, few
from toolkit.images.decode import SUFFIXES
from toolkit.workspace import path_patterns

_SIDE = re.compile(r"(?P<whole>.+?)[._ -]?(?:mask|masks|seg|segmentation|annotation|superpixels)$", re.IGNORECASE)
Pieces = tuple[str, ...]  # a pattern filled from one row, cut at its stars


@dataclass(frozen=True)
class RowFiles:
    """The files of every row below a folder, in the table's order, and what is to be said of them.

    `files` are relative to the folder (absolute where a row names them so), empty where a row has none; `named` is what the
    pattern literally says. `changed` counts the rows whose file is called otherwise, by what differs, with an `example` (named,
    taken). `ambiguous` has, by row number, files of which each could be meant; `clashes` the numbers of rows that would share
    one. `unused` are images in the rows' folders that no row means.
    """

    files: Sequence[Sequence[str]]
    named: Sequence[str]
    changed: Mapping[str, int] = field(default_factory=dict)
    example: tuple[str, str] = ("", "")
    ambiguous: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    clashes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unused: Sequence[str] = ()

    @property
    def found(self) -> int:
        """Number of rows that have a file."""
        return sum(map(bool, self.files))

    @property
    def note(self) -> str:
        """What was taken though it is called otherwise, in one sentence; empty where nothing was."""
        if not self.changed:
            return ""
        what = " and ".join(self.changed)
        differ = counted(sum(self.changed.values()), "files differ")
        return f"{differ} in {what} from what rows name: {self.example[0]} is {self.example[1]}"

    @property
    def unused_note(self) -> str:
        """Images that no row means, in one sentence; empty where there are none."""
        return f"{counted(len(self.unused), 'images belong')} to no row: {few(self.unused)}" if self.unused else ""

    @property
    def doubt(self) -> str:
        """Why some rows have no file though there are some that they may mean, in a sentence; empty where there is no doubt."""
        for row, files in self.ambiguous.items():
            more = f" (and {counted(len(self.ambiguous) - 1, 'rows')} like it)" if len(self.ambiguous) > 1 else ""
            return f"{self.named[row]} is not there, and {few(files)} could each be meant{more}"
        for file, rows in self.clashes.items():
            return f"{few(self.named[row] for row in rows)} are not there, and {file} could be meant by each of them"
        return ""


def locate(folder: Path, pattern: str, rows: Iterable[Pieces]) -> RowFiles:
    """The files that filled patterns mean below a folder.

    In a pattern that ends in `.*` the star is exactly one image suffix; any other star takes images only, and no masks beside
    them. A literal name that is missing is looked for as the one file that differs only in case, Unicode normal form, image
    suffix or folder (by folders before it or left out), and that no other row means.
    """
    pieces = list(rows)
    find, there = path_patterns.finder(folder), _Folder(folder)
    one_suffix = pattern.endswith(".*")
    files: list[list[str]] = []
    for row in pieces:
        if len(row) == 1:
            files.append([row[0]] if there.has(row[0]) else [])
        else:
            files.append(_pictures(find(row), row if one_suffix else None))
            if one_suffix and len(row) == 2:
                there.names(posixpath.dirname(row[0]))
    named = ["*".join(row) for row in pieces]
    lost = [number for number, own in enumerate(files) if not own]
    moved = _Moved(there, {file for own in files for file in own})
    for number in lost:
        if len(pieces[number]) == 1 or (one_suffix and len(pieces[number]) == 2):
            moved.look(number, pieces[number][0].removesuffix(".") if one_suffix else pieces[number][0])
    taken = moved.settled({number: named[number] for number in lost})
    for number, (file, _) in taken.items():
        files[number] = [file]
    example = next(((named[number], file) for number, (file, _) in taken.items()), ("", ""))
    changed = Counter(what for _, what in taken.values())
    unused = there.unused({file for own in files for file in own})
    return RowFiles(files, named, changed, example, moved.ambiguous, moved.clashes, unused)


def stem(name: str) -> str:
    """A file's name without its image suffixes: `te000.1.png` is `te000.1`, whatever the case; others stay whole.

    >>> stem("te000.1.PNG"), stem("x0.jpg.png"), stem("notes.txt")
    ('te000.1', 'x0', 'notes.txt')
    """
    while (cut := posixpath.splitext(name))[1].lower() in SUFFIXES and cut[0]:
        name = cut[0]
    return name


def folded(text: str) -> str:
    """Text as it is compared where case and Unicode normal form do not count.

    >>> folded("Cafe\\u0301") == folded("CAF\\u00c9")
    True
    """
    return _composed(_composed(text).casefold())


def _pictures(names: Sequence[str], row: Pieces | None) -> list[str]:
    """Those of the files that a star matched that are pictures; `row` where its star stands for one image suffix."""
    images = [name for name in names if posixpath.splitext(name)[1].lower() in SUFFIXES]
    if row is not None:
        end = row[-2] if len(row) > 2 else row[0]
        return [name for name in images if f"{posixpath.splitext(name)[0]}.".endswith(end)]
    stems = {stem(name) for name in images}
    return [name for name in images if not ((side := _SIDE.match(stem(name))) and side["whole"] in stems)]


class _Folder:
    """A folder's files: listed where rows look, all of them only once a row misses its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, frozenset[str]] = {}

    def has(self, name: str) -> bool:
        """Whether that very file is there: where a file system takes another case or normal form for it, it is not."""
        inside, _, last = name.rpartition("/")
        names = self._listed.get(inside)
        if names is None:
            names = self.names(inside or ("/" if name.startswith("/") else ""))
        return last in names or (last in ("", ".", "..") and (self.folder / name).exists())

    def names(self, inside: str) -> frozenset[str]:
        """The names in a folder below this one, which is listed once."""
        if inside not in self._listed:
            try:
                self._listed[inside] = frozenset(os.listdir(self.folder / inside))  # noqa: PTH208 - names, of a million files
            except (OSError, ValueError):
                self._listed[inside] = frozenset()
        return self._listed[inside]

    def unused(self, used: set[str]) -> list[str]:
        """Images in the listed folders below this one that are not used."""
        below = {inside: names for inside, names in self._listed.items() if not inside.startswith(("/", ".."))}
        every = (f"{inside}/{name}" if inside else name for inside, names in below.items() for name in names)
        return sorted(name for name in every if name not in used and _is_image(posixpath.basename(name)))

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """All images below the folder by what their names have in common with names a little different."""
        places: dict[str, list[str]] = {}
        for parent, folders, names in os.walk(self.folder, followlinks=False):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(parent).relative_to(self.folder).as_posix()
            for name in filter(_is_image, names):
                places.setdefault(folded(stem(name)), []).append(name if inside == "." else f"{inside}/{name}")
        return places


class _Moved:
    """Rows that miss their file, and the files that they may mean instead."""

    def __init__(self, there: _Folder, used: set[str]) -> None:
        self.there, self.used = there, used
        self.ambiguous: dict[int, tuple[str, ...]] = {}
        self.clashes: dict[str, tuple[int, ...]] = {}
        self._wanted: dict[int, str] = {}
        self._taken: dict[int, str] = {}

    def look(self, number: int, name: str) -> None:
        """Find what row `number` means by the name, which is not there."""
        wanted = posixpath.normpath(name.replace("\\", "/"))
        home, last = posixpath.split(wanted)
        files = [
            file
            for file in self.there.by_stem.get(folded(stem(last)), ())
            if _ends_alike(posixpath.dirname(file), home) and (file not in self.used or file == wanted)
        ]
        self._wanted[number] = wanted
        if len(files) > 1:
            self.ambiguous[number] = tuple(sorted(files))
        elif files:
            self._taken[number] = files[0]

    def settled(self, named: Mapping[int, str]) -> dict[int, tuple[str, str]]:
        """The file of each row that has just one, and what differs; files that rows of other names would share are none's."""
        rows: dict[str, list[int]] = {}
        for number, file in self._taken.items():
            rows.setdefault(file, []).append(number)
        for file, numbers in rows.items():
            if len({named[number] for number in numbers}) > 1:
                self.clashes[file] = tuple(numbers)
        shared = {number for numbers in self.clashes.values() for number in numbers}
        return {
            number: (file, _differing(self._wanted[number], file, slashes="\\" in named[number]))
            for number, file in self._taken.items()
            if number not in shared
        }


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _ends_alike(ours: str, theirs: str) -> bool:
    """Whether one folder is the end of the other: folders before it may be there or not, another one may not.

    >>> _ends_alike("test", ""), _ends_alike("test/p1", "p1"), _ends_alike("p3", "p1")
    (True, True, False)
    """
    short, long = sorted(([part for part in folded(path).split("/") if part] for path in (ours, theirs)), key=len)
    return not short or long[-len(short) :] == short


def _differing(wanted: str, file: str, *, slashes: bool) -> str:
    """What a file's name differs in from the one that was wanted, in words."""
    return " and ".join(_differences(wanted, file, slashes=slashes)) or "spelling"


def _differences(wanted: str, file: str, *, slashes: bool) -> Iterator[str]:
    (home, name), (theirs, other) = posixpath.split(wanted), posixpath.split(file)
    if slashes:
        yield "slashes"
    if folded(home) != folded(theirs):
        yield "folder"
    end, suffix = name[len(stem(name)) :], other[len(stem(other)) :]
    if end.lower() != suffix.lower():
        yield "image suffix"
    pairs = ((stem(name), stem(other)), *([(end, suffix)] if end.lower() == suffix.lower() else []))
    if any(_composed(a) != _composed(b) for a, b in pairs):
        yield "case"
    if any(a != b and folded(a) == folded(b) and a.casefold() != b.casefold() for a, b in pairs):
        yield "Unicode normal form"


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
