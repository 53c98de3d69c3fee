"""Writing files so that one that exists is complete: write aside, fsync, rename; digests of what is there."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from toolkit.errors import DataError, StoreError

PART = ".part-"  # the infix of every temporary name, so that orphans of a killed run can be recognised and swept
HELD = f"{PART}x"  # of those that are locked while their writer lives: no lock, no writer (other marks are hex digits)
ASIDE = ".making-"  # the beginning of the names of folders that are being filled
YOUNG = 1.0  # seconds in which a temporary file may not have got its lock yet

_cleared: set[Path] = set()  # folders whose orphans this process removed


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> Path:
    """Make `path` with what `fill` writes to a binary file: the old file or the whole new one, never a part.

    Raises:
        StoreError: the folder cannot be written, or the disk is full, or took less than it was given; nothing is left behind.
    """
    part = path.with_name(f"{path.name}{HELD}{secrets.token_hex(4)}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent)
        try:
            with part.open("xb") as file:
                _hold(file.fileno())
                written = _Counted(file)
                fill(cast("IO[bytes]", written))
                file.flush()
                if os.fstat(file.fileno()).st_size < written.end:
                    raise OSError(errno.ENOSPC, "it was cut short")
                os.fsync(file.fileno())
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


class _Counted:
    """A binary file that knows how long it has to be in the end.

    Libraries that see a file of the system write past Python, and do not all look at what the system says to that.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._place, self.end = file, 0, 0

    def write(self, data: Any) -> int:
        """All of it."""
        count = self._file.write(data)
        self._place += count
        self.end = max(self.end, self._place)
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As files do."""
        self._place = self._file.seek(offset, whence)
        return self._place

    def truncate(self, size: int | None = None) -> int:
        """As files do."""
        self.end = self._file.truncate(size)
        return self.end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_text(path: Path, text: str) -> Path:
    """Make the UTF-8 file `path`, whole or not at all.

    Raises:
        StoreError: the folder cannot be written, the disk is full, or a name in the text is not UTF-8.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # names of files may be any bytes
        near = ascii(error.object[max(error.start - 20, 0) : error.end + 20])
        raise StoreError(f"{path} cannot be written: a name in it is not UTF-8: {near}", hint="Rename that file.") from error
    return write(path, lambda file: file.write(data))


def write_rows(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """Make the CSV file `path`, whole or not at all: UTF-8, \\n, cells quoted where they have to be.

    Raises:
        StoreError: the folder cannot be written or the disk is full.
        DataError: a cell holds a NUL, with which no table of text is read again.
    """
    text = as_csv(rows)
    if "\0" in text:
        raise DataError(f"{path} cannot be written: a name in it holds a NUL", hint="Rename what has such a name.")
    return write_text(path, text)


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """Rows as the text of a CSV file: \n ends a line, cells are quoted where they have to be."""
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)  # with \n alone, cells that hold \r would not be quoted
    return "".join(lines)


class _Lines(list[str]):
    """Takes lines from a csv.writer."""

    def write(self, line: str) -> None:
        """One line, with another end."""
        self.append(line.removesuffix("\r\n") + "\n")


def sweep(folder: Path, *, age: float = 3600) -> int:
    """Remove temporary files that killed runs left in `folder`; one younger than `age` seconds may be in use and stays."""
    swept = 0
    for orphan in list(folder.rglob(f"*{PART}*")):
        with suppress(OSError):  # another run may be sweeping too
            if orphan.is_file() and time.time() - orphan.stat().st_mtime > age:
                orphan.unlink()
                swept += 1
    return swept


def _clear(folder: Path) -> None:
    """Remove, once per process, what writers that are no more left in a folder: temporary files that nobody holds."""
    if folder in _cleared:
        return
    _cleared.add(folder)
    for orphan in [entry.path for entry in os.scandir(folder) if HELD in entry.name and entry.is_file(follow_symlinks=False)]:
        with suppress(OSError):  # another run may be clearing too
            handle = os.open(orphan, os.O_RDWR)
            try:
                if time.time() - os.fstat(handle).st_mtime > YOUNG and _hold(handle):
                    Path(orphan).unlink()
            finally:
                os.close(handle)


def _hold(handle: int) -> bool:
    """Lock an open file until it is closed or the process ends however; whether that was to be had."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # a system or a file system without locks, or another's
        return False
    return True


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A plain file to be read, opened without waiting: a pipe would wait for a writer for ever, a device may never end.

    Raises:
        OSError: it is not there, cannot be read, or is no plain file.
    """
    return io.BufferedReader(unbuffered(path))


def unbuffered(path: str | os.PathLike[str]) -> io.FileIO:
    """As `opened`, every read being one of the system's.

    Raises:
        OSError: see `opened`.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL in its name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), repr(os.fspath(path))) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", os.fspath(path))
        return io.FileIO(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a plain file, opened without waiting.

    Raises:
        OSError: it is not there, cannot be read, or is no plain file.
    """
    with opened(path) as file:
        return file.read()


def plain(path: str | os.PathLike[str]) -> None:
    """Make sure that a path leads to a plain file, for readers that open it themselves.

    Raises:
        OSError: it is not there, cannot be read, or is no plain file.
    """
    opened(path).close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a sentence.

    Raises:
        StoreError: says which file, and whether the disk is full or the folder read-only.
    """
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: "The disk is full: free some space and run the same command again; finished work is kept.",
            errno.EDQUOT: "Your quota is used up: free some space and run the same command again.",
            errno.EROFS: "The file system is read-only: use a workspace that can be written.",
            errno.EACCES: "No permission: check who owns the folder, or use another workspace.",
            errno.EPERM: "No permission: check who owns the folder, or use another workspace.",
        }
        reason = error.strerror or str(error)
        raise StoreError(f"{path} cannot be written: {reason}", hint=cures.get(error.errno or 0, "")) from error


@contextmanager
def aside(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder inside `root` to be filled; what has these names in it is then moved into `root`, in this order.

    After an error or a kill none of them is there, so that the last one tells that all are.

    Raises:
        StoreError: `root` cannot be written.
    """
    folder = root / f"{ASIDE}{secrets.token_hex(4)}"
    with explained(root):
        folder.mkdir(parents=True)
    try:
        yield folder
        with explained(root):
            for name in names:
                (folder / name).replace(root / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; some file systems refuse to sync a folder, which costs only durability."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
