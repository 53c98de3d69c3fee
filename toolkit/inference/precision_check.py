"""What a reduced precision changes: labels, probabilities and score of held-out images, in fp32 and in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.blending.nested import compare
from toolkit.errors import CompetitionError, DataError, ModelError
from toolkit.inference.exports import output_of
from toolkit.inference.outcome import PredictOutcome
from toolkit.inference.store.file_index import Digests
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split

SAMPLE = 512  # images per member
CALIBRATION = 256  # images that int8 is calibrated on, at most, and half of those there are: the others are compared on
HELD_OUT = "held-out images"

Way = Callable[[Sequence[Export], Sequence[Item]], PredictOutcome]  # what these models say of these images, in some precision


@dataclass(frozen=True)
class Difference:
    """What a precision changes in one member's answers to `rows` images.

    `agreement` is the share of images whose labels stay the same for every target; `largest` and `mean` are changes of a
    probability. `scores` holds, per target, the score in fp32 and reduced, and the gain with its 95 % interval (paired
    bootstrap), where the truth is known out of fold.
    """

    what: str
    rows: int
    agreement: float
    largest: float
    mean: float
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.agreement:.2%} of {self.rows:,} {self.what} keep their label, probabilities change by "
        text += f"{self.mean:.1e} on average and {self.largest:.1e} at most"
        for target, score in self.scores.items():
            text += f", the score of {target!r} by {score['gain']:+.4f} (95 % {score['low']:+.4f} to {score['high']:+.4f})"
        return text


def calibration_images(competition: Competition) -> list[tuple[str, Path]]:
    """Ids and files of the training images that quantisation is calibrated on: drawn by id, so that they stay when others come.

    Raises:
        ModelError: there are none.
    """
    chosen = _calibration(competition)
    images = [(name, path) for name, path in _train(competition) if name in chosen][: 2 * CALIBRATION]
    if not images:
        raise ModelError(
            "int8 is calibrated on training images, and there are none", hint="Use another precision.", code="other-precision"
        )
    return images


def difference(competition: Competition, member: Sequence[Export], plain: Way, reduced: Way) -> Difference:
    """One member's models in fp32 and in a reduced precision, each on images that it was not trained on, if there are such.

    Raises:
        ModelError: there is no image to compare on, or logits are NaN or infinite.
    """
    what, parts = _parts(competition, member)
    same: list[NDArray[np.bool_]] = []
    pairs: dict[str, list[tuple[F64, F64]]] = {target.name: [] for target in competition.targets}
    ids: list[str] = []
    for exports, items in parts:
        outcomes = [way(exports, items) for way in (plain, reduced)]
        places = [{item.path: place for place, item in enumerate(outcome.items)} for outcome in outcomes]
        both = [item for item in items if all(item.path in place for place in places)]
        digests = [o.digests[[place[item.path] for item in both]] for o, place in zip(outcomes, places, strict=True)]
        for export in exports:
            alike = np.ones(len(both), dtype=bool)
            for target in competition.targets:
                before, after = (_rows(export, target, o, d) for o, d in zip(outcomes, digests, strict=True))
                alike &= same_labels(before, after, multilabel=target.multilabel)
                pairs[target.name].append((before, after))
            same.append(alike)
            ids += [item.id for item in both]
    if not ids:
        raise ModelError(
            "there is no image to compare a reduced precision with fp32 on", hint="Use fp32.", code="precision-fp32"
        )
    tables = {name: (np.concatenate([b for b, _ in own]), np.concatenate([a for _, a in own])) for name, own in pairs.items()}
    gaps = np.concatenate([np.abs(before - after).ravel() for before, after in tables.values()])
    scores = _scores(competition, tables, ids) if what == HELD_OUT else {}
    return Difference(what, len(ids), float(np.concatenate(same).mean()), float(gaps.max()), float(gaps.mean()), scores)


def _rows(export: Export, target: Target, outcome: PredictOutcome, digests: Digests) -> F64:
    """A model's probabilities of some images, float64 (n, C), in the competition's order of classes."""
    output = output_of(export, target.name)
    order = [output.classes.index(name) for name in target.classes]
    return outcome.probabilities(export, output, ("id",), digests)[:, order]


def same_labels(before: NDArray[Any], after: NDArray[Any], *, multilabel: bool) -> NDArray[np.bool_]:
    """Whether two tables of probabilities (N, C) say the same of each row, bool (N,)."""
    if multilabel:
        return np.asarray(((before >= 0.5) == (after >= 0.5)).all(axis=1))
    return np.asarray(before.argmax(axis=1) == after.argmax(axis=1))


def _parts(competition: Competition, member: Sequence[Export]) -> tuple[str, list[tuple[list[Export], list[Item]]]]:
    """What the images are, and which models are compared on which: about SAMPLE of them in all, of every class its share."""
    taken, split = _calibration(competition), _split(competition)
    where: dict[str, list[Path]] = {}
    for name, path in _train(competition):
        if name not in taken:
            where.setdefault(name, []).append(path)
    folds = [e for e in member if split and e.card.fold is not None and e.card.split == split.digest]
    if split and folds:
        label = dict(zip(split.ids, split.labels, strict=True))
        numbers = sorted({export.card.fold or 0 for export in folds})
        parts = []
        for fold in numbers:
            names = [name for name in split.held_out(fold) if name in where]
            chosen = _spread(names, [label[name] for name in names], -(-SAMPLE // len(numbers)))
            exports = [export for export in folds if export.card.fold == fold]
            parts.append((exports, [Item(name, path) for name in chosen for path in where[name]]))
        if any(items for _, items in parts):
            return HELD_OUT, parts
    what = "training images (seen by the models)" if where else "test images"
    if not where:
        for name, path in competition.images("test"):
            where.setdefault(name, []).append(path)
    chosen = _spread(list(where), [""] * len(where), -(-SAMPLE // len(member)))
    return what, [([export], [Item(name, path) for name in chosen for path in where[name]]) for export in member]


def _spread(names: Sequence[str], labels: Sequence[str], count: int) -> list[str]:
    """So many names, of every label its share, drawn by chance but always the same."""
    order = sorted(range(len(names)), key=lambda i: (labels[i], _draw(names[i])))
    picks = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)).tolist()
    return [names[order[i]] for i in picks]


def _calibration(competition: Competition) -> set[str]:
    names = sorted({name for name, _ in _train(competition)}, key=_draw)
    return set(names[: min(CALIBRATION, len(names) // 2)])


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _train(competition: Competition) -> list[tuple[str, Path]]:
    try:
        return competition.images("train")
    except CompetitionError:
        return []


def _split(competition: Competition) -> Split | None:
    return Split.if_made(competition)


def _scores(competition: Competition, tables: Mapping[str, tuple[F64, F64]], ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per target, the score in both precisions and the gain with its interval, where the sample has a score."""
    scores = {}
    truth = competition.truth()
    for target in competition.targets:
        known = truth[target.name].with_classes(target.classes)
        place = {name: i for i, name in enumerate(known.ids)}
        rows = known.decided[[place[name] for name in ids]]
        precisions = dict(zip(("fp32", "reduced"), tables[target.name], strict=True))
        try:
            estimates = compare(rows, competition.score, precisions, baseline="fp32")
        except DataError:  # a sample without one of the classes may have no score
            continue
        less = estimates["reduced"]
        gain = {"gain": less.gain, "low": less.gain_low, "high": less.gain_high}
        scores[target.name] = {"fp32": estimates["fp32"].score, "reduced": less.score, **gain}
    return scores
