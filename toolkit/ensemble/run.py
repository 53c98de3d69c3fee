"""The ensemble: exports × views over images, views merged, fold models combined by vote, written with its origin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.base import files, provenance
from toolkit.base.arrays import F64
from toolkit.blending.blend import Blend
from toolkit.core import prediction_files, voting
from toolkit.core.predictions import Predictions, concat
from toolkit.errors import DataError, ImageError, ModelError
from toolkit.images.views import needs_square, per_member, views
from toolkit.inference.early_stopping import Deciding, decided
from toolkit.inference.exports import output_of, read_exports, share
from toolkit.inference.predict import BadImage, Opener, Outcome, Progress, predict
from toolkit.inference.schedule import Fill, stage
from toolkit.inference.store.file_index import Digests
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.retention import Keeping
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import open_session
from toolkit.submissions.formats import FORMATS
from toolkit.workspace.competition import FILE, Competition, Target
from toolkit.workspace.image_rows import Item, Items
from toolkit.workspace.split import SPLIT_FILE, Split

_WHOLE = "Leave --labels-only out: the labels are then those of the whole blend."
ROWS = 4096  # rows combined at a time, so that memory does not grow with members × views × images

OnBadImage = Literal["fail", "prior"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What `run` made: predictions per target, where they were written, and how."""

    predictions: Mapping[str, Predictions]
    path: Path
    meta: Mapping[str, Any]
    outcome: Outcome
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """Where it stands, what was computed, and how, as plain values."""
        bad = [{"id": image.id, "why": image.why} for image in self.outcome.bad]
        done = {"passes": self.outcome.passes, "seconds": self.outcome.seconds, "bad": bad, "notes": list(self.notes)}
        return {"ok": True, "path": str(self.path), **done, **self.meta}


def run(
    competition: Competition,
    paths: Sequence[Path],
    *,
    tta: str = "none",
    vote: str = "soft",
    weights: str = "",
    blend: Mapping[str, Blend] | None = None,
    members: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    batch: int | None = None,
    limit: int | None = None,
    name: str = "ensemble",
    on_bad_image: OnBadImage = "fail",
    labels_only: bool = False,
    deadline: float | None = None,
    keeping: Keeping = Keeping(),  # noqa: B008 - frozen
    said: Mapping[str, Any] | None = None,
    announce: Callable[[str], object] | None = None,
    fill: Fill | None = None,
    progress: Progress | None = None,
    opener: Opener = open_session,
) -> Ensemble:
    """Predict the test images with every export and view, combine, and write predictions/<name>.parquet.

    A `blend` per target says weights, vote, temperatures and adjustment instead of `weights` and `vote`.
    With `labels_only` the predictions are labels, and passes that cannot change one are left out (see `Deciding`). At the
    `deadline`, in seconds from now, the models that are through are combined, and the others are named. What is `said` is kept
    with the predictions.

    Raises:
        ModelError, CardError, DataError, DeviceError: see `read_exports`, `share`, `views` and `open_session`.
        ImageError: images that cannot be used (all are listed); the others stay in the store and no predictions are written.
        StoreError: the disk takes no more.
    """
    exports: Sequence[Export] = read_exports(paths, competition, members=members)
    shares = _shares(competition, exports, weights, blend)
    given = np.mean(list(shares.values()), axis=0).tolist() if blend else shares[""]
    by_target = {name: dict(zip((e.digest for e in exports), one, strict=True)) for name, one in shares.items()}
    vote = next(iter(blend.values())).vote if blend else vote
    if labels_only and blend and (len(blend) > 1 or not all(one.plain for one in blend.values())):
        raise DataError("labels alone cannot be decided early where temperatures or thresholds follow", hint=_WHOLE)
    chosen = views_for(exports, tta)
    names, found = zip(*competition.image_files("test"), strict=True)
    ids = list(dict.fromkeys(names))[:limit]
    wanted = set(ids)
    items = Items(names, found).take(np.flatnonzero([name in wanted for name in names]))
    deciding = _deciding(competition, exports, chosen, given, items, ids, vote) if labels_only else None
    store = Store(competition.path("store"), passing=keeping.what == "none")
    staged = stage(
        exports,
        chosen,
        given,
        items,
        store,
        keeping=keeping,
        deadline=deadline,
        deciding=deciding,
        announce=announce,
        fill=fill,
        device=device,
        precision=precision,
        batch=batch,
        boxes=competition.boxes,
        progress=progress,
        opener=opener,
    )
    outcome, exports, given = staged.outcome, staged.exports, staged.share
    if outcome.bad and on_bad_image == "fail":
        raise _bad_images(outcome.bad)
    combined = {
        target.name: _settled(competition, number, staged.decided, ids)
        if staged.decided
        else combine(
            competition,
            target,
            exports,
            outcome,
            ids,
            views=chosen,
            vote=vote,
            share=[by_target[target.name][export.digest] for export in exports] if blend else given,
            labels=labels_only,
            blend=blend[target.name] if blend else None,
        )
        for number, target in enumerate(competition.targets)
    }
    meta = _meta(competition, exports, given, outcome, chosen) | {
        "stopping": _stopping(deciding),
        "late": [_relative(export.path, competition) for export in staged.late],
        "kept": {"what": keeping.what, "as": keeping.kept_as},
        "name": name,
        "vote": vote,
        "view_set": tta,
        "ties": {target: ties for target, (_, ties) in combined.items()},
        "limit": limit,
        "on_bad_image": on_bad_image,
        **(said or {}),
    }
    if blend:
        meta |= _blended(competition, blend)
    predictions = {target: table for target, (table, _) in combined.items()}
    path = prediction_files.write_table(competition.path("predictions", f"{name}.parquet"), predictions, meta)
    if keeping.what == "none":
        store.forget()
    return Ensemble(predictions, path, meta, outcome, tuple(_notes(competition, exports, vote, labels=labels_only)))


def _deciding(
    competition: Competition,
    exports: Sequence[Export],
    views: Mapping[str, Sequence[str]],
    share: Sequence[float],
    items: Items,
    ids: Sequence[str],
    vote: str,
) -> Deciding:
    return Deciding(exports, views, share, competition.targets, items, ids, vote, competition.per_id)


def _settled(competition: Competition, target: int, decided: Deciding, ids: Sequence[str]) -> tuple[Predictions, int]:
    """Labels that were decided before every pass was made; the number of ties."""
    good, found = decided.outcome(target)
    return _with_prior(competition, competition.targets[target], ids, good, [found]), int(found.ties.sum())


def _stopping(deciding: Deciding | None) -> dict[str, Any] | None:
    """How many passes the labels took, for those who read predictions: of how many, and how many per image."""
    if deciding is None or deciding.off:
        return None if deciding is None else {"off": deciding.off}
    images = max(deciding.images, 1)
    possible = deciding.possible
    return {"passes": deciding.used, "possible": possible, "mean": deciding.used / images, "of": possible / images}


def combine(
    competition: Competition,
    target: Target,
    exports: Sequence[Export],
    outcome: Outcome,
    ids: Sequence[str],
    *,
    views: Mapping[str, Sequence[str]],
    vote: str = "soft",
    share: Sequence[float] | None = None,
    labels: bool = False,
    blend: Blend | None = None,
) -> tuple[Predictions, int]:
    """Views merged, then the images of a row, then one flat vote over fold models; the predictions and the number of ties.

    Rows without a usable image get the class prior of the training labels. A `blend` cools each model by its member's
    temperature before the vote, which it names, and adjusts what the vote says. With `labels` nothing but labels is given back.

    Raises:
        ModelError: NaN or infinite logits.
        DataError: an unknown vote.
    """
    place = dict(zip(ids, range(len(ids)), strict=True))
    row = np.array([place.get(name, -1) for name in outcome.items.ids], dtype=np.int64)
    order = np.argsort(row, kind="stable")[int((row < 0).sum()) :]
    rows, starts = np.unique(row[order], return_index=True)
    step = max(len(ids), 1) if vote in voting.WHOLE_TABLE else ROWS

    def part(first: int) -> voting.Vote:
        begin, end = starts[first], starts[first + step] if first + step < len(rows) else len(order)
        some = starts[first : first + step] - begin
        digests = outcome.digests[order[begin:end]]
        stack = np.stack([_member_rows(export, target, outcome, digests, views[export.digest]) for export in exports])
        if end - begin > len(some):
            stack = voting.per_row(stack, some, competition.per_id, multilabel=target.multilabel)
        return _voted(stack, exports, vote, share, blend, multilabel=target.multilabel)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # numpy sorts and adds up without the GIL
        found = list(pool.map(part, range(0, len(rows), step)))
    good = [ids[i] for i in rows.tolist()]
    if labels:
        found = [voting.Vote(None, decided(part, multilabel=target.multilabel), part.ties, "labels") for part in found]
    ties = sum(int(part.ties.sum()) for part in found)
    return _with_prior(competition, target, ids, good, found), ties


def _voted(
    stack: F64,
    exports: Sequence[Export],
    vote: str,
    share: Sequence[float] | None,
    blend: Blend | None,
    *,
    multilabel: bool,
) -> voting.Vote:
    if blend is None:
        return voting.vote(stack, how=vote, weights=share, multilabel=multilabel)
    tables = zip(exports, stack, strict=True)
    cold = [blend.cooled(export.card.member, table, multilabel=multilabel) for export, table in tables]
    return blend.combine(np.stack(cold), share or [1.0] * len(cold), multilabel=multilabel)


def _shares(
    competition: Competition, exports: Sequence[Export], weights: str, blend: Mapping[str, Blend] | None
) -> dict[str, list[float]]:
    """The weights of the models in their order, by target where a blend says them, else under ""."""
    better = competition.score.higher_is_better
    if blend is None:
        return {"": share(exports, weights, higher_is_better=better)}
    return {name: share(exports, one.spec, higher_is_better=better) for name, one in blend.items()}


def _blended(competition: Competition, blend: Mapping[str, Blend]) -> dict[str, Any]:
    """What predictions say of the blend they were made with: all of it, and whether anything but a vote is in it."""
    records = {name: one.record(competition.target(name).classes) for name, one in blend.items()}
    beyond = {
        "temperatures": any(bool((one.warm != 1).any()) for one in blend.values()),
        "calibration": any(one.adjustment is not None for one in blend.values()),
    }
    return {"blend": records} | beyond


def out_of_fold(
    competition: Competition, exports: Sequence[Export], split: Split, *, tta: str = "none", **how: Any
) -> dict[str, Predictions]:
    """Every row predicted by the fold models that did not see it (per target, views merged), through the store.

    `exports` are the folds of one member; the rows are those their folds hold out. `how` is what `unseen` takes.

    Raises:
        ModelError: see `unseen`.
        ImageError: images that cannot be used; all are listed.
    """
    chosen = views_for(exports, tta)
    parts: dict[str, list[Predictions]] = {target.name: [] for target in competition.targets}
    for group, ids, outcome in unseen(competition, exports, split, chosen, **how):
        if outcome.bad:
            raise _bad_images(outcome.bad)
        for target in competition.targets:
            parts[target.name].append(combine(competition, target, group, outcome, ids, views=chosen)[0])
    return {name: concat(found) for name, found in parts.items()}


def unseen(
    competition: Competition,
    exports: Sequence[Export],
    split: Split,
    views: Mapping[str, Sequence[str]],
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Iterator[tuple[list[Export], tuple[str, ...], Outcome]]:
    """Fold by fold: the models (of one or several members) that did not see it, its ids, and what they say of its images.

    `views` are those wanted of each model, by its digest; `limit` draws about so many ids in all, as many of each fold;
    `how` is what `predict` takes. Models without a fold are left out.

    Raises:
        ModelError: an export made from another split, or none with a fold.
        DeviceError, StoreError: see `predict`.
    """
    scored = [export for export in exports if export.card.fold is not None]
    if not scored:
        raise ModelError("none of the models has a fold that it did not see")
    for export in scored:
        if export.card.split != split.digest:
            raise ModelError(
                f"{export.path} was trained on split {export.card.split}, this one is {split.digest}",
                hint="Restore the split.csv it was trained with, or train again.",
            )
    paths: dict[str, list[Path]] = {}
    for name, path in competition.images("train"):
        paths.setdefault(name, []).append(path)
    folds = sorted({export.card.fold or 0 for export in scored})
    rows = {fold: _spread(split.held_out(fold), limit and -(-limit // len(folds))) for fold in folds}
    items = {fold: [Item(name, path) for name in rows[fold] for path in paths[name]] for fold in folds}
    done, count, store = 0, sum(map(len, items.values())), Store(competition.path("store"))
    for fold in folds:
        group = [export for export in scored if export.card.fold == fold]
        report = (lambda now, _all, before=done: progress(before + now, count)) if progress else None
        found = predict(group, views, items[fold], store, boxes=competition.boxes, progress=report, **how)
        yield group, rows[fold], found
        done += len(items[fold])


def _spread(ids: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
    """So many of the ids, always the same, drawn by chance: every n-th could follow a pattern in the data."""
    if not limit or limit >= len(ids):
        return ids
    return tuple(ids[i] for i in np.sort(np.random.default_rng(0).permutation(len(ids))[:limit]))


def _meta(
    competition: Competition,
    exports: Sequence[Export],
    weights: Sequence[float],
    outcome: Outcome,
    chosen: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What predictions were made of: models and their weights, views, pixels, device, split, images that could not be used."""
    return {
        "created": provenance.now(),
        "views": {export.card.member: list(chosen[export.digest]) for export in exports},
        "models": [_origin(export, weight, competition) for export, weight in zip(exports, weights, strict=True)],
        "pixels": outcome.pixels,
        "device": outcome.device,
        "split": sorted({export.card.split for export in exports} - {""}),
        "bad_images": [{"id": bad.id, "path": _relative(bad.path, competition), "why": bad.why} for bad in outcome.bad],
        "competition": {"sha256": files.sha256(competition.path(FILE))},
    }


def _notes(competition: Competition, exports: Sequence[Export], vote: str, *, labels: bool) -> Iterator[str]:
    """What does not forbid an ensemble, but may surprise whoever made it."""
    split = Split.if_made(competition)
    here = split.digest if split else ""
    other = sorted({export.card.member for export in exports if here and export.card.split not in ("", here)})
    if other:
        yield f"{', '.join(other)} was trained on another split than {SPLIT_FILE}: out-of-fold scores do not compare row by row"
    if (labels or vote == "hard") and competition.format in FORMATS and FORMATS[competition.format].values:
        what, cure = ("--labels-only leaves", "leave it out") if labels else ("hard votes leave", "use --vote soft")
        yield f"{what} labels only, and the submission format {competition.format!r} needs numbers: {cure}"


def _member_rows(export: Export, target: Target, outcome: Outcome, digests: Digests, views: Sequence[str]) -> F64:
    """One fold model's probabilities of some images, its classes put in the competition's order."""
    output = output_of(export, target.name)
    values = outcome.probabilities(export, output, views, digests)
    order = [output.classes.index(name) for name in target.classes]
    return values if order == sorted(order) else values[:, order]


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
        prior: Any = competition.prior(target)
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


def views_for(exports: Sequence[Export], tta: str) -> dict[str, tuple[str, ...]]:
    """The views of each model, by its digest: of one set, or of a set per member (`b4=flip,vit=none`).

    Raises:
        DataError: see `views.per_member`; quarter turns of inputs that are not square.
    """
    sets = per_member(tta, list(dict.fromkeys(export.card.member for export in exports)))
    found = {export.digest: views(sets[export.card.member]) for export in exports}
    for export in exports:
        height, width = export.card.preprocess.size
        if height != width and any(map(needs_square, found[export.digest])):
            raise DataError(
                f"--tta {tta} turns images by 90°, {export.title} takes {height}×{width}", hint="Use --tta flip or hflip."
            )
    return found


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
