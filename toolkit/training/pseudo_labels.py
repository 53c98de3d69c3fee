"""Learning from predictions: pseudo-labels for unlabelled images, soft labels for labelled ones, so that no fold is told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.arrays import F64
from toolkit.core import prediction_files
from toolkit.core.cards import Card
from toolkit.core.lineage import Lineage, Seen
from toolkit.errors import AlignmentError, TrainingError, few
from toolkit.images import render
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports, output_of, read_exports
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.training.fold.decoded_cache import decoded
from toolkit.training.fold.samples import Rows, Samples
from toolkit.training.plan import TrainingPlan
from toolkit.training.settings import setting
from toolkit.workspace.image_rows import Item

Report = dict[str, Any]


@dataclass(frozen=True)
class SelfTraining:
    """Settings for a recipe's Config to inherit: from which predictions a member learns beside the labels.

    The rule that keeps scores honest: what fold k learns from must not have seen the labels that score fold k. The teacher's
    own model of fold k has not, on the same split; it labels for fold k alone. The mean of all its folds has, and so have its
    out-of-fold predictions: each of fold k's training rows was predicted by a model that trained on fold k's held-out rows.
    Measured on labels that are pure noise, where 0.500 is honest (benchmarks/soft_labels.py, ten seeds): 0.492 to 0.508 with
    the fold's own teacher; with out-of-fold soft labels 0.505 to 0.529 at weight 0.3, and 0.524 to 0.701 at weight 1.
    """

    pseudo: str = setting("", "A folder of unlabelled images to learn from as well; --teacher labels them.")
    teacher: str = setting("", "The member that labels them: its fold k for fold k of this one.")
    floor: float = setting(0.9, "Pseudo-labels below this confidence are left out.", minimum=0, maximum=1)
    soft_labels: str = setting("", "A member (its fold k says how sure fold k may be), or oof/MEMBER.parquet (which leaks).")
    soft_weight: float = setting(
        0.3, "The share of soft labels in a target; the rest is the given label.", minimum=0, maximum=1
    )

    def source_digests(self, plan: TrainingPlan) -> Report:
        """What decides the targets beside the settings themselves, as plain values: digests of teachers, tables and images."""
        digests: Report = {}
        for name in filter(None, {self.pseudo and self.teacher, self.soft_labels}):
            if _table(name):
                digests[f"sha256 of {name}"] = _sha(_file(plan, name).read_bytes())
            else:
                digests[f"folds of {name}"] = _sha("".join(sorted(export.digest for export in _exports(plan, name))).encode())
        if self.pseudo:
            stats = [(path.name, path.stat().st_size) for path in render.find(_folder(plan))]
            digests["pseudo images"] = _sha(repr(stats).encode())
        return digests


def taught(plan: TrainingPlan, fold: int | None, rows: Rows, device: str) -> tuple[Rows, Report]:
    """The training rows of a fold with soft targets and pseudo-labelled images as the settings ask, and a report of it.

    Targets become float32 [n, C]. Unlabelled images that are byte for byte a labelled one are left out. Settings without
    any of this give the rows back as they are.

    Raises:
        TrainingError: no teacher, one trained on another split, a folder without images, numbers out of range.
        AlignmentError: soft labels over other classes.
    """
    config = plan.config
    if not isinstance(config, SelfTraining) or not (config.pseudo or config.soft_labels):
        return rows, {}
    if config.pseudo and not config.teacher:
        raise TrainingError("pseudo-labels need a teacher", hint="Name a member that is trained on this split.", code="teacher")
    for name, value in (("floor", config.floor), ("soft_weight", config.soft_weight)):
        if not 0 <= value <= 1:
            raise TrainingError(f"{name} is between 0 and 1, not {value:g}", code="share")
    report: Report = {}
    if config.soft_labels:
        rows, report["soft_labels"] = _soften(plan, fold, rows, device)
    if config.pseudo:
        if rows.soft is None:
            rows = rows.softened(_given(plan, rows).astype(np.float32))
        labelled, report["pseudo"] = _label(plan, fold, device)
        rows = rows.joined(labelled) if len(labelled) else rows
    return rows, report


def check(plan: TrainingPlan, folds: Sequence[int | None]) -> None:
    """Refuse teachers that have seen the rows that score a fold, unless the settings allow it.

    Raises:
        TrainingError: one has; there is none; see `taught`.
    """
    for fold in folds:
        teachers_of(plan, fold)


def teachers_of(plan: TrainingPlan, fold: int | None) -> list[Card]:
    """The cards of the models that teach a fold; none where nobody does.

    Raises:
        TrainingError: see `check`.
    """
    config = plan.config
    if not isinstance(config, SelfTraining):
        return []
    names = dict.fromkeys([*([config.teacher] if config.pseudo and config.teacher else []), config.soft_labels])
    every = [export.card for name in names if name and not _table(name) for export in _teachers(plan, name, fold)]
    seen = [card for card in every if fold is not None and card.exposed]
    if seen and not getattr(config, "allow_seen", False):
        raise TrainingError(
            f"{seen[0].title} has seen the labels that score fold {fold}, and what it teaches would tell of them",
            hint="Learn from a member whose folds saw none of their held-out rows.",
            code="seen-teacher",
        )
    return every


def inherited(plan: TrainingPlan, fold: int | None) -> tuple[Lineage, str]:
    """What a fold learns of through its teachers, and how that makes its scores optimistic ("last": it does not).

    An out-of-fold table tells of all rows that it holds: each was predicted by a model that saw the others.
    """
    every = teachers_of(plan, fold)
    lineage = Lineage()
    for card in every:
        further = (card.title,) if card.known_lineage.elsewhere(plan.split.digest) else ()  # which rows, it cannot say
        lineage |= card.known_lineage | Lineage(unknown=further)
    if leaks(plan):
        return lineage | Lineage((Seen(plan.split.digest),)), "soft-oof"
    if fold is None or not any(card.selected_on_heldout for card in every):
        return lineage, "last"
    return lineage, "seen" if any(card.exposed for card in every) else "inherited"


def leaks(plan: TrainingPlan) -> str:
    """Why scores of this plan are too good, in a sentence; empty where nothing leaks."""
    config = plan.config
    if isinstance(config, SelfTraining) and _table(config.soft_labels):
        return (
            f"soft labels from {config.soft_labels} come from models that saw the held-out labels: scores are optimistic "
            f"(--soft-labels MEMBER uses each fold's own teacher, which did not)"
        )
    return ""


def _table(name: str) -> bool:
    """Whether soft labels are a table, and no member."""
    return name.endswith(".parquet")


def _soften(plan: TrainingPlan, fold: int | None, rows: Rows, device: str) -> tuple[Rows, Report]:
    """Targets between the given label and what the teacher says; rows of which it says nothing keep their label."""
    name, weight = plan.config.soft_labels, plan.config.soft_weight
    ids = [rows.samples.ids[place] for place in rows.places]
    targets = _given(plan, rows)
    if _table(name):
        table = prediction_files.read_table(_file(plan, name)).predictions
        if plan.target.name not in table:
            raise AlignmentError(f"{name} does not predict {plan.target.name!r}, only {few(table)}")
        predictions = table[plan.target.name].with_classes(plan.target.classes)
        known = set(predictions.ids)
        there = np.array([i for i, name in enumerate(ids) if name in known], dtype=np.int64)
        soft = predictions.align([ids[i] for i in there]).values
        if soft is None:
            raise AlignmentError(f"{name} holds labels, soft labels need probabilities")
        teachers = [name]
    else:
        exports = _teachers(plan, name, fold)
        paths = dict(plan.competition.images("train"))
        items, soft, _ = _predict(plan, exports, [Item(id_, paths[id_]) for id_ in ids], device)
        place = {id_: i for i, id_ in enumerate(ids)}
        there = np.array([place[item.id] for item in items], dtype=np.int64)
        teachers = [export.title for export in exports]
    targets[there] = (1 - weight) * targets[there] + weight * soft
    return rows.softened(targets.astype(np.float32)), {"teachers": teachers, "rows": len(there), "weight": weight}


def _label(plan: TrainingPlan, fold: int | None, device: str) -> tuple[Rows, Report]:
    """The unlabelled images that the teacher is sure of, as rows with its probabilities for targets."""
    config = plan.config
    exports = _teachers(plan, config.teacher, fold)
    paths = render.find(_folder(plan))
    labelled = set(_digests(path for _, path in plan.competition.images("train")))
    fresh = [path for path, digest in zip(paths, _digests(paths), strict=True) if digest not in labelled]
    items, probabilities, bad = _predict(plan, exports, [Item(str(path), path) for path in fresh], device)
    sure = np.maximum(probabilities, 1 - probabilities).min(axis=1) if plan.target.multilabel else probabilities.max(axis=1)
    kept = np.flatnonzero(sure >= config.floor)
    report = {
        "teachers": [export.title for export in exports],
        "images": len(paths),
        "labelled already": len(paths) - len(fresh),
        "unreadable": bad,
        "below the floor": len(items) - len(kept),
        "used": len(kept),
    }
    if not len(kept):
        empty = np.zeros((0, probabilities.shape[1]), np.float32)
        return Rows(Samples((), np.zeros((0, 3, 1, 1), np.uint8), empty), kept), report
    chosen = [items[i].path for i in kept]
    boxes = [plan.competition.boxes.of(plan.preprocess.box, str(path), path) for path in chosen]
    pixels = decoded(plan.competition.root, chosen, plan.preprocess, boxes, say=lambda _text: None)
    samples = Samples(tuple(map(str, chosen)), pixels, probabilities[kept].astype(np.float32))
    return Rows(samples, np.arange(len(kept))), report


def _predict(plan: TrainingPlan, exports: Sequence[Export], items: Sequence[Item], device: str) -> tuple[list[Item], F64, int]:
    """The usable items, the exports' mean probabilities of them (n, C) in the target's class order, and the number unusable."""
    views, boxes = {export.digest: ("id",) for export in exports}, plan.competition.boxes
    with Store(plan.competition.path("store")) as store:
        outcome = predict(exports, views, items, store, Execution(device=device), boxes=boxes)
    every = []
    for export in exports:
        output = output_of(export, plan.target.name)
        order = [output.classes.index(name) for name in plan.target.classes]
        every.append(outcome.probabilities(export, output, ("id",), outcome.digests)[:, order])
    return list(outcome.items), np.mean(every, axis=0), len(outcome.bad)


def _teachers(plan: TrainingPlan, member: str, fold: int | None) -> list[Export]:
    """The teacher's models that may teach a fold: its own of that number, or all where nothing will be scored."""
    exports = _exports(plan, member)
    if fold is None:
        return exports
    fitting = [export for export in exports if export.card.fold == fold]
    if not fitting:
        raise TrainingError(
            f"{member!r} has no model of fold {fold}, and its other folds have seen the labels that score it",
            hint=f"Train fold {fold} of {member} first.",
            code="train-teacher",
        )
    if other := [export for export in fitting if export.card.split != plan.split.digest]:
        raise TrainingError(
            f"{other[0].title} was trained on split {other[0].card.split}, this is {plan.split.digest}: "
            f"it may have seen the labels that score fold {fold}",
            hint="Train the teacher on this split.",
        )
    return fitting


def _exports(plan: TrainingPlan, member: str) -> list[Export]:
    if member == plan.member:
        raise TrainingError(f"{member!r} cannot teach itself", hint="Give this one another name.", code="another-member")
    folder = plan.competition.path("folds")
    paths = find_exports([f"folds/{member}.*.onnx"], base=plan.competition.root) if folder.is_dir() else []
    if not paths:
        raise TrainingError(f"there are no exports of {member!r} in {folder}", hint="Train it first.")
    return read_exports(paths, plan.competition, members=[member])


def _given(plan: TrainingPlan, rows: Rows) -> F64:
    """The given labels as probabilities (n, C)."""
    labels = rows.samples.labels[rows.places]
    return np.asarray(labels if labels.ndim == 2 else labels[:, None] == np.arange(len(plan.target.classes)), dtype=np.float64)


def _folder(plan: TrainingPlan) -> Path:
    folder: Path = plan.competition.path(plan.config.pseudo)
    if not folder.is_dir() or not render.find(folder):
        raise TrainingError(f"{folder} is no folder with images", hint="Paths begin at the workspace.", code="pseudo-folder")
    return folder


def _file(plan: TrainingPlan, name: str) -> Path:
    path: Path = plan.competition.path(name)
    if not path.is_file():
        hint = "Soft labels are a member, or its table: oof/MEMBER.parquet."
        raise TrainingError(f"{path} does not exist", hint=hint, code="soft-labels")
    return path


def _digests(paths: Iterable[Path]) -> list[bytes]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda path: render.digest(render.read(path)), paths))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
