"""What a bundle holds, and how the tables that its workers leave become predictions, complete or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import F64
from toolkit.core import voting
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError
from toolkit.submissions.bundle import worker
from toolkit.submissions.bundle.csv_writer import Field
from toolkit.submissions.bundle.worker import Model
from toolkit.workspace.competition import Competition, Target

FILE = "bundle.json"
SCHEMA = 1
ROWS = 4096  # rows combined at a time


@dataclass(frozen=True)
class Recipe:
    """What a bundle holds beside its competition.toml: the ensemble, the form of the submission, what to fall back on.

    `priors` has the share of each class in the training labels per target, `agreement` how well Pillow's pixels agree with the
    fast ones. `deadline` is in seconds, 0 for none. Models stand in the order in which they run, those of most weight first.
    """

    name: str
    created: str
    vote: str
    form: str
    header: tuple[str, ...]
    fields: tuple[Field, ...]
    models: tuple[Model, ...]
    priors: Mapping[str, Sequence[float]]
    agreement: Mapping[str, Any]
    python: str
    cuda: str
    deadline: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def write(self, folder: Path) -> Path:
        """Write bundle.json."""
        return files.write_text(folder / FILE, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """Read bundle.json.

        Raises:
            DataError: it is not there, damaged, or of a newer version.
        """
        try:
            raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if raw["schema"] > SCHEMA:
                raise DataError(f"{folder / FILE} has schema {raw['schema']}, this version reads up to {SCHEMA}")
            raw["models"] = tuple(Model(**(model | {"views": tuple(model["views"])})) for model in raw["models"])
            raw["fields"] = tuple(Field(**said) for said in raw["fields"])
            return cls(**(raw | {"header": tuple(raw["header"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / FILE} cannot be read: {error}", hint="Make the bundle again.") from error


@dataclass(frozen=True)
class Part:
    """A contiguous part of the images, from `start` to `stop`, and the folder where its worker leaves its results."""

    start: int
    stop: int
    out: Path

    def finished(self, model: Model) -> bool:
        """Whether a model has seen all of it."""
        return (self.out / f"{model.key}{worker.DONE}").exists()

    def table(self, model: Model) -> Any:
        """Probabilities so far, float64 (images, classes), NaN where there are none; None before the first."""
        for end in (worker.DONE, worker.PART, worker.DONE):  # the last again, as it may be finished in between
            with suppress(FileNotFoundError):
                return np.load(self.out / f"{model.key}{end}", mmap_mode="r")
        return None


@dataclass(frozen=True, eq=False)
class Wanted:
    """What to predict: the rows' ids, and of each image the row it belongs to (int64 [images], ascending)."""

    recipe: Recipe
    competition: Competition
    ids: tuple[str, ...]
    owner: Any


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions per target, the titles of the models that are in them, and how many rows have them all, one, or the prior."""

    predictions: Mapping[str, Predictions]
    models: tuple[str, ...]
    whole: int
    partial: int
    prior: int


def blend(wanted: Wanted, parts: Sequence[Part]) -> Outcome:
    """Combine what there is: the models that every part with a finished model has finished; else one model; else the prior."""
    recipe, count = wanted.recipe, len(wanted.ids)
    begun = [part for part in parts if any(part.finished(model) for model in recipe.models)]
    common = [model for model in recipe.models if begun and all(part.finished(model) for part in begun)]
    tables = {model.key: [(part, part.table(model)) for part in parts] for model in recipe.models}
    step = max(count, 1) if recipe.vote in voting.WHOLE_TABLE else ROWS
    found: dict[str, list[voting.Vote]] = {target.name: [] for target in wanted.competition.targets}
    source = np.zeros(count, dtype=np.int8)  # 2 whole, 1 partial, 0 prior
    for first in range(0, count, step):
        last = min(first + step, count)
        low, high = np.searchsorted(wanted.owner, [first, last]).tolist()
        values = {model.key: _slice(tables[model.key], low, high, model.classes) for model in recipe.models}
        for target in wanted.competition.targets:
            rows = _Rows(target, wanted.competition.per_id, wanted.owner[low:high] - first, last - first)
            vote, source[first:last] = _combine(recipe, rows, common, values)
            found[target.name].append(vote)
    predictions = {target.name: _joined(target, wanted.ids, found[target.name]) for target in wanted.competition.targets}
    counts = np.bincount(source, minlength=3).tolist()
    return Outcome(predictions, tuple(model.title for model in common), counts[2], counts[1], counts[0])


def _slice(tables: Sequence[tuple[Part, Any]], low: int, high: int, classes: int) -> F64:
    """A model's probabilities of the images from `low` to `high`, float64 (images, classes), NaN where there are none."""
    out = np.full((high - low, classes), np.nan)
    for part, table in tables:
        start, stop = max(low, part.start), min(high, part.stop)
        if start < stop and table is not None:
            out[start - low : stop - low] = table[start - part.start : stop - part.start]
    return out


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of one target: which of them each image belongs to, and how the images of a row are merged."""

    target: Target
    per_id: str
    owner: Any
    count: int

    def of(self, model: Model, values: F64) -> F64:
        """A model's images as rows (float64 [count, C], the competition's order of classes), NaN where no image is usable."""
        values = _columns(model, self.target, values)
        usable = np.isfinite(values).all(axis=1)
        values, owner = values[usable], self.owner[usable]
        number = np.bincount(owner, minlength=self.count)[:, None]
        if self.per_id == "max":
            out = np.full((self.count, values.shape[1]), -np.inf)
            np.maximum.at(out, owner, values)
            out = np.where(number > 0, out, np.nan)
            return out if self.target.multilabel else out / out.sum(axis=1, keepdims=True)
        sums = np.zeros((self.count, values.shape[1]))
        np.add.at(sums, owner, values)
        return np.where(number > 0, sums / np.maximum(number, 1), np.nan)


def _columns(model: Model, target: Target, values: F64) -> F64:
    start = 0
    for output in model.read_card.outputs:
        if output.target == target.name:
            return values[:, [start + output.classes.index(name) for name in target.classes]]
        start += len(output.classes)
    raise DataError(f"{model.title} does not predict target {target.name!r}")


def _combine(recipe: Recipe, rows: _Rows, common: Sequence[Model], values: Mapping[str, F64]) -> tuple[voting.Vote, Any]:
    """The vote over some rows, and for each whether it is whole (2), of one model (1) or the prior (0)."""
    found = {model.key: rows.of(model, values[model.key]) for model in recipe.models}
    whole = np.full(rows.count, fill_value=bool(common))
    for model in common:
        whole &= np.isfinite(found[model.key]).all(axis=1)
    final = np.tile(np.asarray(recipe.priors[rows.target.name], dtype=np.float64), (1, rows.count, 1))
    kinds = np.zeros(rows.count, dtype=np.int8)
    for model in reversed(recipe.models):  # the first in the order has the last word
        some = np.isfinite(found[model.key]).all(axis=1)
        final[0, some], kinds[some] = found[model.key][some], 1
    kinds[whole] = 2
    multilabel = rows.target.multilabel
    vote = voting.vote(final, how=recipe.vote, multilabel=multilabel)
    if whole.any():
        stack = np.stack([found[model.key][whole] for model in common])
        merged = voting.vote(stack, how=recipe.vote, weights=[model.weight for model in common], multilabel=multilabel)
        for ours, theirs in ((vote.values, merged.values), (vote.labels, merged.labels)):
            if ours is not None and theirs is not None:
                ours[whole] = theirs
    return vote, kinds


def _joined(target: Target, ids: tuple[str, ...], found: Sequence[voting.Vote]) -> Predictions:
    kind = found[0].kind if found else "probabilities"
    parts = [vote.labels if kind == "labels" else vote.values for vote in found]
    every = np.concatenate([part for part in parts if part is not None]) if found else np.zeros((0, len(target.classes)))
    said: dict[str, Any] = {"labels" if kind == "labels" else "values": every}
    return Predictions(target.name, kind, ids, target.classes, multilabel=target.multilabel, **said)


def agreement_line(agreement: Mapping[str, Any]) -> str:
    """What was measured of Pillow's pixels when the bundle was made."""
    if not agreement:
        return "Pixels by Pillow; how well its labels agree with the fast path's was not measured"
    same, rows = agreement["same"], agreement["rows"]
    return (
        f"Pixels by Pillow: labels agreed with the fast path's on {same:,} of {rows:,} {agreement['what']} "
        f"({same / rows:.2%}), probabilities within {agreement['gap']:.2g}"
    )
