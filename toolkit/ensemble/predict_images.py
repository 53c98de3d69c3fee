"""A table of any models on any images: a workspace's, a folder's or those that a CSV names, with or without a workspace."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from toolkit.base import files, provenance
from toolkit.base.text import csv_text
from toolkit.blending.combination import Combination
from toolkit.core import prediction_files, voting
from toolkit.core.lineage import optimistic
from toolkit.core.predictions import Predictions
from toolkit.ensemble.combine import combine, views_for
from toolkit.ensemble.unseen import out_of_fold
from toolkit.errors import DataError, ImageError, counted, few
from toolkit.images import render
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, read_exports, share
from toolkit.inference.outcome import BadImage, bad_images_error
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Competition, Images, Part, Target
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split

PARTS = ("train", "test")
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class ImageSource:
    """Which images are predicted, and as what.

    - `on`: "train" or "test" of the workspace, a folder (ids are the files' paths in it), or a CSV of an id and a path per row.
    - `id_column`, `path_column`: of the CSV, where its own names do not say.
    - `limit`: the first so many images only.
    - `held_out`: training rows by the folds that did not see them; `in_sample`: also by those that did.
    """

    on: str
    id_column: str = ""
    path_column: str = ""
    limit: int | None = None
    held_out: bool = False
    in_sample: bool = False


@dataclass(frozen=True, eq=False)
class WrittenTables:
    """The predictions by target that each file holds, images that could not be used, and what is good to know."""

    written: Mapping[Path, Mapping[str, Predictions]]
    bad: tuple[BadImage, ...]
    notes: tuple[str, ...]


def predict_images(
    competition: Competition | None,
    paths: Sequence[Path],
    source: ImageSource,
    output: Path,
    combination: Combination = Combination(),
    execution: Execution = Execution(),
    *,
    each: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> WrittenTables:
    """Predict images with models and write one table, .parquet or .csv; with `each` one per model (held out: per member).

    Models that saw training rows are refused unless the source says otherwise. Rows whose image cannot be used are an error, or
    left out. What `origin` says (plain values) is kept with .parquet tables.

    Raises:
        DataError: nothing to predict, a file that is neither .parquet nor .csv, or training rows that a model saw.
        ModelError, CardError: models that cannot be used, or differ in what they predict.
        ImageError: images that cannot be used.
    """
    _check(competition, source, output)
    with _frame(competition, paths) as frame:
        exports = read_exports(paths, frame)
        request = _Request(frame, exports, combination, execution, each)
        notes: list[str] = []
        bad: Sequence[BadImage] = ()
        if source.held_out:
            tables = _held_out(request, notes)
            notes += _optimistic(exports)
        else:
            items = _items(frame, source)[: source.limit]
            if source.on == "train":
                notes += _seen(frame, exports, {item.id for item in items}, allowed=source.in_sample)
            tables, bad = _predicted(request, items, notes, kept=competition is not None)
    meta: dict[str, Any] = {
        "created": provenance.now(),
        "on": source.on if source.on in PARTS else Path(source.on).name,
        "models": [{"title": export.title, "digest": export.digest, "sha256": export.sha256} for export in exports],
        "tta": combination.tta,
        "vote": combination.vote,
        "notes": notes,
        **(origin or {}),
    }
    told = any(note.startswith(_IN_SAMPLE) for note in notes)
    chosen = {name: "seen" if told else _chosen(exports, name) if source.on == "train" else "" for name in tables}
    return WrittenTables(_write(tables, output, meta, chosen), tuple(bad), tuple(notes))


@dataclass(frozen=True, eq=False)
class _Request:
    """What is asked of which models: one table of all of them, or one of each."""

    competition: Competition
    exports: Sequence[Export]
    combination: Combination
    execution: Execution
    each: bool


_ByName = dict[str, dict[str, Predictions]]  # tables by target, per model or member; "" for all together


def _check(competition: Competition | None, source: ImageSource, output: Path) -> None:
    """See that there is something to predict, and a kind of file to write."""
    if output.suffix not in SUFFIXES:
        raise DataError(
            f"{output} is no kind of table that is written", hint=f"Name it {' or '.join('*' + s for s in SUFFIXES)}."
        )
    if source.on in PARTS and competition is None:
        raise DataError(
            f"{source.on} images are a workspace's, and this is none",
            hint="Name a folder of images or a CSV, or cd into the workspace.",
            code="images-on",
        )
    if source.held_out and source.on != "train":
        raise DataError("only training rows are held out", hint="Predict the training images.", code="held-out-train")


def _predicted(request: _Request, items: Sequence[Item], notes: list[str], *, kept: bool) -> tuple[_ByName, Sequence[BadImage]]:
    """The tables by model, and the images that were left out; what is to be said of the others is added to `notes`."""
    frame, exports, combination = request.competition, request.exports, request.combination
    views = views_for(exports, combination.tta)
    with Store(frame.path("store")) as store:
        outcome = predict(exports, views, items, store, request.execution, boxes=frame.boxes)
        if outcome.bad and request.execution.on_bad_image != "skip":
            raise bad_images_error(outcome.bad, kept=kept, code="bad-images-skip")
        notes += outcome.notes
        good = {item.id for item in outcome.items}
        ids = [name for name in dict.fromkeys(item.id for item in items) if name in good]
        if not ids:
            raise ImageError(f"not one of {counted(len(items), 'images')} can be used")
        groups = {export.title: [export] for export in exports} if request.each else {"": list(exports)}
        tables: _ByName = {}
        for name, group in groups.items():
            models = WeightedModels(group, views, share(group, "" if request.each else combination.weights))
            tables[name] = {t.name: combine(frame, t, models, outcome, ids, combination)[0] for t in frame.targets}
    return tables, outcome.bad


@contextmanager
def _frame(competition: Competition | None, paths: Sequence[Path]) -> Iterator[Competition]:
    """The workspace, or what the first model's card says, with a store that lasts as long as the command."""
    if competition is not None:
        yield competition
        return
    outputs = onnx_file.read(paths[0]).card.outputs
    targets = tuple(Target(o.target, "multilabel" if o.multilabel else "multiclass", o.classes) for o in outputs)
    nowhere = Images("", "{id}")
    with tempfile.TemporaryDirectory() as folder:
        yield Competition(root=Path(folder), name="", metric="accuracy", targets=targets, train=nowhere, test=nowhere)


def _items(competition: Competition, source: ImageSource) -> list[Item]:
    """The images that the source names."""
    if source.on in PARTS:
        return [Item(name, path) for name, path in competition.images(cast("Part", source.on))]
    path = Path(source.on)
    if path.is_dir():
        items = [Item(file.relative_to(path).as_posix(), file) for file in render.find(path)]
        if not items:
            raise DataError(f"{path} has no image files", hint=f"They end in {', '.join(render.SUFFIXES)}.")
        return items
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"{source.on}: there is no such folder",
            hint="Name train, test, a folder of images, or a CSV of id and path.",
            code="images-on",
        )
    return _listed(path, source)


def _listed(path: Path, source: ImageSource) -> list[Item]:
    """The images that a CSV lists, by paths relative to it."""
    frame = csv_text.read(path)
    names = [str(name) for name in frame.columns]
    key = source.id_column or ("id" if "id" in names else names[0])
    place = source.path_column or next((name for name in names if name.casefold() in _PATHS), "")
    if not place:
        raise DataError(
            f"{path}: which column holds the images' paths? It has {few(names, limit=12)}",
            hint="Name the column.",
            code="path-column",
        )
    frame = csv_text.read(path, columns=[key, place], unique=key)
    return [Item(name, path.parent / file) for name, file in zip(frame[key], frame[place], strict=True)]


_PATHS = {"path", "file", "filename", "file_name", "image", "image_path", "img_path", "filepath"}


_IN_SAMPLE = "in-sample: "


def _seen(competition: Competition, exports: Sequence[Export], ids: set[str], *, allowed: bool) -> list[str]:
    """What models saw of training rows, in words.

    Raises:
        DataError: they saw some, and that was not allowed.
    """
    split = Split.if_made(competition)
    sentences = []
    for export in exports:
        parts = [part for part in export.card.known_lineage.seen if split is not None and part.split == split.digest]
        if export.card.fold is None or parts:
            seen = {name for part in parts if split is not None for name in split.training(part.fold)} if parts else ids
            count = len(seen & ids)
            sentences += [f"{export.title} was trained on {count:,} of these {counted(len(ids), 'rows')}"] if count else []
        else:
            sentences.append(
                f"{export.title} was trained on another split: which of these {counted(len(ids), 'rows')} it saw is not known"
            )
    if sentences and not allowed:
        raise DataError(
            f"what models say of rows that they were trained on is no prediction: {'; '.join(sentences)}",
            hint="Have each row predicted by the folds that did not see it, or ask for rows in sample.",
            code="in-sample",
        )
    return [f"{_IN_SAMPLE}{sentence}" for sentence in sentences]


def _chosen(exports: Sequence[Export], name: str) -> str:
    """What a table of training rows says of how its models were chosen, as recipes' out-of-fold tables do.

    `name` is the member or model that the table is of, "" for all.
    """
    cards = [export.card for export in exports if name in ("", export.card.member, export.title)]
    return "+".join(sorted({card.chosen for card in cards}))


def _optimistic(exports: Sequence[Export]) -> list[str]:
    """Which models' held-out rows had a say in them, in words."""
    return [
        f"{export.title} is optimistic: {why}"
        for export in exports
        if export.card.fold is not None and (why := optimistic(export.card.chosen))
    ]


def _held_out(request: _Request, notes: list[str]) -> _ByName:
    """Out-of-fold tables of the members, or their vote over the rows that all of them cover."""
    competition, combination = request.competition, request.combination
    split = Split.of(competition)
    by_member: dict[str, list[Export]] = {}
    for export in request.exports:
        by_member.setdefault(export.card.member, []).append(export)
    tables = {
        name: out_of_fold(competition, group, split, combination.tta, request.execution) for name, group in by_member.items()
    }
    if request.each:
        return tables
    if len(tables) == 1:
        return {"": next(iter(tables.values()))}
    by_model = zip(request.exports, share(request.exports, combination.weights), strict=True)
    weights = dict.fromkeys(tables, 0.0)
    for export, weight in by_model:
        weights[export.card.member] += weight
    voted = {}
    for target in competition.targets:
        own = {name: by_target[target.name] for name, by_target in tables.items()}
        voted[target.name] = _voted(target, own, list(weights.values()), combination.vote, notes)
    return {"": voted}


def _voted(
    target: Target, tables: Mapping[str, Predictions], weights: Sequence[float], vote: str, notes: list[str]
) -> Predictions:
    """The members' vote over the rows that all of them have; a note where some are left out."""
    first = next(iter(tables.values()))
    common = set.intersection(*(set(table.ids) for table in tables.values()))
    ids = tuple(name for name in first.ids if name in common)
    if not ids:
        raise DataError(
            f"the members {few(tables)} have no held-out row in common", hint="Write a table per member.", code="each-member"
        )
    if left := max(map(len, tables.values())) - len(ids):
        notes.append(f"{counted(left, 'rows are')} held out by some members only, and left out")
    aligned = [table.align(ids) for table in tables.values()]
    stack = np.stack([table.values for table in aligned if table.values is not None])
    answer = voting.vote(stack, how=vote, weights=weights, multilabel=target.multilabel)
    labels = answer.labels if answer.kind == "labels" else None
    return replace(aligned[0], kind=answer.kind, values=answer.values, labels=labels)


def _write(
    tables: _ByName, output: Path, meta: Mapping[str, Any], chosen: Mapping[str, str]
) -> dict[Path, Mapping[str, Predictions]]:
    """The tables, each in a file of its own: NAME.parquet, or NAME.<model>.parquet where there are several."""
    written: dict[Path, Mapping[str, Predictions]] = {}
    for name, by_target in tables.items():
        path = output.with_name(f"{output.stem}.{name}{output.suffix}") if name else output
        if path.suffix == ".csv":
            write_csv(path, by_target)
        else:
            prediction_files.write_table(path, by_target, {**meta, **({"selected": chosen[name]} if chosen[name] else {})})
        written[path] = by_target
    return written


def write_csv(path: Path, predictions: Mapping[str, Predictions]) -> Path:
    """Write CSV: column `id`, then a column per class with the shortest text that reads back equal, or one of labels.

    Columns are called as the classes; where there are several targets, `target/class` and `target`.

    Raises:
        DataError: two columns of one name.
        StoreError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    prediction_files.check_names(path, predictions)
    columns: dict[str, Any] = {"id": next(iter(predictions.values())).ids}
    for table in predictions.values():
        before = f"{table.target}/" if len(predictions) > 1 else ""
        if table.kind == "labels" and not table.multilabel:
            added: dict[str, Any] = {table.target: [table.classes[i] for i in table.decided]}
        else:
            grid = table.decided.astype(np.int64) if table.values is None else table.values
            added = {f"{before}{name}": grid[:, i] for i, name in enumerate(table.classes)}
        if clash := sorted(set(added) & set(columns)):
            raise DataError(f"{path}: two columns would be called {few(clash)}", hint="Write .parquet instead.")
        columns |= added

    def fill(file: IO[bytes]) -> None:
        file.write(files.as_csv([columns]).encode())  # Arrow quotes every name
        pc.write_csv(pa.table(columns), file, pc.WriteOptions(include_header=False, quoting_style="needed"))

    return files.write(path, fill)
