"""Patterns: how a table's row names its image files, as in `{id}.png`, `{id:05}.png` or `{patient_id}/{image_id}.*`."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from toolkit.errors import CompetitionError, few

# not str.format: a column may be called "file.name" or "image: id"; `:05` fills numbers up with zeros
_FIELD = re.compile(r"\{([^{}]+?)(?::0([1-9]\d?))?\}")


def columns(pattern: str) -> list[str]:
    """The columns that a pattern names, each once.

    Raises:
        CompetitionError: it names none.
    """
    names = list(dict.fromkeys(name for name, _ in _FIELD.findall(pattern)))
    if not names:
        raise CompetitionError(f"pattern {pattern!r} names no column", hint='Write for example "{id}.png".')
    return names


def require(pattern: str, known: Sequence[str], where: str) -> None:
    """Make sure that a table has the columns that a pattern names.

    Raises:
        CompetitionError: it has not.
    """
    if missing := [name for name in columns(pattern) if name not in known]:
        raise CompetitionError(f"{where}: pattern {pattern!r} names {few(missing)}; there are {few(known, limit=12)}")


def fill(pattern: str, row: Mapping[str, str]) -> tuple[str, ...]:
    """The pattern with one row's cells put in, cut at its own `*`: a cell's `*` stays a letter.

    >>> fill("{fold}/{id:04}.*", {"fold": "a*", "id": "7"})
    ('a*/0007.', '')
    """
    return tuple(_FIELD.sub(lambda match: row[match[1]].zfill(int(match[2] or 0)), piece) for piece in pattern.split("*"))


def filler(pattern: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """As `fill` for many rows, each given as its cells of `columns(pattern)`; the pattern is read once."""
    names, fields = columns(pattern), _FIELD.findall(pattern)
    if "*" in pattern or len(fields) > len(names) or any(width for _, width in fields):
        return lambda row: fill(pattern, dict(zip(names, row, strict=True)))
    template = "%s".join(piece.replace("%", "%%") for piece in _FIELD.split(pattern)[::3])
    return lambda row: (template % row,)


def finder(folder: Path) -> Callable[[tuple[str, ...]], list[str]]:
    """A function from a filled pattern to the names, relative to `folder` and sorted, of the files that it means.

    Without a `*` the name is returned whether or not there is a file. Each folder is listed only once, since all rows share it.
    """

    @cache
    def listing(inside: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(folder / inside) if not entry.name.startswith("."))
        except OSError:
            return []

    def find(pieces: tuple[str, ...]) -> list[str]:
        if len(pieces) == 1:
            return [pieces[0]]
        if any("/" in piece for piece in pieces[1:]):
            return _through_folders(folder, pieces)
        inside, slash, prefix = pieces[0].rpartition("/")
        names, own = listing(inside), (prefix, *pieces[1:])
        paths = []
        for name in names[bisect.bisect_left(names, prefix) :]:
            if not name.startswith(prefix):
                break
            if matches(name, own):
                paths.append(f"{inside}{slash}{name}")
        return paths

    return find


def matches(name: str, pieces: Sequence[str]) -> bool:
    """Whether a name is these pieces in order with anything between them: the first place of each is as good as any other.

    In time of the name's length: a regular expression of six stars takes minutes on a name of 200 letters.
    """
    first, *between, last = pieces
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for piece in between:
        at = name.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _through_folders(folder: Path, pieces: Sequence[str]) -> list[str]:
    """The files of a pattern whose stars stand for names of folders, relative to `folder` and sorted; `**` for any depth."""
    parts: list[list[str]] = [[""]]
    for number, piece in enumerate(pieces):
        head, *further = piece.split("/")
        parts[-1] = [*parts[-1], head] if number else [head]
        parts += [[word] for word in further]
    reached = [""]
    for part in parts:
        if part == [""]:
            continue
        below: dict[str, None] = {}
        for inside in reached:
            below |= dict.fromkeys(_step(folder, inside, part))
        reached = list(below)
    return sorted(reached)


def _step(folder: Path, place: str, part: Sequence[str]) -> list[str]:
    """What one part of a pattern leads to from a folder inside `folder`."""
    inside = f"{place}/" if place else ""
    if len(part) == 1:
        there = os.path.lexists(folder / inside / part[0])
        return [f"{inside}{part[0]}"] if there else []
    if len(part) == 3 and not any(part):  # two stars alone
        tops = (os.path.relpath(top, folder) for top, _, _ in os.walk(folder / place))
        return ["" if top == "." else top for top in tops]
    try:
        names = [entry.name for entry in os.scandir(folder / place)]
    except OSError:
        return []
    return [f"{inside}{name}" for name in names if matches(name, part)]
