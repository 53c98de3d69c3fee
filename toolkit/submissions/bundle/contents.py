"""What a bundle holds, and how the tables that its workers leave become predictions, complete or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import documents, files
from toolkit.base.arrays import F64, Ints
from toolkit.base.schema import checked
from toolkit.blending.blend import Blend, read_blend
from toolkit.core import voting
from toolkit.core.cards import Card
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import DataError
from toolkit.submissions.form.cells import Column
from toolkit.workspace.competition_toml import CompetitionFile

FILE = "bundle.json"
SEAL = "seal"  # the digest in it; bundles of before have none
SCHEMA = 1
ROWS = 4096  # rows combined at a time
PRIOR, ONE, WHOLE = range(3)  # what a row's numbers are from: the training labels, a single model, all models
DONE, PART = ".npy", ".part.npy"  # the ends of a model's tables: of all images, of those so far


@dataclass(frozen=True)
class Field:
    """What one column of a submission holds: a `Column` with its target by name."""

    name: str
    target: str
    part: str = ""
    k: int = 0
    by: str = ""

    @classmethod
    def of(cls, column: Column) -> Field:
        """As bundle.json has it."""
        return cls(column.name, column.target.name, column.part, column.k, column.by)

    def column(self, competition: CompetitionFile) -> Column:
        """The column itself.

        Raises:
            CompetitionError: the competition has no such target.
        """
        return Column(self.name, competition.target(self.target), self.part, self.k, self.by)


@dataclass(frozen=True)
class Model:
    """A fold model inside a bundle: its file there, its share of the vote, its views and its card (as JSON).

    Where a blend says a weight per target, `weights` has them and `weight` is their mean.
    """

    file: str
    title: str
    weight: float
    views: tuple[str, ...]
    card: str
    sha256: str
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What its results are called: titles may repeat, files cannot."""
        return Path(self.file).stem

    @cached_property
    def read_card(self) -> Card:
        """The card itself."""
        return Card.from_json(self.card, where=self.file)

    @property
    def classes(self) -> int:
        """Number of probabilities it gives per image, over all its outputs."""
        return sum(len(output.classes) for output in self.read_card.outputs)

    def of_target(self, target: Target, values: F64) -> F64:
        """Its probabilities of one target, classes in the competition's order, out of those of all its outputs.

        Raises:
            DataError: it does not predict that target.
        """
        start = 0
        for output in self.read_card.outputs:
            if output.target == target.name:
                return values[:, [start + output.classes.index(name) for name in target.classes]]
            start += len(output.classes)
        raise DataError(f"{self.title} does not predict target {target.name!r}")


@dataclass(frozen=True)
class Recipe:
    """What a bundle holds beside its competition.toml: the ensemble, the form of the submission, what to fall back on.

    `priors` has the share of each class in the training labels per target, `agreement` how well Pillow's pixels agree with the
    fast ones. `deadline` is in seconds, 0 for none; `slashes` says that ids may have them, `partial` that of
    pictures cut short what is there is used, `blend` per target what is done
    beside the weighted vote (see `Blend.record`). Models stand in the order in which they run, those of most weight first.
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
    slashes: bool = False
    blend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    competition: str = ""  # SHA-256 of competition.toml
    partial: bool = False
    schema: int = SCHEMA

    def write(self, folder: Path) -> Path:
        """Write bundle.json, with a digest as its last key.

        Raises:
            DataError: a name has a NUL or half a character.
        """
        document = json.loads(documents.to_json(asdict(self)))
        return files.write_text(folder / FILE, documents.to_json(document | {SEAL: _seal(document)}, indent=1) + "\n")

    def blend_of(self, target: Target) -> Blend | None:
        """What is done to a target's probabilities beside the weighted vote; None where that is nothing."""
        return read_blend(self.blend[target.name], target.classes) if target.name in self.blend else None

    def votes(self) -> set[str]:
        """The votes of all targets by name."""
        return {str(record["vote"]) for record in self.blend.values()} or {self.vote}

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """Read bundle.json.

        Raises:
            DataError: it is not there, damaged, or of a newer version.
        """
        try:
            raw = documents.read_json(folder / FILE)
            if checked(raw["schema"], int, "schema") > SCHEMA:
                raise DataError(f"{folder / FILE} has schema {raw['schema']}, this version reads up to {SCHEMA}")
            seal = raw.pop(SEAL, None)
            recipe: Recipe = checked(raw, cls)
            if seal is not None and seal != _seal(raw):
                raise ValueError("its digest says that it was changed")
            return recipe
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / FILE} cannot be read: {error}", hint="Make the bundle again.") from error


def _seal(document: Mapping[str, Any]) -> str:
    """The digest of what bundle.json says, of those that bundles can make."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Part:
    """A contiguous part of the images, from `start` to `stop`, and the folder where its worker leaves its results."""

    start: int
    stop: int
    out: Path

    def finished(self, model: Model) -> bool:
        """Whether a model has seen all of it."""
        return (self.out / f"{model.key}{DONE}").exists()

    def table(self, model: Model) -> Any:
        """Probabilities so far, float64 (images, classes), NaN where there are none; None before the first."""
        for end in (DONE, PART, DONE):  # the last again, as it may be finished in between
            with suppress(FileNotFoundError):
                return np.load(self.out / f"{model.key}{end}", mmap_mode="r")
        return None


@dataclass(frozen=True, eq=False)
class Wanted:
    """What to predict: the rows' ids, and of each image the row it belongs to (int64 [images], ascending)."""

    recipe: Recipe
    competition: CompetitionFile
    ids: tuple[str, ...]
    owner: Ints


@dataclass(frozen=True, eq=False)
class Blended:
    """Predictions per target, the titles of the models that are in them, and how many rows have them all, one, or the prior."""

    predictions: Mapping[str, Predictions]
    models: tuple[str, ...]
    whole: int
    partial: int
    prior: int


def blend(wanted: Wanted, parts: Sequence[Part]) -> Blended:
    """Combine what there is: the models that every part with a finished model has finished; else one model; else the prior."""
    recipe, count = wanted.recipe, len(wanted.ids)
    begun = [part for part in parts if any(part.finished(model) for model in recipe.models)]
    common = [model for model in recipe.models if begun and all(part.finished(model) for part in begun)]
    tables = {model.key: [(part, part.table(model)) for part in parts] for model in recipe.models}
    step = max(count, 1) if recipe.votes() & set(voting.WHOLE_TABLE) else ROWS
    votes: dict[str, list[voting.Vote]] = {target.name: [] for target in wanted.competition.targets}
    source = np.zeros(count, dtype=np.int8)
    for first in range(0, count, step):
        last = min(first + step, count)
        low, high = np.searchsorted(wanted.owner, [first, last]).tolist()
        images = {model.key: _slice(tables[model.key], low, high, model.classes) for model in recipe.models}
        owner = wanted.owner[low:high] - first
        for target in wanted.competition.targets:
            rows = {
                m.key: _rows(m.of_target(target, images[m.key]), owner, last - first, wanted, target) for m in recipe.models
            }
            vote, source[first:last] = _vote(recipe, target, common, rows)
            votes[target.name].append(vote)
    predictions = {
        target.name: voting.as_predictions(votes[target.name], target, wanted.ids) for target in wanted.competition.targets
    }
    counts = np.bincount(source, minlength=3).tolist()
    return Blended(predictions, tuple(model.title for model in common), counts[WHOLE], counts[ONE], counts[PRIOR])


def _slice(tables: Sequence[tuple[Part, Any]], low: int, high: int, classes: int) -> F64:
    """A model's probabilities of the images from `low` to `high`, float64 (images, classes), NaN where there are none."""
    out = np.full((high - low, classes), np.nan)
    for part, table in tables:
        start, stop = max(low, part.start), min(high, part.stop)
        if start < stop and table is not None:
            out[start - low : stop - low] = table[start - part.start : stop - part.start]
    return out


def _rows(values: F64, owner: Ints, count: int, wanted: Wanted, target: Target) -> F64:
    """A model's images as rows, float64 (count, C), NaN where no image is usable; `owner` has the row of each image."""
    usable = np.isfinite(values).all(axis=1)
    rows, starts = np.unique(owner[usable], return_index=True)
    merged = values[usable]
    if len(merged) > len(rows):
        merged = voting.per_row(merged[None], starts, wanted.competition.per_id, multilabel=target.multilabel)[0]
    out = np.full((count, values.shape[1]), np.nan)
    out[rows] = merged
    return out


def _vote(recipe: Recipe, target: Target, common: Sequence[Model], rows: Mapping[str, F64]) -> tuple[voting.Vote, Any]:
    """The vote over some rows, and what each is from: all models in common, else one of them, else the prior."""
    there = {key: np.asarray(np.isfinite(values).all(axis=1)) for key, values in rows.items()}
    count = len(next(iter(there.values())))
    whole = np.full(count, fill_value=bool(common))
    for model in common:
        whole &= there[model.key]
    blend, weights = recipe.blend_of(target), [model.weights.get(target.name, model.weight) for model in common]
    how = blend.vote if blend else recipe.vote
    if blend:
        cooled = {m.key: blend.cooled(m.read_card.member, rows[m.key], multilabel=target.multilabel) for m in recipe.models}
        rows = cooled
    final = np.tile(np.asarray(recipe.priors[target.name], dtype=np.float64), (1, count, 1))
    source = np.full(count, PRIOR, dtype=np.int8)
    for model in reversed(recipe.models):  # the first in the order has the last word
        some = there[model.key]
        final[0, some], source[some] = rows[model.key][some], ONE
    source[whole] = WHOLE
    vote = voting.vote(final, how=how, multilabel=target.multilabel)
    one = source == ONE
    if blend and blend.adjustment and one.any():  # the prior is as the labels say, and not adjusted
        _put(vote, blend.combine(final[:, one], [1.0], multilabel=target.multilabel), one)
    if any(weights) and whole.any():
        stack = np.stack([rows[model.key][whole] for model in common])
        if blend:
            merged = blend.combine(stack, weights, multilabel=target.multilabel)
        else:
            merged = voting.vote(stack, how=how, weights=weights, multilabel=target.multilabel)
        _put(vote, merged, whole)
    return vote, source


def _put(vote: voting.Vote, other: voting.Vote, rows: Any) -> None:
    """Put another vote's outcome into some rows (bool [N]) of a vote."""
    for ours, theirs in ((vote.values, other.values), (vote.labels, other.labels)):
        if ours is not None and theirs is not None:
            ours[rows] = theirs


def agreement_line(agreement: Mapping[str, Any]) -> str:
    """What was measured of Pillow's pixels when the bundle was made."""
    if not agreement:
        return "Pixels by Pillow; how well its labels agree with the fast path's was not measured"
    same, rows = agreement["same"], agreement["rows"]
    return (
        f"Pixels by Pillow: labels agreed with the fast path's on {same:,} of {rows:,} {agreement['what']} "
        f"({same / rows:.2%}), probabilities within {agreement['gap']:.2g}"
    )
