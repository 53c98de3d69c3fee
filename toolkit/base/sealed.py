"""Bytes with their digest, checked when they are read; what is damaged is set aside by name, so that it is made again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import xxhash

from toolkit.base import documents, files
from toolkit.errors import DataError, ToolkitError

MARK = b"\x93tkseal\x01"  # then the digest: the last bytes of a file that carries one
TAIL = len(MARK) + 16
KEY = "seal"  # of JSON objects
DAMAGED = ".damaged"  # the end of the name of what was set aside
STEP = 1 << 20  # bytes hashed at a time
LARGEST = 1 << 28  # bytes of an index or a note; one that is larger is none of ours

_log = logging.getLogger("toolkit")


class DamagedError(DataError):
    """A file is not what was written."""


class Sealing:
    """The digest of a file in the making; `context` is what it belongs to, and not written."""

    def __init__(self, context: str = "") -> None:
        self._digest = xxhash.xxh3_128(context.encode())

    def add(self, part: Any) -> None:
        """Take in bytes, or a contiguous array."""
        self._digest.update(part)

    def tail(self) -> bytes:
        """What closes the file."""
        return MARK + self._digest.digest()

    def hexdigest(self) -> str:
        """The digest alone."""
        return str(self._digest.hexdigest())


def tail(*parts: Any, context: str = "") -> bytes:
    """What closes a file of these parts; see `Sealing`."""
    seal = Sealing(context)
    for part in parts:
        seal.add(part)
    return seal.tail()


def content(data: bytes, *, context: str = "") -> tuple[memoryview, bool]:
    """What a file holds without its tail, and whether it has one; those of before have none.

    Raises:
        DamagedError: the digest is another.
    """
    whole = memoryview(data)
    if len(data) < TAIL or whole[-TAIL:-16] != MARK:
        if MARK in bytes(whole[-TAIL:]):
            raise DamagedError("it is cut short")
        return whole, False
    if tail(whole[:-TAIL], context=context) != whole[-TAIL:]:
        raise DamagedError("its digest says that it was changed")
    return whole[:-TAIL], True


def carries(file: IO[bytes], size: int) -> bool:
    """Whether a file of so many bytes ends with a digest.

    Raises:
        DamagedError: it is shorter.
    """
    if size < TAIL:
        return False
    file.seek(size - TAIL)
    return exactly(file, TAIL).startswith(MARK)


def check(file: IO[bytes], ends: int, context: str = "") -> None:
    """Compare what an unbuffered file holds up to `ends` with the digest that follows.

    Raises:
        DamagedError: they differ.
    """
    file.seek(0)
    seal, left = Sealing(context), ends
    buffer = memoryview(bytearray(min(STEP, max(ends, 1))))
    while left and (count := file.readinto(buffer[: min(left, len(buffer))])):  # type: ignore[attr-defined]
        seal.add(buffer[:count])
        left -= count
    if left or seal.tail() != exactly(file, TAIL):
        raise DamagedError("its digest says that it was changed")


def exactly(file: IO[bytes], count: int) -> bytes:
    """So many bytes.

    Raises:
        DamagedError: there are fewer.
    """
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    if len(data) < count:
        raise DamagedError("it is cut short")
    return data


def write(path: Path, data: bytes | memoryview) -> Path:
    """Write bytes with their tail, whole or not at all.

    Raises:
        StoreError: the disk takes no more.
    """
    return files.write(path, lambda file: (file.write(data), file.write(tail(data))))


def stamp(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its digest as the last key.

    Raises:
        DataError: it holds what is not read again (see `documents.bounded`).
    """
    plain = {key: value for key, value in document.items() if key != KEY}
    return plain | {KEY: _of(documents.parse_json(documents.to_json(plain)))}  # as it is read: keys are text


def unstamped(document: Any) -> dict[str, Any]:
    """A JSON object without its digest, where it has one; those of before have none.

    Raises:
        DamagedError: it is no object, or the digest is another.
    """
    if not isinstance(document, dict):
        raise DamagedError("it holds no JSON object")
    plain = {key: value for key, value in document.items() if key != KEY}
    last = next(reversed(document.values()), None)
    if KEY not in document and isinstance(last, str) and len(last) == 32 and " " not in last:
        raise DamagedError("its digest has lost its name")
    if KEY in document and document[KEY] != _of(plain):
        raise DamagedError("its digest says that it was changed")
    return plain


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file of ours holds, without its digest; None where there is no file.

    Raises:
        DamagedError: it cannot be read, or is not what was written.
    """
    try:
        return unstamped(documents.read_json(path, limit=LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(f"it cannot be read: {error}") from error


def write_json(path: Path, document: Mapping[str, Any], *, indent: int | None = None) -> Path:
    """Write a JSON object with its digest, whole or not at all.

    Raises:
        StoreError: the disk takes no more.
    """
    return files.write_text(path, json.dumps(stamp(document), indent=indent, ensure_ascii=False) + "\n")


def notes(path: Path, what: str, understood: Callable[[dict[str, Any]], Any] = lambda notes: notes) -> Any:
    """What an index or a note of ours says, `understood` so; None where there is none, or it had to be set aside."""
    try:
        document = read_json(path)
        return None if document is None else understood(document)
    except (ToolkitError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        set_aside(path, error, what)
        return None


def set_aside(path: Path, why: object, then: str) -> None:
    """Give a damaged file another name, so that it is in nobody's way, and say so in a line with what happens `then`."""
    there = path.with_name(path.name + DAMAGED)
    with suppress(OSError):  # a folder that cannot be written, or another run was faster: it is not read, which is enough
        path.replace(there)
    _log.warning("%s is damaged (%s): kept as %s, %s", path, str(why).rstrip(".")[:200], there.name, then)


def _of(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, allow_nan=True)
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
