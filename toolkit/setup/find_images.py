"""Finding image files: which folder and pattern name the picture of every row of a table, proved by looking."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from toolkit.images.render import SUFFIXES
from toolkit.workspace import path_patterns, row_files

OURS = {"runs", "folds", "oof", "store", "cache", "predictions", "submissions", "reports", "recipes", "exports"}
NEARLY = 0.9  # the share of a table's rows that must have their file before a pattern is believed
_TRIED = 60  # rows looked at before all are
_MANY = 20  # more folders than this beside each other are ids or classes, not parts of a data set
_PARTS = {"train": re.compile(r"train", re.IGNORECASE), "test": re.compile(r"test|eval", re.IGNORECASE)}

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Index:
    """Every image below some folders: `files` as absolute texts, `folders` → the names of the images right in them."""

    tops: tuple[Path, ...]
    folders: Mapping[str, tuple[str, ...]]
    files: frozenset[str]

    @cached_property
    def suffixes(self) -> list[str]:
        """The endings that occur, as written, the most frequent first."""
        return [
            s
            for s, _ in Counter(posixpath.splitext(name)[1] for names in self.folders.values() for name in names).most_common()
        ]

    @cached_property
    def stems(self) -> frozenset[str]:
        """The names of all files without suffix."""
        return frozenset(posixpath.splitext(name)[0] for names in self.folders.values() for name in names)

    def roots(self) -> list[str]:
        """Folders in which a pattern may start: those with images in or below them, without the many of a kind."""
        parents: dict[str, set[str]] = {}
        tops = {str(top) for top in self.tops}
        for folder in self.folders:
            while folder not in tops and (parent := posixpath.dirname(folder)) != folder:
                parents.setdefault(parent, set()).add(folder)
                folder = parent  # noqa: PLW2901 - climbing
        roots, queue = [], [top for top in tops if top in self.folders or top in parents]
        while queue:
            roots.append(folder := queue.pop())
            below = parents.get(folder, set())
            queue += below if len(below) <= _MANY else []
        return sorted(set(roots))


@dataclass(frozen=True)
class Match:
    """A folder and pattern, and the file (or, for `/*`, the folder) that it gives for each row: "" where there is none.

    `note` says which files are called a little otherwise than the rows name them.
    """

    folder: str
    pattern: str
    files: tuple[str, ...]
    note: str = ""

    @cached_property
    def found(self) -> int:
        """Number of rows with a file."""
        return sum(map(bool, self.files))

    def covers(self, other: Match) -> bool:
        """Whether this one gives every file that the other gives."""
        return all(ours == theirs or not theirs for ours, theirs in zip(self.files, other.files, strict=True))


def index(tops: Iterable[Path]) -> Index:
    """List the images below the folders (absolute); links are followed, hidden folders and a workspace's own are not."""
    folders: dict[str, tuple[str, ...]] = {}
    every = tuple(dict.fromkeys(tops))
    seen: set[str] = set()
    for top in every:
        for parent, below, names in os.walk(top, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen and parent != str(top):
                below.clear()
                continue
            seen.add(real)
            below[:] = [n for n in below if not n.startswith(".") and not (parent == str(top) and n in OURS)]
            images = tuple(sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")))
            if images:
                folders[Path(parent).as_posix()] = images
    return Index(every, folders, frozenset(f"{folder}/{name}" for folder, names in folders.items() for name in names))


def matches(
    table: Mapping[str, Sequence[str]],
    images: Index,
    *,
    part: Part,
    key: str = "",
    like: str = "",
    folder: Path | None = None,
    pattern: str = "",
) -> list[Match]:
    """The folders and patterns that give nearly all rows a file, one of those that give the same files.

    `table` is column → cells; the pattern `like` is preferred, then one of the id column `key`. Without `folder`, one whose
    name speaks of the other part is left out, and one that speaks of this part is preferred. `pattern` restricts the search.
    """
    count = len(next(iter(table.values()), ()))
    rows = range(0, count, max(1, count // _TRIED))
    roots = [folder.as_posix()] if folder else images.roots()
    good: list[Match] = []
    for tried in ([pattern],) if pattern else (_patterns(table, images, rows), _filled_up(table, images, rows)):
        promising = [(p, r) for p in tried for r in roots if _share(_files(r, p, table, rows, images)) >= NEARLY]
        full = [Match(r, p, _files(r, p, table, range(count), images)) for p, r in promising]
        if good := [match for match in full if _share(match.files) >= NEARLY]:
            break
    good = good or _loosely(table, images, roots, rows, pattern)
    good = [match for match in good if not match.pattern.endswith("/*")] or good  # whole folders only where no file fits
    most = max((len(set(match.files)) for match in good), default=0)
    good = [
        match for match in good if 2 * len(set(match.files)) > most
    ]  # labels 0 and 1 fit files 0.png and 1.png in every row
    if folder is None:
        good = _of_part(good, part, images)
    good.sort(
        key=lambda match: (
            -match.found,
            match.note.count(" and "),
            match.pattern != like,
            *_plainness(match.pattern, key),
            match.folder,
        )
    )
    kept: list[Match] = []
    for match in good:
        if not any(better.covers(match) for better in kept):
            kept.append(match)
    return [match if all(match.files) else _completed(match, table) for match in kept]


def _loosely(
    table: Mapping[str, Sequence[str]], images: Index, roots: Sequence[str], rows: Sequence[int], pattern: str
) -> list[Match]:
    """Where no pattern names the files: those that name nearly all but for case, normal form, image suffix or backslashes."""
    tried = [pattern] if pattern else list(_patterns(table, images, rows, same=_loose))
    tried = [p for p in tried if not p.endswith("*") or p.endswith(".*")]
    tried = [p for p in tried if all(name in table for name in path_patterns.columns(p))]
    matches = []
    for root, candidate in ((root, candidate) for root in roots for candidate in tried):
        located = _located(root, candidate, table, rows)
        if located.found >= NEARLY * len(rows) and not any("folder" in what for what in located.changed):
            every = range(len(next(iter(table.values()))))
            matches.append(_as_match(root, candidate, _located(root, candidate, table, every)))
    return [match for match in matches if _share(match.files) >= NEARLY]


def _loose(text: str) -> str:
    """A file's name or its stem as it is compared where case, normal form and image suffix do not count."""
    return row_files.folded(row_files.stem(text))


def _located(root: str, pattern: str, table: Mapping[str, Sequence[str]], rows: Iterable[int]) -> row_files.RowFiles:
    names = path_patterns.columns(pattern)
    filled = (path_patterns.fill(pattern, {name: table[name][row] for name in names}) for row in rows)
    return row_files.locate(Path(root), pattern, filled)


def _as_match(root: str, pattern: str, located: row_files.RowFiles) -> Match:
    files = tuple(posixpath.normpath(posixpath.join(root, own[0])) if own else "" for own in located.files)
    return Match(root, pattern, files, located.note)


def _completed(match: Match, table: Mapping[str, Sequence[str]]) -> Match:
    """The match with the files of its last rows that are called a little otherwise."""
    if match.pattern.endswith("*") and not match.pattern.endswith(".*"):
        return match
    located = _as_match(match.folder, match.pattern, _located(match.folder, match.pattern, table, range(len(match.files))))
    return replace(match, files=tuple(a or b for a, b in zip(match.files, located.files, strict=True)), note=located.note)


def class_folders(images: Index, *, folder: Path | None = None) -> list[str]:
    """Folders without images of their own, whose folders (two or more, each with images) are named after classes."""
    folders = []
    for root in [folder.as_posix()] if folder else images.roots():
        below = [f for f in images.folders if posixpath.dirname(f) == root]
        deeper = [f for f in images.folders if f.startswith(f"{root}/") and f not in below]
        parts = [f for f in below if _speaks(posixpath.basename(f), "train") or _speaks(posixpath.basename(f), "test")]
        other = folder is None and _speaks(_relative(root, images), "test")
        if len(below) >= 2 and not deeper and not parts and not other and root not in images.folders:
            folders.append(root)
    named = [root for root in folders if _speaks(_relative(root, images), "train")]
    return named or folders


def _plainness(pattern: str, key: str) -> tuple[Any, ...]:
    """What sorts simple patterns first."""
    return len(path_patterns.columns(pattern)), "*" in pattern, f"{{{key}}}" not in pattern, len(pattern)


def _patterns(
    table: Mapping[str, Sequence[str]], images: Index, rows: Sequence[int], same: Callable[[str], str] = str
) -> Iterator[str]:
    """Patterns worth trying: a column that ends like a file, below up to two columns that are folders' names.

    Names are the same where `same` says the same of them.
    """
    every = {name for files in images.folders.values() for name in files}
    names, stems = {same(name) for name in every}, {same(posixpath.splitext(name)[0]) for name in every}
    homes = {part for folder in images.folders for part in folder.split("/")}
    ends, folders = [], []
    for column, cells in table.items():
        last = [posixpath.basename(cells[i]) for i in rows]
        if same is not str:
            last = [same(posixpath.basename(cells[i].replace("\\", "/"))) for i in rows]
        whole, bare, home = (sum(cell in known for cell in last) / max(1, len(last)) for known in (names, stems, homes))
        ends += [f"{{{column}}}"] if whole >= NEARLY else []
        ends += [f"{{{column}}}{suffix}" for suffix in (*images.suffixes, ".*")] if bare >= NEARLY else []
        ends += [f"{{{column}}}/*"] if home >= NEARLY else []
        folders += [column] if home >= NEARLY else []
    above = [f"{{{outer}}}/" for outer in folders] + [f"{{{a}}}/{{{b}}}/" for a in folders for b in folders if a != b]
    for end in ends:
        yield from (f"{before}{end}" for before in ("", *above) if end.partition("}")[0] not in before)


def _filled_up(table: Mapping[str, Sequence[str]], images: Index, rows: Sequence[int]) -> Iterator[str]:
    """Patterns where cells are numbers that files write with zeros in front, all of one length."""
    widths = sorted({len(stem) for stem in images.stems if stem.isdecimal()})
    for column, cells in table.items():
        numbers = {cells[i] for i in rows if cells[i].isdecimal()}
        if len(numbers) < NEARLY * len(rows):  # classes, not names
            continue
        for width in widths:
            if sum(number.zfill(width) in images.stems for number in numbers) >= NEARLY * len(rows):
                yield from (f"{{{column}:0{width}}}{suffix}" for suffix in (*images.suffixes, ".*"))


def _files(root: str, pattern: str, table: Mapping[str, Sequence[str]], rows: Sequence[int], images: Index) -> tuple[str, ...]:
    """What each row's file is, as an absolute text, or "" where there is none."""
    names = path_patterns.columns(pattern)
    if any(name not in table for name in names):
        return ("",) * len(rows)
    find = path_patterns.finder(Path(root))
    files = []
    for row in rows:
        pieces = path_patterns.fill(pattern, {name: table[name][row] for name in names})
        if pattern.endswith("/*") and len(pieces) == 2:
            here = [posixpath.normpath(posixpath.join(root, pieces[0]))]
            files.append(here[0] if here[0] in images.folders and any(map(str.strip, pieces)) else "")
            continue
        if len(pieces) == 2 and pieces[1] == "" and pieces[0].endswith("."):
            names_of = (posixpath.normpath(posixpath.join(root, f"{pieces[0][:-1]}{suffix}")) for suffix in images.suffixes)
        else:
            names_of = (posixpath.normpath(posixpath.join(root, name)) for name in find(pieces))
        files.append(next((name for name in names_of if name in images.files), ""))
    return tuple(files)


def _share(files: Sequence[str]) -> float:
    return sum(map(bool, files)) / max(1, len(files))


def _of_part(matches: list[Match], part: Part, images: Index) -> list[Match]:
    other: Part = "test" if part == "train" else "train"

    def where(match: Match) -> str:
        first = next(filter(None, match.files))
        return _relative(first if match.pattern.endswith("/*") else posixpath.dirname(first), images)

    ours = [m for m in matches if _speaks(where(m), part) or not _speaks(where(m), other)]
    return [m for m in ours if _speaks(where(m), part)] or ours


def _speaks(path: str, part: Part) -> bool:
    return bool(_PARTS[part].search(path))


def _relative(path: str, images: Index) -> str:
    """The path below the folder that was searched, which is all that may speak: a workspace may be called `test-drive`."""
    inside = [path.removeprefix(top.as_posix()) for top in images.tops if path.startswith(top.as_posix())]
    return min(inside, key=len, default=path)
