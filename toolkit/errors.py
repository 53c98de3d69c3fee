"""The error tree: everything a user can cause, each saying what, where and what to do next.

ToolkitError
  DataError
    ImageError
    SplitError
    AlignmentError
    CompetitionError
  ModelError
    CardError
    ParityError
  DeviceError
  StoreError
  TrainingError
  UploadError
  SubmissionError
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


class ToolkitError(Exception):
    """A problem the user can mend; `message` says what and where, `hint` what to do next.

    `code` names the remedy where a front end has one of its own: `toolkit.cli.advice` says it as an option of the command
    line. Neither message nor hint speak of options, so that they help whoever calls the library from Python.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class DataError(ToolkitError):
    """Something is wrong with the data on disk."""


class ImageError(DataError):
    """An image cannot be read; the message names the file."""


class SplitError(DataError):
    """A split has gaps, repeats, leaks or a class too small for the number of folds."""


class AlignmentError(DataError):
    """Two tables do not speak of the same ids or classes; the message names the first few."""


class CompetitionError(DataError):
    """The workspace file or one of the tables it names is missing, unreadable or contradictory."""


class ModelError(ToolkitError):
    """A model file cannot be used."""


class CardError(ModelError):
    """A model carries no card, an unreadable card or one written by a newer version."""


class ParityError(ModelError):
    """An export does not reproduce the model it was made from; `gap` is the largest difference seen."""

    def __init__(self, message: str, *, gap: float, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.gap = gap


class DeviceError(ToolkitError):
    """A device was asked for and is not there (onnxruntime would fall back to the CPU with only a log line)."""


class StoreError(ToolkitError):
    """The prediction store cannot be read or written."""


class TrainingError(ToolkitError):
    """A training run cannot go on."""


class UploadError(ToolkitError):
    """A submission did not reach the platform."""


class SubmissionError(ToolkitError):
    """A submission breaks the rules; `problems` lists every one of them, not the first."""

    def __init__(self, message: str, *, problems: Sequence[object] = (), hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.problems = tuple(problems)


def few(items: Iterable[object], *, limit: int = 3) -> str:
    """Quote the first few items and count the rest: `'a', 'b', 'c' and 7 more`."""
    every = list(items)
    shown = ", ".join(repr(str(item)) for item in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit:,} more"


_ONE = {"people": "person", "entries": "entry"}
_S = re.compile(r"(?<=ss|ch|sh|.x)es$|s$")
_SAYS = {"have": "has", "are": "is", "were": "was", "do": "does"} | {
    word: f"{word}s" for word in ("belong", "differ", "get", "give", "hold", "lack", "lie", "name", "need", "say", "show")
}


def counted(count: int, words: str) -> str:
    """A number and what it counts, given in the plural, with the verb if one follows: `3 rows have`, `1 row has`."""
    if count != 1:
        return f"{count:,} {words}"
    parts = words.split()
    if parts[-1] in _SAYS:
        parts[-1] = _SAYS[parts[-1]]
    noun = parts.index("of") - 1 if "of" in parts else len(parts) - 1 - (parts[-1] in _SAYS.values())
    parts[noun] = _ONE.get(parts[noun]) or _S.sub("", parts[noun])
    return f"1 {' '.join(parts)}"
