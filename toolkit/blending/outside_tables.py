"""Tables from anywhere: probabilities, logits or labels in CSV, Parquet or npz, their columns matched to classes by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import F64
from toolkit.base.text import csv_text
from toolkit.base.text.text_forms import TextForm
from toolkit.core import prediction_files, raw_outputs
from toolkit.core.activations import sigmoid, softmax
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target, class_order
from toolkit.errors import AlignmentError, CompetitionError, DataError, counted, few
from toolkit.workspace.competition import Competition, Images

if TYPE_CHECKING:
    import pandas as pd


SUFFIXES = (".parquet", ".csv", ".npz")
ROUNDED = 0.02  # rows that sum to 1 within this were rounded (18 classes at two digits: 0.09 at worst, 0.012 as a rule)
FEW = 5  # rows; logits of as many lie all between 0 and 1 by no chance
_IDS = {"id", "image_id", "imageid", "image", "filename", "file_name", "file", "image_name", "row_id"}
_GRIDS = ("probabilities", "probs", "proba", "oof", "test", "predictions", "preds", "logits", "values")
_PART = re.compile(r"^(?:oof|test|sub|submission)[_-](?=.)|(?<=.)[_-](?:oof|test|sub|submission|preds?|probs?)$")


@dataclass(frozen=True)
class Reading:
    """How files made elsewhere are to be read.

    `names` says which class a column's name or a label's text stands for (theirs → ours), `id` the id column, `logits` that
    values which are no probabilities are logits, `form` how CSV is written where its bytes do not say it.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    logits: bool = False
    form: TextForm = TextForm()


def named(words: Sequence[str]) -> dict[str, Path]:
    """Tables as one types them, by member: NAME=FILE, or FILE, whose name without `_oof` or `_test` is the member's.

    Files of toolkit (Parquet) keep their whole name.

    >>> list(named(["b4_oof.csv", "vit=preds.npz"]))
    ['b4', 'vit']

    Raises:
        DataError: two tables of one name.
    """
    tables: dict[str, Path] = {}
    for word in words:
        name, mark, rest = word.partition("=")
        path = Path(rest if mark and not Path(word).exists() else word)
        if path == Path(word):
            name = path.stem if path.suffix == ".parquet" else _PART.sub("", path.stem)
        if name in tables:
            raise DataError(f"two tables are called {name!r}", hint=f"Name them: {name}={tables[name]} other={path}")
        tables[name] = path
    return tables


def pairs(text: str, what: str, *, code: str = "") -> dict[str, str]:
    """`a=b,c=d` as a mapping; `what` and `code` say in the error which it is.

    >>> pairs("p0=cat,p1=dog", "columns")
    {'p0': 'cat', 'p1': 'dog'}

    Raises:
        DataError: a part without `=`, or a name said twice.
    """
    values: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, mark, value = part.partition("=")
        if not mark or not name or not value or name in values:
            raise DataError(f"{what}: {part!r} is not a pair of its own", hint="Pairs are written a=b,c=d.", code=code)
        values[name] = value
    return values


def competition_of(
    start: Path | None,
    *,
    truth: Path | None = None,
    label: str = "",
    key: str = "",
    metric: str | None = None,
    group: str = "",
    form: TextForm = TextForm(),
) -> Competition:
    """The workspace's competition, or one that a table of true labels makes up; with another metric if one is named.

    Raises:
        CompetitionError: there is no workspace and no truth, or a truth without a metric.
    """
    if truth is None:
        if label or group:
            raise CompetitionError(
                "a label or group column was named, and no table of true labels that has it", code="truth-table"
            )
        workspace = Competition.find(start)
        return replace(workspace, metric=metric) if metric else workspace
    if metric is None:
        raise CompetitionError("a table of true labels does not say how predictions are scored", code="truth-metric")
    return competition(truth, label=label, key=key, metric=metric, group=group, form=form)


def competition(
    truth: Path, *, label: str = "", key: str = "", metric: str = "accuracy", group: str = "", form: TextForm = TextForm()
) -> Competition:
    """A competition that consists of a table of true labels, for work outside a workspace; its root is the current folder.

    The id column is the one named, called like one, or the first; the label the one named, or the only other. Several labels
    (`a,b,c`) are columns of 0 and 1: a multilabel target.

    Raises:
        CompetitionError: the table cannot be read, or has several columns that may be the label.
    """
    frame = csv_text.read(truth, form=form)
    key = key or _key(list(frame.columns), "", truth)
    wanted = [name for name in label.split(",") if name]
    rest = [name for name in frame.columns if name not in (key, group)]
    chosen = wanted or [name for name in rest if name.casefold() in {"label", "target", "class", "ans", "y"}] or rest
    if len(chosen) != 1 and not wanted:
        raise CompetitionError(f"{truth}: which column is the label? It has {few(rest, limit=12)}", code="label-column")
    csv_text.read(truth, columns=[key, *chosen, *([group] if group else [])], unique=key, form=form)
    if len(chosen) > 1:
        target = Target("label", "multilabel", tuple(chosen))
    else:
        classes = class_order(frame[chosen[0]])
        target = Target(chosen[0], "binary" if len(classes) == 2 else "multiclass", classes, column=chosen[0])
    images = Images(folder="", pattern=f"{{{key}}}", table=str(truth.absolute()))
    return Competition(
        root=Path.cwd(),
        name=truth.stem,
        metric=metric,
        targets=(target,),
        train=images,
        test=images,
        id=key,
        group=group,
        encoding=form.encoding,
        delimiter=form.delimiter,
    )


def read(path: Path, target: Target, *, key: str = "id", reading: Reading | None = None) -> Predictions:
    """What a file says of a target: probabilities float64 [N, C], or labels, its columns put into the target's classes by name.

    A file of toolkit's own says all of it. CSV and foreign Parquet have an id column and a column per class, named like
    the classes or all with the same text before or after; one column of labels; or, for two classes, one of the probability of
    the positive one. npz holds `ids`, `classes` and a 2-D array, or `ids` and `labels`.

    Raises:
        DataError: it cannot be read, has NaN values, no probabilities where they should be, or columns that fit several ways.
        AlignmentError: ids that repeat, or other classes.
    """
    how = reading or Reading()
    try:
        files.plain(path)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{path} {reason}") from error
    if path.suffix == ".parquet" and (table := _own(path, target)) is not None:
        return table
    ids, columns = _columns(path, how.id or key, how.form, asked=bool(how.id))
    columns = _renamed(columns, how.names, path)
    names = _class_columns(list(columns), target.classes, path)
    try:
        if names:
            return _grid(path, target, ids, np.stack([_numbers(columns[n], n, ids, path) for n in names], axis=1), how)
        return _single(path, target, ids, columns, how)
    except AlignmentError as error:
        raise AlignmentError(f"{path}: {error.message}", hint=error.hint, code=error.code) from error


def _own(path: Path, target: Target) -> Predictions | None:
    """The table as toolkit wrote it; None if others did."""
    import pyarrow.parquet as pq

    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        with files.opened(path) as file:
            metadata = pq.read_metadata(file).metadata or {}
    except (OSError, ValueError):
        metadata = {prediction_files.KEY: b""}  # read_table says what is wrong with it
    if prediction_files.KEY not in metadata:
        return None
    tables = prediction_files.read_table(path).predictions
    if target.name not in tables:
        raise DataError(f"{path} has no target {target.name!r}, only {few(tables)}")
    return tables[target.name]


def _columns(path: Path, key: str, form: TextForm, *, asked: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Ids and the other columns of a file."""
    if path.suffix == ".npz":
        return _arrays(path)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with files.opened(path) as file:
                table = pq.read_table(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        columns: dict[str, Any] = {name: table.column(name).to_pylist() for name in table.column_names}
    elif path.suffix == ".csv":
        frame: pd.DataFrame = csv_text.read(path, form=form)
        columns = {str(name): list(frame[name]) for name in frame.columns}
    else:
        raise DataError(f"{path} is no table that can be read", hint=f"Save it as {', '.join(SUFFIXES)}.")
    if asked and key not in columns:
        raise DataError(f"{path} has no column {key!r}; it has {few(columns, limit=12)}", code="id-column")
    place = _key(list(columns), key, path)
    ids = tuple(map(str, columns.pop(place)))
    return ids, {name: cells for name, cells in columns.items() if name and not name.startswith("Unnamed:")}


def _key(names: Sequence[str], key: str, path: Path) -> str:
    """The id column: the one that is asked for, one that is called like an id, else the first."""
    if key in names:
        return key
    alike = [name for name in names if name.casefold() in _IDS]
    place = alike[0] if len(alike) == 1 else names[0]
    if len(alike) > 1 or not place or place.startswith("Unnamed:"):
        raise DataError(f"{path}: which column is the id? It has {few(names, limit=12)}", code="id-column")
    return place


def _arrays(path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Ids and columns of an npz file."""
    try:
        arrays = _archive(path)
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}", hint=_NPZ) from error
    ids = next((arrays[name] for name in arrays if name.casefold() in _IDS | {"ids"}), None)
    grids = [name for name in arrays if arrays[name].ndim == 2]
    grid = next((name for name in _GRIDS if name in grids), grids[0] if len(grids) == 1 else "")
    if ids is None or not (grid or "labels" in arrays):
        raise DataError(f"{path} holds {few(arrays, limit=8)}, which does not say the ids and what is said of them", hint=_NPZ)
    if not grid:
        columns = {"label": [str(cell) for cell in arrays["labels"]]}
    elif "classes" not in arrays or len(arrays["classes"]) != arrays[grid].shape[1]:
        raise DataError(
            f"{path}: {grid!r} has {counted(arrays[grid].shape[1], 'columns')}, and no `classes` name them in order", hint=_NPZ
        )
    else:
        columns = {str(name): arrays[grid][:, i] for i, name in enumerate(arrays["classes"])}
    if ids.ndim != 1 or any(len(cells) != len(ids) for cells in columns.values()):
        raise DataError(f"{path}: {counted(len(ids), 'ids')} and {counted(len(next(iter(columns.values()))), 'rows')}")
    return tuple(map(str, ids)), columns


def _archive(path: Path) -> dict[str, Any]:
    """The arrays of an npz file, whose headers say no more than there is.

    Raises:
        Exception: of whatever kind.
    """
    import zipfile

    arrays = {}
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
            raise ValueError(f"it holds more than {_LARGEST >> 30} GiB")
        for entry in archive.infolist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
                shape, _, dtype = read(file)
                if dtype.kind not in "biufUS" or dtype.itemsize * math.prod(shape) != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} is not what its header says")
                file.seek(0)
                arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    if any(array.ndim not in (1, 2) for array in arrays.values()):
        raise ValueError("its arrays are no columns")
    return arrays


_LARGEST = 1 << 34  # bytes of an unpacked archive
_NPZ = "np.savez(FILE, ids=ids, classes=class_names, probabilities=p) says all that is needed."


def _renamed(columns: Mapping[str, Any], names: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The columns under our names for them (theirs → ours); a class named twice is refused."""
    new = [names.get(name, name) for name in columns]
    if repeated := sorted({name for name in new if new.count(name) > 1}):
        raise DataError(f"{path}: several columns stand for {few(repeated)}", code="class-columns")
    return dict(zip(new, columns.values(), strict=True))


def _class_columns(columns: Sequence[str], classes: Sequence[str], path: Path) -> list[str]:
    """The column of each class: named like it, or all with one text before and one after; none where there are no such.

    Raises:
        DataError: there are two such sets of columns, or a set for other classes as well.
    """
    there = set(columns)
    if all(name in there for name in classes):
        return list(classes)
    frames = {
        (before, after)
        for name in columns
        for before, match, after in [name.partition(classes[0])]
        if match and all(f"{before}{c}{after}" in there for c in classes)
    }
    if len(frames) > 1:
        shown = [f"{before}{classes[0]}{after}" for before, after in sorted(frames)]
        raise DataError(f"{path}: several columns may be class {classes[0]!r}: {few(shown)}", code="class-columns")
    if not frames:
        return []
    before, after = frames.pop()
    ours = [f"{before}{c}{after}" for c in classes]
    others = [n for n in columns if n not in ours and n.startswith(before) and n.endswith(after)]
    if others and before + after:
        raise AlignmentError(f"{path} has columns for classes that are not known: {few(others)}", code="class-columns")
    return ours


def _single(path: Path, target: Target, ids: tuple[str, ...], columns: Mapping[str, Any], how: Reading) -> Predictions:
    """One column: labels, or the probability of the positive class of two."""
    import pandas as pd

    likely = [n for n in (target.column, target.name, "label", "target", "class", "prediction") if n in columns]
    name = likely[0] if likely else next(iter(columns)) if len(columns) == 1 else ""
    positive = target.positive or target.classes[-1]
    if target.task == "binary" and (name or positive in columns):
        column = positive if positive in columns else name
        cells = [how.names.get(str(cell), str(cell)) for cell in columns[column]]
        if not set(cells) <= set(target.classes):
            p = _numbers(columns[column], column, ids, path)
            if how.logits and (p.min() < 0 or p.max() > 1):
                p = sigmoid(p)
            yes = target.classes.index(positive)
            return _grid(path, target, ids, np.stack([1 - p, p] if yes else [p, 1 - p], axis=1), how)
    if not name and not (target.factors and set(target.factors) <= set(columns)):
        missing = [c for c in target.classes if c not in columns]
        raise AlignmentError(
            f"{path} has no column for class {few(missing)}, and none of labels; it has {few(columns, limit=8)}",
            code="class-columns",
        )
    frame = pd.DataFrame({n: [how.names.get(str(c), str(c)) for c in cells] for n, cells in columns.items()}, dtype="str")
    frame = frame.rename(columns={name: target.column}) if name else frame
    try:
        return target.truth(frame, ids, str(path))
    except CompetitionError as error:
        raise AlignmentError(error.message, hint=error.hint, code="class-columns") from error


def _numbers(cells: Any, name: str, ids: Sequence[str], path: Path) -> F64:
    """A column as float64 [N]; empty cells are NaN."""
    try:
        blank = [] if isinstance(cells, np.ndarray) else [i for i, cell in enumerate(cells) if cell == "" or cell is None]
        if blank:
            cells = [np.nan if cell == "" or cell is None else cell for cell in cells]
        return np.asarray(cells, dtype=np.float64)
    except (ValueError, TypeError):
        bad = [(i, str(cell)) for i, cell in enumerate(cells) if not _is_number(cell)]
        raise DataError(
            f"{path}: column {name!r} has {counted(len(bad), 'cells')} that are no numbers: {few(sorted({c for _, c in bad}))} "
            f"(ids {few(ids[i] for i, _ in bad)})"
        ) from None


def _is_number(cell: Any) -> bool:
    try:
        float(cell or "nan")
    except (ValueError, TypeError):
        return False
    return True


def _grid(path: Path, target: Target, ids: tuple[str, ...], values: F64, how: Reading) -> Predictions:
    """Values [N, C] as probabilities: as they are, normalised where they are percent or rounded, or from logits if so said.

    Raises:
        DataError: NaN, no probabilities, or such as were called logits.
    """
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        names = few(ids[i] for i in np.flatnonzero(bad))
        raise DataError(
            f"{path}: {int(bad.sum()):,} of {counted(len(ids), 'rows have')} NaN or infinite values (ids {names})",
            hint="Mend the table; a NaN often comes from a join that found no partner.",
        )
    sums, low, high = values.sum(axis=1), values.min(initial=0.0), values.max(initial=0.0)
    kind = raw_outputs.look(values, exclusive=not target.multilabel, half=True).kind if len(values) > 1 else "logits"
    if kind == "percent" and not how.logits:
        values, sums, high = values / sums[:, None], np.ones(len(values)), 1.0
    odd = low < 0 or (high > 1 if target.multilabel else bool(np.abs(sums - 1).max(initial=0.0) > ROUNDED))
    seen = f"values lie between {low:.4g} and {high:.4g}"
    seen += "" if target.multilabel else f", rows sum to {sums.min():.4g} to {sums.max():.4g}"
    if odd and how.logits and (kind in ("percent", "scaled") or (kind == "sigmoid" and len(values) >= FEW)):
        what = {"percent": "percent", "scaled": "shares of one sum"}.get(kind, "probabilities of each class by itself")
        raise DataError(f"{path} does not hold logits but {what}: {seen}", hint="Do not call them logits; normalise each row.")
    if odd and not how.logits:
        raise DataError(
            f"{path} does not hold probabilities: {seen}", hint="Unless they are logits, normalise each row.", code="logits"
        )
    if odd:
        values = sigmoid(values) if target.multilabel else softmax(values)
    elif not target.multilabel:
        values = values / sums[:, None]
    return Predictions(target.name, "probabilities", ids, target.classes, values=values, multilabel=target.multilabel)
