"""What is printed for people, as values: tables, facts and lines, safe to print, and their plain form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

GAP = 2  # cells between two columns
INTERVAL = "95 % interval"
KEY = 8  # cells that the words before facts take at least, so that groups of facts stand in one line

# What would steer a terminal or hide: controls (C0, C1), soft hyphen, zero-width space and BOM, line separators, overrides and
# isolates of the writing direction (U+202A.., U+2066..), halves of surrogate pairs, which stand for bytes of undecodable file
# names. Joiners and direction marks stay: emoji, Persian and Hebrew need them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_NARROW = re.compile("[ -~\xa0-\u02ff\u2010-\u2027←-↓−✓✗]*")  # a cell each, known without a table


class Mark(str):
    """Text that means something good, odd or bad, which colour may show besides."""

    tone: str
    __slots__ = ("tone",)

    def __new__(cls, text: object, tone: str) -> Self:
        """Text with a tone: good, odd or bad."""
        self = super().__new__(cls, text)
        self.tone = tone
        return self


class Verbatim(str):
    """Text to be copied, such as a command: never folded."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Rows under a head; without one, facts: a word, and what there is to say.

    `kinds` has a letter for each column, as LaTeX's tabular: `l` and `r` are kept whole (names left, numbers right), `p` are
    words that may be folded. `key` is the least width of the first column.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: str
    caption: str = ""
    key: int = 0

    def __post_init__(self) -> None:
        if set(self.kinds) - set("lrp") or any(len(row) != len(self.kinds) for row in (*self.rows, self.head or self.kinds)):
            raise ValueError(f"columns {self.kinds!r} do not fit head {self.head!r} and rows {self.rows!r}")

    def __str__(self) -> str:
        return "\n".join(lines(self))

    @property
    def lengths(self) -> list[int]:
        """The width of each column, in cells, where nothing is folded."""
        every = [self.head, *self.rows] if self.head else self.rows
        widths = [max(map(width, column)) for column in zip(*every, strict=True)] or [0] * len(self.kinds)
        return [max(widths[0], self.key), *widths[1:]]


Part = str | Table  # a str is one line


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Lines that begin with a word: `Wrote     submission.csv`; an empty word continues the line before."""
    return Table((), list(rows), "lp", key=KEY)


def interval(low: float, high: float, digits: int = 5, *, sign: str = "") -> str:
    """The ends of an interval; `sign="+"` for differences."""
    return f"{low:{sign}.{digits}f} {'to' if sign else '–'} {high:{sign}.{digits}f}"


def safe(text: str) -> str:
    """The text with what would steer a terminal written out (`\\x1b`, `\\n`, `\\u202e`): names are whatever others chose."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def width(text: str) -> int:
    """How many cells of a terminal the text takes, made safe: two for Hangul and most emoji."""
    text = safe(text)
    if _NARROW.fullmatch(text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def lines(part: Part) -> list[str]:
    """The plain form: one line for each row, columns aligned, two spaces between them, nothing folded."""
    if isinstance(part, str):
        return [safe(part)]
    caption = [safe(part.caption)] if part.caption else []
    every = [part.head, *part.rows] if part.head else part.rows
    places = list(zip(part.kinds, part.lengths, strict=True))
    return caption + [(" " * GAP).join(map(_pad, row, places)).rstrip() for row in every]


def _pad(cell: str, place: tuple[str, int]) -> str:
    kind, room = place
    space = " " * (room - width(cell))
    return space + safe(cell) if kind == "r" else safe(cell) + space


def to_json(record: Mapping[str, Any]) -> str:
    """One JSON object on one line, as strict parsers want it: null for what is no finite number, controls as escapes."""
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(cell) for name, cell in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(cell) for cell in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
