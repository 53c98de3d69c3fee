"""JSON and TOML that stand on disk, read with limits: whoever wrote them, reading ends soon, with a value or an error."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from toolkit.base import files
from toolkit.errors import DataError

BYTES = 1 << 26  # of one document; the largest of ours, an index of exports, has some 2 kB for each
DEPTH = 64  # tables inside tables
NUMBER = 1 << 63  # whole numbers stay below, as numpy's do


def read_json(path: Path, *, limit: int = BYTES) -> Any:
    """What a JSON file says.

    Raises:
        OSError: it is not there, or no plain file.
        ValueError: it is too large, no UTF-8, no JSON, or breaks a limit of `bounded`.
    """
    return parse_json(read_text(path, limit=limit))


def read_toml(path: Path, *, limit: int = 1 << 22) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        OSError: it is not there, or no plain file.
        ValueError: it is too large, no UTF-8, no TOML, or breaks a limit of `bounded`.
    """
    return parse_toml(read_text(path, limit=limit))


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is no JSON, or breaks a limit of `bounded`.
    """
    try:
        return bounded(json.loads(text))
    except RecursionError:
        raise ValueError("tables are nested too deeply") from None


def to_json(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON, so that it can be read again.

    Raises:
        DataError: it breaks a limit of `bounded`.
    """
    try:
        bounded(document)
    except ValueError as error:
        raise DataError(f"it cannot be written as JSON: {error}", hint="Rename what has such a name.") from error
    return json.dumps(document, indent=indent, ensure_ascii=False)


def parse_toml(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises:
        ValueError: it is no TOML, or breaks a limit of `bounded`.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError("tables are nested too deeply") from None
    bounded(raw)
    return raw


def bounded(raw: Any) -> Any:
    """The same value, where nothing in it is beyond what any document of ours needs.

    Raises:
        ValueError: more than DEPTH levels, a whole number beyond 64 bits, text with a NUL or half a surrogate pair, which no
            path and no table may hold.
    """
    level = [raw]
    for _ in range(DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list | tuple):
                below.extend(value)
            elif isinstance(value, str):
                check_text(value)
            elif isinstance(value, int) and not -NUMBER <= value < NUMBER:
                raise ValueError("a whole number is too large")
        if not below:
            return raw
        level = below
    raise ValueError("tables are nested too deeply")


def check_text(text: str) -> None:
    """Refuse text that no file of ours may hold.

    Raises:
        ValueError: a NUL, or half a character (a lone surrogate), with what stands around it.
    """
    place = text.find("\0")
    if place < 0:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = error.start
    if place >= 0:
        raise ValueError(f"text with a NUL or half a character: {text[max(place - 20, 0) : place + 20]!r}")


def read_text(path: Path, *, limit: int = BYTES) -> str:
    """The text of a plain UTF-8 file.

    Raises:
        OSError: it is not there, or no plain file.
        ValueError: it is too large or no UTF-8.
    """
    with files.opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return data.decode()
