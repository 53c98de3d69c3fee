"""The ensemble: exports × views over images, views merged, fold models combined by vote, written with its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit import files, splitting, tables, voting
from toolkit.competition import FILE, Competition, Target
from toolkit.errors import DataError, ImageError, ModelError
from toolkit.folds import Split
from toolkit.formats import FORMATS
from toolkit.graphs import Export
from toolkit.inference import BadImage, Item, Opener, Outcome, Progress, predict
from toolkit.members import output_of, read_exports, share
from toolkit.predictions import Predictions, concat
from toolkit.sessions import open_session
from toolkit.store import Store
from toolkit.views import needs_square, views

ROWS = 4096  # rows combined at a time, so that memory does not grow with members × views × images

OnBadImage = Literal["fail", "prior"]
F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What `run` made: predictions per target, where they were written, and how."""

    predictions: Mapping[str, Predictions]
    path: Path
    meta: Mapping[str, Any]
    outcome: Outcome
    notes: tuple[str, ...] = ()


def run(
    competition: Competition,
    paths: Sequence[Path],
    *,
    tta: str = "none",
    vote: str = "soft",
    weights: str = "",
    members: Sequence[str] = (),
    device: str = "auto",
    batch: int | None = None,
    limit: int | None = None,
    name: str = "ensemble",
    on_bad_image: OnBadImage = "fail",
    progress: Progress | None = None,
    opener: Opener = open_session,
) -> Ensemble:
    """Predict the test images with every export and view, combine, and write predictions/<name>.parquet.

    Raises:
        ModelError, CardError, DataError, DeviceError: see `read_exports`, `share`, `views` and `open_session`.
        ImageError: images that cannot be used (all are listed); the others stay in the store and no predictions are written.
        StoreError: the disk takes no more.
    """
    exports = read_exports(paths, competition, members=members)
    given = share(exports, weights, higher_is_better=competition.score.higher_is_better)
    view_set = _views_for(exports, tta)
    items = [Item(name, path) for name, path in competition.images("test")]
    ids = list(dict.fromkeys(item.id for item in items))[:limit]
    wanted = set(ids)
    items = [item for item in items if item.id in wanted]
    outcome = predict(
        exports,
        {export.digest: view_set for export in exports},
        items,
        Store(competition.path("store")),
        device=device,
        batch=batch,
        progress=progress,
        opener=opener,
    )
    if outcome.bad and on_bad_image == "fail":
        raise _bad_images(outcome.bad)
    combined = {
        target.name: combine(competition, target, exports, outcome, ids, views=view_set, vote=vote, share=given)
        for target in competition.targets
    }
    meta = _meta(competition, exports, given, outcome, view_set) | {
        "name": name,
        "vote": vote,
        "view_set": tta,
        "ties": {target: ties for target, (_, ties) in combined.items()},
        "limit": limit,
        "on_bad_image": on_bad_image,
    }
    predictions = {target: table for target, (table, _) in combined.items()}
    path = tables.write_table(competition.path("predictions", f"{name}.parquet"), predictions, meta)
    return Ensemble(predictions, path, meta, outcome, tuple(_notes(competition, exports, vote)))


def combine(
    competition: Competition,
    target: Target,
    exports: Sequence[Export],
    outcome: Outcome,
    ids: Sequence[str],
    *,
    views: Sequence[str],
    vote: str = "soft",
    share: Sequence[float] | None = None,
) -> tuple[Predictions, int]:
    """Views merged, then the images of a row, then one flat vote over fold models; the predictions and the number of ties.

    Rows without a usable image get the class prior of the training labels.

    Raises:
        ModelError: NaN or infinite logits.
        DataError: an unknown vote.
    """
    step = max(len(ids), 1) if vote in voting.WHOLE_TABLE else ROWS
    found: list[voting.Vote] = []
    per_id: dict[str, list[int]] = {name: [] for name in ids}
    for place, item in enumerate(outcome.items):
        if item.id in per_id:
            per_id[item.id].append(place)
    good = [name for name in ids if per_id[name]]
    for start in range(0, len(good), step):
        groups = [per_id[name] for name in good[start : start + step]]
        rows = np.concatenate([np.array(group) for group in groups])
        stack = np.stack([_member_rows(export, target, outcome, rows, views) for export in exports])
        if len(rows) > len(groups):
            stack = _per_row(stack, np.cumsum([0, *map(len, groups[:-1])]), competition.per_id, multilabel=target.multilabel)
        found.append(voting.vote(stack, how=vote, weights=share, multilabel=target.multilabel))
    ties = sum(int(part.ties.sum()) for part in found)
    return _with_prior(competition, target, ids, good, found), ties


def out_of_fold(
    competition: Competition,
    exports: Sequence[Export],
    split: Split,
    *,
    tta: str = "none",
    device: str = "auto",
    batch: int | None = None,
    progress: Progress | None = None,
    opener: Opener = open_session,
) -> dict[str, Predictions]:
    """Every row predicted by the one fold model that did not see it (per target, views merged), through the store.

    `exports` are the folds of one member; the rows are those their folds hold out.

    Raises:
        ModelError: an export made from another split, or none with a fold.
        ImageError: images that cannot be used; all are listed.
    """
    paths: dict[str, list[Path]] = {}
    for name, path in competition.images("train"):
        paths.setdefault(name, []).append(path)
    scored = [export for export in exports if export.card.fold is not None]
    if not scored:
        raise ModelError("none of the models has a fold that it did not see")
    view_set = _views_for(scored, tta)
    store, total = Store(competition.path("store")), 0
    parts: dict[str, list[Predictions]] = {target.name: [] for target in competition.targets}
    rows = {export.digest: split.held_out(export.card.fold or 0) for export in scored}
    count = sum(len(paths[name]) for ids in rows.values() for name in ids)
    for export in scored:
        if export.card.split != split.digest:
            raise ModelError(
                f"{export.path} was trained on split {export.card.split}, this one is {split.digest}",
                hint="Restore the split.csv it was trained with, or train again.",
            )
        ids = rows[export.digest]
        items = [Item(name, path) for name in ids for path in paths[name]]
        before = total
        total += len(items)
        report = (lambda done, _all, before=before: progress(before + done, count)) if progress else None
        outcome = predict(
            [export], {export.digest: view_set}, items, store, device=device, batch=batch, progress=report, opener=opener
        )
        if outcome.bad:
            raise _bad_images(outcome.bad)
        for target in competition.targets:
            parts[target.name].append(combine(competition, target, [export], outcome, ids, views=view_set)[0])
    return {name: concat(found) for name, found in parts.items()}


def _meta(
    competition: Competition, exports: Sequence[Export], weights: Sequence[float], outcome: Outcome, view_set: Sequence[str]
) -> dict[str, Any]:
    """What predictions were made of: models and their weights, views, pixels, device, split, images that could not be used."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "views": {export.card.member: list(view_set) for export in exports},
        "models": [_origin(export, weight, competition) for export, weight in zip(exports, weights, strict=True)],
        "pixels": outcome.pixels,
        "device": outcome.device,
        "split": sorted({export.card.split for export in exports} - {""}),
        "bad_images": [{"id": bad.id, "path": _relative(bad.path, competition), "why": bad.why} for bad in outcome.bad],
        "competition": {"sha256": files.sha256(competition.path(FILE))},
    }


def _notes(competition: Competition, exports: Sequence[Export], vote: str) -> Iterator[str]:
    """What does not forbid an ensemble, but may surprise whoever made it."""
    path = competition.path(splitting.TABLE)
    here = Split.read(path).digest if path.exists() else ""
    other = sorted({export.card.member for export in exports if here and export.card.split not in ("", here)})
    if other:
        yield f"{', '.join(other)} was trained on another split than {path.name}: out-of-fold scores do not compare row by row"
    if vote == "hard" and competition.format in FORMATS and FORMATS[competition.format].values:
        yield f"hard votes leave labels only, and the submission format {competition.format!r} needs numbers: use --vote soft"


def _member_rows(export: Export, target: Target, outcome: Outcome, rows: NDArray[np.int64], views: Sequence[str]) -> F64:
    """One fold model's probabilities of some items, its classes put in the competition's order."""
    output = output_of(export, target.name)
    values = outcome.probabilities(export, output, views, outcome.digests[rows])
    order = [output.classes.index(name) for name in target.classes]
    return values[:, order]


def _per_row(stack: F64, starts: NDArray[np.int64], how: str, *, multilabel: bool) -> F64:
    """Images (M, n, C) to rows (M, N, C): the mean or the (renormalised) maximum over each row's images."""
    if how == "max":
        merged = np.maximum.reduceat(stack, starts, axis=1)
        return merged if multilabel else np.asarray(merged / merged.sum(axis=2, keepdims=True))
    counts = np.diff([*starts.tolist(), stack.shape[1]])
    return np.asarray(np.add.reduceat(stack, starts, axis=1) / counts[None, :, None])


def _with_prior(
    competition: Competition, target: Target, ids: Sequence[str], good: list[str], found: list[voting.Vote]
) -> Predictions:
    """The votes as predictions over all ids; rows that have no usable image say what the training labels say."""
    kind = found[0].kind if found else "probabilities"
    hard = kind == "labels"
    there = set(good)
    missing = [name for name in ids if name not in there]
    if missing and kind == "scores":
        raise DataError(
            f"{len(missing):,} rows have no usable image, and ranks have no prior to stand in for them", hint="Use --vote soft."
        )
    parts: list[Any] = [part.labels if hard else part.values for part in found]
    if missing:
        truth = competition.truth()[target.name].with_classes(target.classes).decided
        prior: Any = truth.mean(axis=0) if target.multilabel else np.bincount(truth, minlength=len(target.classes)) / len(truth)
        if hard:
            prior = prior >= 0.5 if target.multilabel else prior.argmax()
        parts.append(np.stack([prior] * len(missing)))
    every = np.concatenate(parts) if parts else np.zeros((0, len(target.classes)))
    table = Predictions(
        target.name,
        kind,
        (*good, *missing),
        target.classes,
        values=None if hard else every,
        labels=every if hard else None,
        multilabel=target.multilabel,
    )
    return table.align(ids)


def _views_for(exports: Sequence[Export], tta: str) -> tuple[str, ...]:
    wanted = views(tta)
    for export in exports:
        height, width = export.card.preprocess.size
        if height != width and any(needs_square(view) for view in wanted):
            raise DataError(
                f"--tta {tta} turns images by 90°, {export.title} takes {height}×{width}", hint="Use --tta flip or hflip."
            )
    return wanted


def _bad_images(bad: Sequence[BadImage]) -> ImageError:
    shown = "\n  ".join(image.why for image in bad)
    count = f"{len(bad):,} image{'s' if len(bad) > 1 else ''}"
    return ImageError(
        f"{count} cannot be used; the others are finished and kept, nothing was written:\n  {shown}",
        hint="Mend them and run the same command again, or use --on-bad-image prior to give them the class prior.",
    )


def _origin(export: Export, weight: float, competition: Competition) -> dict[str, Any]:
    return {
        "path": _relative(export.path, competition),
        "member": export.card.member,
        "fold": export.card.fold,
        "digest": export.digest,
        "sha256": export.sha256,
        "weight": weight,
        "score": export.card.score,
        "metric": export.card.metric,
    }


def _relative(path: Path, competition: Competition) -> str:
    """The path as seen from the workspace; only the name of what lies outside, since manifests carry no machine's paths."""
    try:
        return path.resolve().relative_to(competition.root.resolve()).as_posix()
    except ValueError:
        return path.name
