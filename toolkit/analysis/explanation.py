"""One image explained: what every fold model says of each view, the vote, and which parts of the picture it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.arrays import F64, U8
from toolkit.blending.combination import Combination
from toolkit.core import voting
from toolkit.core.activations import probabilities
from toolkit.core.cards import Preprocess
from toolkit.ensemble.combine import views_for
from toolkit.errors import DataError
from toolkit.images import render
from toolkit.images.boxes import Box
from toolkit.images.treatments import Treatment
from toolkit.images.views import parse
from toolkit.inference.exports import output_of, share
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session, open_session
from toolkit.workspace.competition import Competition, Target

CELLS = 14  # places of the patch along each side
PATCH = 2  # the patch is this many cells wide, so that neighbours overlap


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model says of one view: probabilities float64 [C] in the order of the target's classes."""

    model: str
    view: str
    probabilities: F64
    weight: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image and one target: the answers, the combined probabilities, and the saliency of the predicted class.

    `saliency` float64 (height, width) over `pixels` (uint8 (height, width, 3), what the first model sees): by how much the
    combined probability of `predicted` falls when a grey patch covers the place; larger matters more, below 0 it distracts.
    """

    id: str
    path: Path
    target: str
    classes: tuple[str, ...]
    answers: tuple[Answer, ...]
    combined: F64
    vote: str
    pixels: U8
    saliency: F64

    @property
    def predicted(self) -> str:
        """The class that the vote names."""
        return self.classes[int(self.combined.argmax())]

    @property
    def record(self) -> dict[str, Any]:
        """Every figure as plain values, for machines."""
        return {
            "ok": True,
            "id": self.id,
            "target": self.target,
            "predicted": self.predicted,
            "vote": self.vote,
            "probabilities": dict(zip(self.classes, map(float, self.combined), strict=True)),
            "answers": [
                {
                    "model": answer.model,
                    "view": answer.view,
                    "weight": answer.weight,
                    "probabilities": dict(zip(self.classes, map(float, answer.probabilities), strict=True)),
                }
                for answer in self.answers
            ],
        }


def find(competition: Competition, named: str) -> tuple[str, Path]:
    """The id and file of an image, named by its id or its path.

    Raises:
        DataError: neither an id of the workspace nor a file.
    """
    path = Path(named)
    if path.is_file():
        return path.stem, path
    parts = [part for part in ("test", "train") if competition.path(getattr(competition, part).folder).is_dir()]
    for part in parts:
        files = [file for name, file in competition.images(part) if name == named]  # type: ignore[arg-type]
        if files:
            return named, files[0]
    raise DataError(f"{named!r} is neither a file nor the id of an image", hint="Give a path, or an id of train or test.")


def explain(
    competition: Competition,
    exports: Sequence[Export],
    named: str,
    combination: Combination = Combination(),
    *,
    target: str = "",
    device: str = "auto",
) -> Explanation:
    """Run every model and view on one image, then again with a patch at each place of a grid (occlusion: Zeiler & Fergus
    2014, arXiv 1311.2901), which needs nothing of a model but its answers.

    Raises:
        DataError: no such image, a target that is not there, or a vote that needs a whole table.
        ImageError: the image cannot be read.
        ModelError, DeviceError: a session cannot be opened.
    """
    chosen = competition.target(target) if target else competition.targets[0]
    vote = combination.vote
    if vote in voting.WHOLE_TABLE:
        raise DataError(f"vote {vote} ranks whole tables, one image has no rank", hint="Vote soft.", code="vote-soft")
    name, path = find(competition, named)
    data = render.read(path)
    shares = share(exports, combination.weights, higher_is_better=competition.score.higher_is_better)
    boxes = {box: competition.boxes.of(box, name, path) for box in {export.card.preprocess.box for export in exports}}
    committee = _Committee(exports, views_for(exports, combination.tta), shares, chosen, device, boxes)
    answers = committee.answers(data, str(path))
    first = exports[0].card.preprocess
    pixels = committee.pixels(data, str(path), first, "id")
    merged = [
        np.mean([answer.probabilities for answer in answers if answer.model == export.title], axis=0) for export in exports
    ]
    combined = _vote(merged, shares, vote, chosen)
    winner = int(combined.argmax())
    saliency = committee.saliency(data, str(path), winner, chosen)
    size = pixels.shape[1:]
    grown = spread(saliency, (size[0], size[1]))
    return Explanation(
        name, path, chosen.name, chosen.classes, tuple(answers), combined, vote, pixels.transpose(1, 2, 0), grown
    )


@dataclass(frozen=True, eq=False)
class _Committee:
    """The models with their views and weights, sessions opened once per input size."""

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]
    shares: Sequence[float]
    target: Target
    device: str
    boxes: Mapping[str, Box | None]  # of the image, by name

    def __post_init__(self) -> None:
        groups: dict[Preprocess, dict[str, Path]] = {}
        for export in self.exports:
            groups.setdefault(export.card.preprocess, {})[export.digest] = export.path
        sessions = {preprocess: open_session(models, device=self.device) for preprocess, models in groups.items()}
        object.__setattr__(self, "sessions", sessions)

    sessions: Mapping[Preprocess, Session] = None  # type: ignore[assignment]

    def pixels(self, data: bytes, where: str, preprocess: Preprocess, view: str) -> U8:
        """uint8 (3, H, W) of a view before it is turned."""
        decoded = render.decode(data, where, exif=preprocess.orientation == "exif", treatment=Treatment.of(preprocess))
        return render.cuts(decoded, preprocess, [parse(view)[0]], box=self.boxes[preprocess.box], where=where)[0]

    def answers(self, data: bytes, where: str) -> list[Answer]:
        """What every model says of each of its views."""
        answers = []
        for export, weight in zip(self.exports, self.shares, strict=True):
            for view in self.views[export.digest]:
                pixels = self.pixels(data, where, export.card.preprocess, view)
                probabilities = self._say(export, pixels[None], parse(view)[1])[0]
                answers.append(Answer(export.title, view, probabilities, weight / len(self.views[export.digest])))
        return answers

    def saliency(self, data: bytes, where: str, winner: int, target: Target) -> F64:
        """The weighted fall of the winner's probability per cell, float64 (CELLS, CELLS); plain pixels, no views."""
        total = np.zeros((CELLS, CELLS))
        for export, weight in zip(self.exports, self.shares, strict=True):
            if weight:
                pixels = self.pixels(data, where, export.card.preprocess, "id")
                before = self._say(export, pixels[None], "id")[0, winner]
                after = self._say(export, covered(pixels), "id")[:, winner]
                total += weight * (before - after).reshape(CELLS, CELLS)
        return total

    def _say(self, export: Export, batch: U8, view: str) -> F64:
        session = self.sessions[export.card.preprocess]
        logits = session.run(session.place(batch), view, [export.digest])[export.digest]
        output = output_of(export, self.target.name)
        order = [output.classes.index(name) for name in self.target.classes]
        return probabilities(logits, output)[:, order]


def _vote(rows: Sequence[F64], weights: Sequence[float], how: str, target: Target) -> F64:
    """What the models say together, as one row; hard votes give 1 to the labels that won."""
    stack = np.stack(rows)[:, None, :]
    outcome = voting.vote(stack, weights=np.asarray(weights), how=how, multilabel=target.multilabel)
    if outcome.values is not None:
        return np.asarray(outcome.values[0])
    labels = np.asarray(outcome.labels)[0]
    return np.asarray(labels, dtype=np.float64) if target.multilabel else np.eye(len(target.classes))[int(labels)]


def covered(pixels: U8) -> U8:
    """The image once per cell, a patch of its own mean colour there: uint8 (CELLS², 3, H, W)."""
    _, height, width = pixels.shape
    mean = np.rint(pixels.reshape(3, -1).mean(axis=1)).astype(np.uint8)
    copies = np.repeat(pixels[None], CELLS * CELLS, axis=0)
    rows, columns = (np.linspace(0, side, CELLS + 1) for side in (height, width))
    spare = (PATCH - 1) / 2
    for i in range(CELLS):
        top, bottom = _span(rows, i, spare, height)
        for j in range(CELLS):
            left, right = _span(columns, j, spare, width)
            copies[i * CELLS + j, :, top:bottom, left:right] = mean[:, None, None]
    return copies


def _span(edges: F64, cell: int, spare: float, side: int) -> tuple[int, int]:
    """First and last pixel of a patch around a cell."""
    step = side / CELLS
    low = max(int(edges[cell] - spare * step), 0)
    return low, min(max(int(np.ceil(edges[cell + 1] + spare * step)), low + 1), side)


def spread(cells: F64, size: tuple[int, int]) -> F64:
    """Cells spread smoothly over the picture."""
    from PIL import Image

    grown = Image.fromarray(cells.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(grown, dtype=np.float64)
