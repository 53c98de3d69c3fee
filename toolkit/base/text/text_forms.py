"""How a table of text is written: its encoding and the mark between its cells, told from its bytes where they are clear."""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from itertools import islice

from toolkit.errors import CompetitionError, few

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # beside the comma
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_NAMES = {"utf-8-sig": "UTF-8 with a byte-order mark", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}
_KOREAN = 0.8  # the share of letters beyond ASCII that must be everyday Hangul before bytes are read as CP949
_LINES = 200  # lines that must agree on the mark between cells


@dataclass(frozen=True)
class TextForm:
    """An encoding (Python's name) and the mark between cells; "" is to be told from the bytes."""

    encoding: str = ""
    delimiter: str = ""


@dataclass(frozen=True)
class Decoded:
    """The text of a table and the form that it was read in."""

    text: str
    form: TextForm

    @property
    def note(self) -> str:
        """How it was read where that is not plain comma-separated UTF-8, as the end of a sentence; else empty."""
        parts = []
        if self.form.encoding != "utf-8":
            parts.append(_NAMES.get(self.form.encoding, self.form.encoding.upper()))
        if self.form.delimiter != ",":
            parts.append(f"cells separated by {DELIMITERS.get(self.form.delimiter, repr(self.form.delimiter))}, not by a comma")
        return f"read as {', '.join(parts)}" if parts else ""


def decode(data: bytes, form: TextForm = TextForm()) -> Decoded:
    """The text of a table whose form is told, or certain from its bytes.

    Certain are byte-order marks, UTF-8, UTF-16 of mostly ASCII, and CP949 (which holds EUC-KR) whose letters are nearly all
    everyday Hangul; another mark than the comma where the header has no comma and all lines have as many of the mark.

    Raises:
        CompetitionError: it is not certain, or not what was told; the code is `encoding` or `delimiter`.
    """
    encoding = form.encoding or _encoding(data)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError) as error:
        raise CompetitionError(f"is not {encoding}: {error}", code="encoding") from error
    return Decoded(text, TextForm(encoding, form.delimiter or _delimiter(text)))


def _encoding(data: bytes) -> str:
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    head = data[:4096]
    if b"\0" in head:
        for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if zeros.count(0) > 0.7 * len(zeros) and head.count(0) == zeros.count(0):
                return name
        raise CompetitionError("is not a text file")
    if b"\0" in data:
        raise CompetitionError("is not a text file: it holds a NUL")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    if _is_korean(data):
        return "cp949"
    raise CompetitionError(
        "is not UTF-8, and its bytes do not say what it is",
        hint="A Korean file may be CP949, a western one CP1252, a Japanese one CP932.",
        code="encoding",
    )


def _is_korean(data: bytes) -> bool:
    try:
        letters = [letter for letter in data.decode("cp949") if ord(letter) > 127]
        everyday = sum("\uac00" <= letter <= "\ud7a3" and len(letter.encode("euc_kr", "replace")) == 2 for letter in letters)
    except UnicodeDecodeError:
        return False
    return everyday >= _KOREAN * len(letters)


def _delimiter(text: str) -> str:
    lines = text.split("\n", _LINES)[:_LINES]
    header = next((line for line in lines if line.strip()), "")
    if "," in header:
        return ","
    there = [mark for mark in DELIMITERS if mark in header and _agree(text, mark)]
    if len(there) > 1:
        raise CompetitionError(
            f"may separate its cells by {few(DELIMITERS[mark] for mark in there)}: {header.strip()!r}", code="delimiter"
        )
    return there[0] if there else ","


def _agree(text: str, mark: str) -> bool:
    """Whether the first lines all have as many cells as the header."""
    try:
        rows = [row for row in islice(csv.reader(io.StringIO(text, newline=""), delimiter=mark), _LINES) if row]
    except csv.Error:
        return False
    return len({len(row) for row in rows}) == 1
