"""A table of any models on any images: a workspace's, a folder's or those that a CSV names, with or without a workspace."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from toolkit.base import csv_text, files, provenance
from toolkit.core import prediction_files, voting
from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.predictions import Predictions
from toolkit.ensemble import run as ensembling
from toolkit.errors import DataError, ImageError, few
from toolkit.images import render
from toolkit.inference import exports as members
from toolkit.inference.predict import BadImage, Opener, Progress, predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import open_session
from toolkit.workspace.competition import Competition, Images, Part, Target
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split

PARTS = ("train", "test")
SUFFIXES = (".parquet", ".csv")

OnBadImage = Literal["fail", "skip"]


@dataclass(frozen=True)
class Passing:
    """How images go through models: views, device and precision, and who is told how far it is; `said` is kept with tables."""

    tta: str = "none"
    device: str = "auto"
    batch: int | None = None
    progress: Progress | None = None
    precision: str = "fp32"
    opener: Opener = open_session
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def how(self) -> dict[str, Any]:
        """As `predict` takes it."""
        kept = ("device", "batch", "progress", "precision", "opener")
        return {name: getattr(self, name) for name in kept}


@dataclass(frozen=True, eq=False)
class Tables:
    """The predictions by target that each file holds, images that could not be used, and what is good to know."""

    written: Mapping[Path, Mapping[str, Predictions]]
    bad: tuple[BadImage, ...]
    notes: tuple[str, ...]


def run(
    competition: Competition | None,
    paths: Sequence[Path],
    on: str,
    output: Path,
    *,
    passing: Passing = Passing(),
    vote: str = "soft",
    weights: str = "",
    each: bool = False,
    held_out: bool = False,
    in_sample: bool = False,
    on_bad_image: OnBadImage = "fail",
    limit: int | None = None,
    id_column: str = "",
    path_column: str = "",
) -> Tables:
    """Predict images with models and write one table, .parquet or .csv; with `each` one per model (`held_out`: per member).

    `on` is "train" or "test" of the workspace, a folder (ids are the files' paths in it), or a CSV with an id and a path per
    row. `held_out` predicts training rows with the folds that did not see them; without it, models that saw them are refused
    unless `in_sample` says so. Rows whose image cannot be used are an error, or left out.

    Raises:
        DataError: nothing to predict, a file that is neither .parquet nor .csv, or training rows that a model saw.
        ModelError, CardError: models that cannot be used, or differ in what they predict.
        ImageError: images that cannot be used.
    """
    if output.suffix not in SUFFIXES:
        raise DataError(
            f"{output} is no kind of table that is written", hint=f"Name it {' or '.join('*' + s for s in SUFFIXES)}."
        )
    if on in PARTS and competition is None:
        raise DataError(f"--on {on}: this is no workspace", hint="Name a folder of images or a CSV, or cd into the workspace.")
    with _frame(competition, paths) as frame:
        exports = members.read_exports(paths, frame)
        notes: list[str] = []
        bad: Sequence[BadImage] = ()
        if held_out:
            found = _held_out(frame, exports, on, passing, vote, weights, each=each, notes=notes)
        else:
            items = _items(frame, on, id_column, path_column)[:limit]
            if on == "train":
                notes += _seen(frame, exports, {item.id for item in items}, allowed=in_sample)
            found, bad = _predicted(frame, exports, items, passing, vote, weights, each=each, skip=on_bad_image == "skip")
    meta = {
        "created": provenance.now(),
        "on": on if on in PARTS else Path(on).name,
        "models": [{"title": export.title, "digest": export.digest, "sha256": export.sha256} for export in exports],
        "tta": passing.tta,
        "vote": vote,
        "notes": notes,
        **passing.said,
    }
    return Tables(_write(found, output, meta), tuple(bad), tuple(notes))


def _predicted(
    frame: Competition,
    exports: Sequence[Export],
    items: Sequence[Item],
    passing: Passing,
    vote: str,
    weights: str,
    *,
    each: bool,
    skip: bool,
) -> tuple[dict[str, dict[str, Predictions]], Sequence[BadImage]]:
    """The tables by model (or "" for all together), and the images that were left out."""
    views = ensembling.views_for(exports, passing.tta)
    outcome = predict(exports, views, items, Store(frame.path("store")), boxes=frame.boxes, **passing.how)
    if outcome.bad and not skip:
        raise _bad_images(outcome.bad)
    good = {item.id for item in outcome.items}
    ids = [name for name in dict.fromkeys(item.id for item in items) if name in good]
    if not ids:
        raise ImageError(f"not one of {len(items):,} images can be used")
    found: dict[str, dict[str, Predictions]] = {}
    for name, group in {export.title: [export] for export in exports}.items() if each else [("", list(exports))]:
        share = members.share(group, "" if each else weights)
        how: dict[str, Any] = {"views": views, "vote": vote, "share": share}
        found[name] = {t.name: ensembling.combine(frame, t, group, outcome, ids, **how)[0] for t in frame.targets}
    return found, outcome.bad


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


def _items(competition: Competition, on: str, id_column: str, path_column: str) -> list[Item]:
    """The images that `on` names."""
    if on in PARTS:
        return [Item(name, path) for name, path in competition.images(cast("Part", on))]
    path = Path(on)
    if path.is_dir():
        found = [Item(file.relative_to(path).as_posix(), file) for file in render.find(path)]
        if not found:
            raise DataError(f"{path} has no image files", hint=f"They end in {', '.join(render.SUFFIXES)}.")
        return found
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"--on {on}: there is no such folder", hint="Use train, test, a folder of images, or a CSV of id and path."
        )
    frame = csv_text.read(path)
    names = [str(name) for name in frame.columns]
    key = id_column or ("id" if "id" in names else names[0])
    place = path_column or next((name for name in names if name.casefold() in _PATHS), "")
    if not place:
        raise DataError(
            f"{path}: which column holds the images' paths? It has {few(names, limit=12)}", hint="--path-column NAME"
        )
    frame = csv_text.read(path, columns=[key, place], unique=key)
    return [Item(name, path.parent / file) for name, file in zip(frame[key], frame[place], strict=True)]


_PATHS = {"path", "file", "filename", "file_name", "image", "image_path", "img_path", "filepath"}


def _seen(competition: Competition, exports: Sequence[Export], ids: set[str], *, allowed: bool) -> list[str]:
    """What models saw of training rows, in words.

    Raises:
        DataError: they saw some, and that was not allowed.
    """
    split = Split.if_made(competition)
    found = []
    for export in exports:
        here = split is not None and export.card.split == split.digest
        if export.card.fold is None or (split is not None and here):
            seen = len(ids & set(split.training(export.card.fold))) if split is not None and here else len(ids)
            found += [f"{export.title} was trained on {seen:,} of these {len(ids):,} rows"] if seen else []
        else:
            found.append(f"{export.title} was trained on another split: which of these {len(ids):,} rows it saw is not known")
    if found and not allowed:
        raise DataError(
            f"what models say of rows that they were trained on is no prediction: {'; '.join(found)}",
            hint="Use --held-out to predict each row with the folds that did not see it, or --in-sample to go on all the same.",
        )
    return [f"in-sample: {one}" for one in found]


def _held_out(
    competition: Competition,
    exports: Sequence[Export],
    on: str,
    passing: Passing,
    vote: str,
    weights: str,
    *,
    each: bool,
    notes: list[str],
) -> dict[str, dict[str, Predictions]]:
    """Out-of-fold tables of the members, or their vote over the rows that all of them cover."""
    if on != "train":
        raise DataError("--held-out is about training rows", hint="Use --on train.")
    split = Split.of(competition)
    by_member: dict[str, list[Export]] = {}
    for export in exports:
        by_member.setdefault(export.card.member, []).append(export)
    said = {
        name: ensembling.out_of_fold(competition, group, split, tta=passing.tta, **passing.how)
        for name, group in by_member.items()
    }
    if each or len(said) == 1:
        return said if each else {"": next(iter(said.values()))}
    share = [
        sum(w for w, export in zip(members.share(exports, weights), exports, strict=True) if export.card.member == m)
        for m in said
    ]
    combined: dict[str, Predictions] = {}
    for target in competition.targets:
        tables = {name: found[target.name] for name, found in said.items()}
        ids = shared_ids(tables, common=True)
        if not ids:
            raise DataError(
                f"the members {few(said)} have no held-out row in common", hint="Use --each for a table per member."
            )
        if left := max(map(len, tables.values())) - len(ids):
            notes.append(f"{left:,} rows are held out by some members only, and left out")
        aligned = align_members(tables, ids, target.classes)
        outcome = voting.vote(stack_values(aligned), how=vote, weights=share, multilabel=target.multilabel)
        combined[target.name] = outcome.predictions(next(iter(aligned.values())))
    return {"": combined}


def _bad_images(bad: Sequence[BadImage]) -> ImageError:
    shown = "\n  ".join(image.why for image in bad)
    return ImageError(
        f"{len(bad):,} image{'s' if len(bad) > 1 else ''} cannot be used, and nothing was written:\n  {shown}",
        hint="Mend them and run the same command again, or use --on-bad-image skip to leave them out.",
    )


def _write(
    found: Mapping[str, Mapping[str, Predictions]], output: Path, meta: Mapping[str, Any]
) -> dict[Path, Mapping[str, Predictions]]:
    """The tables, each in a file of its own: NAME.parquet, or NAME.<model>.parquet where there are several."""
    written: dict[Path, Mapping[str, Predictions]] = {}
    for name, said in found.items():
        path = output.with_name(f"{output.stem}.{name}{output.suffix}") if name else output
        write_csv(path, said) if path.suffix == ".csv" else prediction_files.write_table(path, said, meta)
        written[path] = said
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
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(columns)  # Arrow quotes every name

    def fill(file: IO[bytes]) -> None:
        file.write(header.getvalue().encode())
        pc.write_csv(pa.table(columns), file, pc.WriteOptions(include_header=False, quoting_style="needed"))

    return files.write(path, fill)
