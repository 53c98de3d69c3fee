"""Training images as models see them that were not trained on them: fold by fold, through the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble.combine import combine, views_for
from toolkit.errors import ModelError
from toolkit.inference.execution import Execution, Progress
from toolkit.inference.exports import Views, WeightedModels
from toolkit.inference.outcome import PredictOutcome, bad_images_error
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Competition
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split


class NotStoredError(ModelError):
    """A row would have to be computed that is not in the store."""


def stored_only(execution: Execution) -> Execution:
    """The same request of what the store has; a `NotStoredError` where it lacks a row."""
    return replace(execution, opener=_closed, progress=None, verify_images=False)


def _closed(*_: Any, **__: Any) -> Any:
    raise NotStoredError("rows that are not in the store would have to be computed")


def out_of_fold(
    competition: Competition,
    exports: Sequence[Export],
    split: Split,
    tta: str = "none",
    execution: Execution = Execution(),
) -> dict[str, Predictions]:
    """Every row predicted by the fold models that did not see it (per target, views merged), through the store.

    `exports` are the folds of one member; the rows are those their folds hold out.

    Raises:
        ModelError: see `unseen`.
        ImageError: images that cannot be used; all are listed.
    """
    views = views_for(exports, tta)
    parts: dict[str, list[Predictions]] = {target.name: [] for target in competition.targets}
    for group, ids, outcome in unseen(competition, exports, split, views, execution):
        if outcome.bad:
            raise bad_images_error(outcome.bad)
        for target in competition.targets:
            parts[target.name].append(combine(competition, target, WeightedModels(group, views), outcome, ids)[0])
    return {name: concat(tables) for name, tables in parts.items()}


def unseen(
    competition: Competition,
    exports: Sequence[Export],
    split: Split,
    views: Views,
    execution: Execution = Execution(),
    *,
    limit: int | None = None,
) -> Iterator[tuple[list[Export], tuple[str, ...], PredictOutcome]]:
    """Fold by fold: the models (of one or several members) that did not see it, its ids, and what they say of its images.

    `limit` draws about so many ids in all, as many of each fold, of its classes by their shares. Models without a fold are left
    out.

    Raises:
        ModelError: an export made from another split, or none with a fold.
        DeviceError, StoreError: see `predict`.
    """
    scored = _of_split(exports, split)
    paths: dict[str, list[Path]] = {}
    for name, path in competition.images("train"):
        paths.setdefault(name, []).append(path)
    folds = sorted({export.card.fold or 0 for export in scored})
    rows = {fold: _spread(split, fold, limit and -(-limit // len(folds))) for fold in folds}
    items = {fold: [Item(name, path) for name in rows[fold] for path in paths[name]] for fold in folds}
    done, count = 0, sum(map(len, items.values()))
    with Store(competition.path("store")) as store:
        for fold in folds:
            group = [export for export in scored if export.card.fold == fold]
            told = replace(execution, progress=_after(execution.progress, done, count))
            yield group, rows[fold], predict(group, views, items[fold], store, told, boxes=competition.boxes)
            done += len(items[fold])


def _of_split(exports: Sequence[Export], split: Split) -> list[Export]:
    """The models that have a fold, which must be one of this split."""
    scored = [export for export in exports if export.card.fold is not None]
    if not scored:
        raise ModelError("none of the models has a fold that it did not see")
    for export in scored:
        if export.card.split != split.digest:
            raise ModelError(
                f"{export.path} was trained on split {export.card.split}, this one is {split.digest}",
                hint="Restore the split.csv it was trained with, or train again.",
            )
    return scored


def _after(progress: Progress | None, before: int, count: int) -> Progress | None:
    """Progress over all folds, of the one that is worked on after so many images."""
    if progress is None:
        return None
    return lambda now, _: progress(before + now, count)


def _spread(split: Split, fold: int, limit: int | None) -> tuple[str, ...]:
    """So many of a fold's ids, always the same, of every class its share by chance; fewer are among those of more."""
    ids = split.held_out(fold)
    if not limit or limit >= len(ids):
        return ids
    rng = np.random.default_rng(0)
    labels = np.unique(np.array(split.labels, dtype=object)[split.folds == fold].astype(str), return_inverse=True)[1]
    turn = np.empty(len(ids))  # at which a row of a class comes: spread evenly over that class, from a start of its own
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        turn[rng.permutation(rows)] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return tuple(ids[i] for i in np.sort(np.argsort(turn, kind="stable")[:limit]))
