"""The ensemble: exports × views over the test images, combined and written with its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files, provenance
from toolkit.blending.combination import Combination
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.ensemble.as_made import ROWS, measure
from toolkit.ensemble.combine import combine, views_for, weights_of, with_prior
from toolkit.ensemble.held_out_rows import Making, Say
from toolkit.errors import DataError, StoreError
from toolkit.inference.early_stopping import LabelVote
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, read_exports
from toolkit.inference.outcome import PredictOutcome, bad_images_error
from toolkit.inference.schedule import Scheduled, make_passes
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.retention import Keeping
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import FILE, Competition
from toolkit.workspace.image_rows import Items
from toolkit.workspace.split import SPLIT_FILE, Split


@dataclass(frozen=True, eq=False)
class EnsembleRun:
    """What `run_ensemble` made: predictions per target, where they were written, and how; `making` is for `with_evidence`."""

    predictions: Mapping[str, Predictions]
    path: Path
    meta: Mapping[str, Any]
    outcome: PredictOutcome
    notes: tuple[str, ...] = ()
    making: Making = field(default_factory=Making)

    @property
    def record(self) -> dict[str, Any]:
        """Where it stands, what was computed, and how, as plain values."""
        bad = [{"id": image.id, "why": image.why} for image in self.outcome.bad]
        done = {"passes": self.outcome.passes, "seconds": self.outcome.seconds, "bad": bad, "notes": list(self.notes)}
        return {"ok": True, "path": str(self.path), **done, **self.meta}


def run_ensemble(
    competition: Competition,
    paths: Sequence[Path],
    combination: Combination = Combination(),
    execution: Execution = Execution(),
    *,
    name: str = "ensemble",
    limit: int | None = None,
    origin: Mapping[str, Any] | None = None,
) -> EnsembleRun:
    """Predict the test images with every export and view, combine, and write predictions/<name>.parquet.

    `limit` takes the first so many rows only. What `origin` says (plain values: how views and engine were chosen) is kept with
    the predictions. At the deadline the models that are through are combined, and the others are named.

    Raises:
        ModelError, CardError, DataError, DeviceError: see `read_exports`, `share`, `views` and `make_passes`.
        ImageError: images that cannot be used (all are listed); the others stay in the store and no predictions are written.
        StoreError: the disk takes no more.
    """
    exports = read_exports(paths, competition, members=combination.members)
    weights = weights_of(competition, exports, combination)
    _check(combination)
    models = WeightedModels(exports, views_for(exports, combination.tta), _mean(weights, combination))
    ids, items, said = _test_images(competition, limit)
    with Store(competition.path("store"), passing=execution.keeping.what == "none") as store:
        question = LabelVote(competition.targets, ids, combination.votes, competition.per_id)
        scheduled = make_passes(
            models, items, store, execution, boxes=competition.boxes, labels=question if combination.labels_only else None
        )
        if scheduled.outcome.bad and execution.on_bad_image != "prior":
            raise bad_images_error(scheduled.outcome.bad, code="bad-images-prior")
        by_digest = {target: dict(zip((e.digest for e in exports), own, strict=True)) for target, own in weights.items()}
        combined = _combined(competition, combination, scheduled, by_digest, ids)
        ties = {target: count for target, (_, count) in combined.items()}
        meta = _meta(competition, combination, execution, scheduled, name=name, ties=ties, limit=limit)
        meta |= {**(origin or {}), **_blended(competition, combination)}
        predictions = {target: table for target, (table, _) in combined.items()}
        meta["evidence"] = {"unknown": "it was not measured after the predictions were made"}
        making = _making(combination, scheduled, by_digest, meta)
        path = prediction_files.write_table(competition.path("predictions", f"{name}.parquet"), predictions, meta)
        if execution.keeping.what == "none":
            store.forget()
    notes = (*said, *scheduled.outcome.notes, *_notes(competition, scheduled.models.exports))
    return EnsembleRun(predictions, path, meta, scheduled.outcome, notes, making)


def with_evidence(
    competition: Competition,
    run: EnsembleRun,
    execution: Execution = Execution(),
    *,
    rows: int | None = ROWS,
    say: Say | None = None,
) -> EnsembleRun:
    """Measure what predictions would score out of fold as they were made (see `as_made.measure`), and keep it with them.

    They stand already, and do so whatever comes of this: what goes wrong is a note. `execution` is that of the predictions; of
    the first rows alone, and after a deadline, nothing is computed.
    """
    whole = run.meta["limit"] is None and execution.deadline is None
    outcome = run.outcome
    evidence = measure(
        competition,
        run.making,
        replace(execution, deadline=None, keeping=Keeping(), runner="", announce=None),
        rows=rows if whole else 0,
        seconds=outcome.seconds / outcome.passes if outcome.passes else 0.0,
        say=say,
    )
    meta = {**run.meta, "evidence": evidence}
    try:
        prediction_files.write_table(run.path, run.predictions, meta)
    except StoreError as error:
        return replace(run, notes=(*run.notes, f"the score is not kept with the predictions: {error.message}"))
    return replace(run, meta=meta)


def _making(
    combination: Combination, scheduled: Scheduled, weights: Mapping[str, Mapping[str, float]], meta: Mapping[str, Any]
) -> Making:
    """How predictions were made, of the models that are in them."""
    models = scheduled.models
    shares = dict(zip([e.digest for e in models.exports], models.weights or [1.0] * len(models.exports), strict=True))
    by_member: dict[str, dict[str, float]] = {target: {} for target in weights}
    for target, own in weights.items():
        for export in models.exports:
            weight = own[export.digest] if combination.blend else shares[export.digest]
            by_member[target][export.card.member] = by_member[target].get(export.card.member, 0.0) + weight
    judged = meta.get("tta", {}).get("members", {})
    chosen = {
        name: {int(fold): sets for fold, sets in finding["outer"].items()}
        for name, finding in judged.items()
        if finding.get("chosen")
    }
    views = {export.card.member: tuple(models.views[export.digest]) for export in models.exports}
    return Making(by_member, views, combination, tuple(models.exports), shares, chosen)


def _check(combination: Combination) -> None:
    blend = combination.blend
    if combination.labels_only and blend and (len(blend) > 1 or not all(own.plain for own in blend.values())):
        raise DataError(
            "labels alone cannot be decided early where temperatures or thresholds follow",
            hint="Ask for more than labels: they are then those of the whole blend.",
            code="labels-only-blend",
        )


def _mean(weights: Mapping[str, Sequence[float]], combination: Combination) -> list[float]:
    """One weight per model: of blends that say one per target, their mean."""
    if not combination.blend:
        return list(next(iter(weights.values())))
    mean: list[float] = np.mean(list(weights.values()), axis=0).tolist()
    return mean


def _test_images(competition: Competition, limit: int | None) -> tuple[list[str], Items, list[str]]:
    """The rows that are predicted, in their order, the images that they have, and what is to be said of these."""
    files, notes = competition.found_images("test")
    names, paths = zip(*files, strict=True)
    ids = list(dict.fromkeys(names))[:limit]
    wanted = set(ids)
    return ids, Items(names, paths).take(np.flatnonzero([name in wanted for name in names])), notes


def _combined(
    competition: Competition,
    combination: Combination,
    scheduled: Scheduled,
    weights: Mapping[str, Mapping[str, float]],
    ids: Sequence[str],
) -> dict[str, tuple[Predictions, int]]:
    """Per target the predictions and the number of ties; `weights` are those of a blend, per target by model digest."""
    stopping, models = scheduled.stopping, scheduled.models
    combined = {}
    for number, target in enumerate(competition.targets):
        if stopping is not None and not stopping.off:  # decided before every pass was made
            usable, vote = stopping.labels(number)
            combined[target.name] = with_prior(competition, target, ids, usable, [vote]), int(vote.ties.sum())
            continue
        own = [weights[target.name][export.digest] for export in models.exports] if combination.blend else models.weights
        weighted = replace(models, weights=own)
        combined[target.name] = combine(competition, target, weighted, scheduled.outcome, ids, combination)
    return combined


def _meta(
    competition: Competition,
    combination: Combination,
    execution: Execution,
    scheduled: Scheduled,
    *,
    name: str,
    ties: Mapping[str, int],
    limit: int | None,
) -> dict[str, Any]:
    """What predictions were made of and how: models and their weights, views, pixels, device, split, unusable images."""
    outcome, models, keeping = scheduled.outcome, scheduled.models, execution.keeping
    weights = models.weights or []
    return {
        "created": provenance.now(),
        "views": {export.card.member: list(models.views[export.digest]) for export in models.exports},
        "models": [_origin(export, weight, competition) for export, weight in zip(models.exports, weights, strict=True)],
        "images": {"count": len(outcome.items), "trusted": outcome.trusted},
        "pixels": outcome.pixels,
        "device": outcome.device,
        "split": sorted({export.card.split for export in models.exports} - {""}),
        "bad_images": [{"id": bad.id, "path": _relative(bad.path, competition), "why": bad.why} for bad in outcome.bad],
        "cut_short": [{"id": cut.id, "path": _relative(cut.path, competition), "why": cut.why} for cut in outcome.partial],
        "competition": {"sha256": files.sha256(competition.path(FILE))},
        "stopping": scheduled.stopping.record if scheduled.stopping else None,
        "late": [_relative(export.path, competition) for export in scheduled.late],
        "kept": {"what": keeping.what, "as": keeping.kept_as},
        "name": name,
        "vote": combination.votes,
        "view_set": combination.tta,
        "ties": ties,
        "limit": limit,
        "on_bad_image": execution.on_bad_image,
    }


def _blended(competition: Competition, combination: Combination) -> dict[str, Any]:
    """What predictions say of the blend they were made with: all of it, and whether anything but a vote is in it."""
    if not combination.blend:
        return {}
    blends = combination.blend
    return {
        "blend": {name: blend.record(competition.target(name).classes) for name, blend in blends.items()},
        "temperatures": any(bool((blend.warm != 1).any()) for blend in blends.values()),
        "calibration": any(blend.adjustment is not None for blend in blends.values()),
    }


def _notes(competition: Competition, exports: Sequence[Export]) -> Iterator[str]:
    """What does not forbid an ensemble, but may surprise whoever made it."""
    split = Split.if_made(competition)
    here = split.digest if split else ""
    other = sorted({export.card.member for export in exports if here and export.card.split not in ("", here)})
    if other:
        yield f"{', '.join(other)} was trained on another split than {SPLIT_FILE}: out-of-fold scores do not compare row by row"
    folds = sorted({export.card.fold for export in exports if export.card.fold is not None and here == export.card.split != ""})
    for fold in folds:
        yield from split.unseen_notes(fold) if split else []


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
    return provenance.portable(path.resolve(), competition.root.resolve())
