"""Tables on disk: predictions of one or several targets with their origin, as one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import documents, files, sealed
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, few

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
ROWS = "rows"  # of the header: what the cells come to
KEY = b"toolkit"  # of the metadata that says what the columns are


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What a file holds: predictions per target over the same ids, and `meta`, plain JSON values that say whence."""

    predictions: Mapping[str, Predictions]
    meta: Mapping[str, Any]


def write_table(path: Path, predictions: Mapping[str, Predictions], meta: Mapping[str, Any]) -> Path:
    """Write Parquet: column `id`, then per target one float64 column `target/class`, or `target` with labels.

    Labels are class names (multilabel: bool columns `target/class`).

    Raises:
        DataError: no targets, targets over different ids, names of targets and classes that make one column name twice, or
            names that would not be read again (see `check_names`).
        StoreError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = list(predictions.values())
    if not tables:
        raise DataError(f"{path}: there are no predictions to write")
    if any(table.ids != tables[0].ids for table in tables):
        raise DataError("the targets of one table must have the same ids in the same order")
    check_names(path, predictions)
    columns: dict[str, Any] = {"id": _text(tables[0].ids)}
    for table in tables:
        added = _columns(table)
        if clash := sorted(set(added) & set(columns)):
            raise DataError(f"{path}: two columns would be called {few(clash)}", hint="Rename a target in competition.toml.")
        columns |= added
    targets = [{"target": t.target, "kind": t.kind, "classes": list(t.classes), "multilabel": t.multilabel} for t in tables]
    header = {"schema": SCHEMA, "targets": targets, "meta": dict(meta), ROWS: _digest(columns)}
    text = json.dumps(sealed.stamp(header), ensure_ascii=False)
    table = pa.Table.from_arrays(list(columns.values()), names=list(columns)).replace_schema_metadata({KEY: text.encode()})
    words = [name for name, column in columns.items() if column.type == pa.string()]  # numbers seldom repeat
    options = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": words}
    return files.write(path, lambda file: pq.write_table(table, file, **options))


def check_names(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Refuse ids, targets and classes that no table holds: with a NUL, or half a character (of a file's name in odd bytes).

    Raises:
        DataError: names the file that was to be written, and the name.
    """
    try:
        for name, table in predictions.items():
            for names in (table.ids, (name, table.target, *table.classes)):
                documents.check_text("\n".join(names))
    except ValueError as error:
        raise DataError(f"{path} cannot be written: {error}", hint="Rename the image or class that is called so.") from error


def read_table(path: Path) -> PredictionTable:
    """Read what `write_table` wrote.

    Raises:
        DataError: not there, not such a file, damaged, or written by a newer version.
    """
    with _named(path):
        table, header = _open(path)
        if header.get(ROWS, "") and header[ROWS] != _digest({name: table.column(name) for name in table.column_names}):
            raise sealed.DamagedError("its rows are not those that were written")
        ids = tuple(table.column("id").to_pylist())
        return PredictionTable({target["target"]: _target(table, ids, target) for target in header["targets"]}, header["meta"])


def read_meta(path: Path) -> Mapping[str, Any]:
    """Where the predictions of a file come from, without reading them.

    Raises:
        DataError: not there, not such a file, damaged, or written by a newer version.
    """
    with _named(path):
        meta: Mapping[str, Any] = _open(path, rows=False)[1]["meta"]
    return meta


def _target(table: pa.Table, ids: tuple[str, ...], described: Mapping[str, Any]) -> Predictions:
    name, kind, classes, multilabel = (
        described["target"],
        described["kind"],
        tuple(described["classes"]),
        described["multilabel"],
    )
    if kind == "labels" and not multilabel:
        place = {c: i for i, c in enumerate(classes)}
        numbers = np.array([place[cell] for cell in table.column(name).to_pylist()], dtype=np.int64)
        return Predictions(name, kind, ids, classes, labels=numbers)
    # stacked by column and turned: writing rows across 18 columns took five times as long
    grid = np.stack([table.column(f"{name}/{c}").to_numpy() for c in classes]).T if ids else np.zeros((0, len(classes)))
    filled = {"labels": grid} if kind == "labels" else {"values": grid}
    return Predictions(name, kind, ids, classes, multilabel=multilabel, **filled)


def _columns(table: Predictions) -> dict[str, Any]:
    if table.labels is not None and not table.multilabel:
        return {table.target: _text([table.classes[i] for i in table.labels.tolist()])}
    grid = table.values if table.labels is None else table.labels
    assert grid is not None
    return {f"{table.target}/{name}": _numbers(grid[:, i]) for i, name in enumerate(table.classes)}


def _text(cells: Sequence[str]) -> Any:
    """An Arrow column, laid out here: pyarrow.array would load pandas to ask whether the cells are a Series."""
    import pyarrow as pa

    data = [cell.encode() for cell in cells]
    ends = np.cumsum([0, *map(len, data)])
    if ends[-1] >= 1 << 31:
        return pa.array(cells, pa.string())
    return pa.Array.from_buffers(pa.string(), len(data), [None, *map(pa.py_buffer, (ends.astype(np.int32), b"".join(data)))])


def _numbers(cells: NDArray[Any]) -> Any:
    import pyarrow as pa

    if cells.dtype == bool:
        bits = np.packbits(cells, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(cells), [None, pa.py_buffer(bits)])
    return pa.Array.from_buffers(pa.float64(), len(cells), [None, pa.py_buffer(np.ascontiguousarray(cells, np.float64))])


def _open(path: Path, *, rows: bool = True) -> tuple[pa.Table, dict[str, Any]]:
    import pyarrow.parquet as pq

    with files.opened(path) as data, pq.ParquetFile(data, page_checksum_verification=True) as file:  # its name may be any bytes
        metadata = file.schema_arrow.metadata or {}
        table = file.read() if rows else file.schema_arrow.empty_table()
    if KEY not in metadata:
        raise DataError("it was not written by toolkit")
    document = documents.parse_json(metadata[KEY])
    header = sealed.unstamped(document)
    known = {"schema", "targets", "meta", ROWS, sealed.KEY}
    if not set(document) <= known or (ROWS in document) != (sealed.KEY in document):
        raise sealed.DamagedError("its header is not the one that was written")
    if header["schema"] > SCHEMA:
        raise DataError(f"it has schema {header['schema']}, this version reads up to {SCHEMA}", hint="Upgrade toolkit.")
    return table, header


def _digest(columns: Mapping[str, Any]) -> str:
    """What the names and cells of columns come to, however Parquet keeps them."""
    import pyarrow as pa

    seal = sealed.Sealing()
    for name, column in columns.items():
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        seal.add(f"{name}\0{whole.type}\0{len(whole)}\0{whole.null_count}\0".encode())
        buffers, start, stop = whole.buffers(), whole.offset, whole.offset + len(whole)
        if not len(whole):
            continue
        if whole.type == pa.string():
            bounds = np.frombuffer(buffers[1], np.int32)[start : stop + 1]
            seal.add(bounds - bounds[0])
            seal.add(memoryview(buffers[2])[bounds[0] : bounds[-1]] if buffers[2] is not None else b"")
        elif whole.type == pa.float64():  # by their buffers: to_numpy would load pandas
            seal.add(np.frombuffer(buffers[1], np.float64)[start:stop])
        elif whole.type == pa.bool_():
            seal.add(np.unpackbits(np.frombuffer(buffers[1], np.uint8), bitorder="little")[start:stop])
    return seal.hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file it was, whatever in it cannot be understood."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except sealed.DamagedError as error:
        raise _damaged(path, error.message) from error
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error.message}", hint=error.hint, code=error.code) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, LookupError, AttributeError, OverflowError) as error:
        raise _damaged(path, error) from error  # Arrow's own errors are among them


def _damaged(path: Path, why: object) -> DataError:
    return DataError(
        f"{path} is not a predictions table, or is damaged: {why}", hint="Make it again, or restore it from a copy."
    )
