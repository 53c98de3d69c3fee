"""Cross-validation: folds one after another, each finished on disk before the next; resume, out-of-fold scores, exports."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import checkpoints, exporting, files, sessions, tables
from toolkit.cards import Activation, Card, Output, Preprocess
from toolkit.competition import Competition, Target
from toolkit.errors import TrainingError, few
from toolkit.folds import Split
from toolkit.predictions import Predictions, concat
from toolkit.training.data import Fold, Progress, Rows, Samples, decode
from toolkit.training.loop import Triple, choose_device, logits

if TYPE_CHECKING:
    import torch

PARITY_SAMPLES = 64
PARTS = ("model.safetensors", "metrics.csv", "oof.parquet", "config.json")  # in this order; the export comes last

TrainFold = Callable[[Any, Fold], "torch.nn.Module"]
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be trained: a recipe's settings on a split of a competition, and the folder that takes the results.

    `config` is the recipe's frozen dataclass and has at least `member` and `seed`. `architecture` holds the arguments of
    `timm.create_model` that rebuild the network for its checkpoint. `mean` and `std` are in units of pixel / 255.
    """

    recipe: str
    config: Any
    architecture: Mapping[str, Any]
    preprocess: Preprocess
    mean: Triple
    std: Triple
    competition: Competition
    split: Split
    root: Path

    @property
    def target(self) -> Target:
        """The one target.

        Raises:
            TrainingError: the competition has several.
        """
        if len(self.competition.targets) > 1:
            raise TrainingError(f"{self.recipe} trains one target, this competition has {len(self.competition.targets)}")
        return self.competition.targets[0]

    @property
    def member(self) -> str:
        """The name under which the folds go together."""
        return str(self.config.member)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a result, as JSON values: folds of one member must agree in all of it."""
        every = {f"config.{name}": value for name, value in asdict(self.config).items()}
        shared: dict[str, Any] = {
            "recipe": self.recipe,
            "split": self.split.digest,
            "target": self.target.name,
            "classes": self.target.classes,
        }
        shared |= {f"architecture.{name}": value for name, value in self.architecture.items()}
        pixels = {"preprocess": asdict(self.preprocess), "mean": self.mean, "std": self.std}
        plain: dict[str, Any] = json.loads(json.dumps(shared | pixels | every))
        return plain

    def folder(self, fold: int) -> Path:
        """Where a fold keeps its checkpoint, settings, metrics and out-of-fold rows."""
        return self.root / "runs" / self.member / f"fold{fold}"

    def export(self, fold: int) -> Path:
        """The fold's .onnx."""
        return self.root / "folds" / f"{self.member}.fold{fold}.onnx"

    @property
    def oof(self) -> Path:
        """The member's joined out-of-fold table."""
        return self.root / "oof" / f"{self.member}.parquet"

    def finished(self, fold: int) -> bool:
        """Whether everything of a fold is on disk: files are written whole, and the export after all others."""
        return self.export(fold).exists() and all((self.folder(fold) / part).exists() for part in PARTS)


@dataclass(frozen=True)
class Done:
    """A finished fold: its score on the rows it did not see; `resumed` if an earlier run had finished it."""

    fold: int
    score: float
    seconds: float
    resumed: bool = False


def train(
    plan: Plan,
    train_fold: TrainFold,
    *,
    bar: Bar,
    folds: Sequence[int] = (),
    device: str = "auto",
    fresh: bool = False,
) -> Iterator[Done]:
    """Train and export the folds asked for (default: all), skipping those that are finished; `fresh` trains them again.

    A fold's result depends on its number and the seed only, so a resumed run ends as an uninterrupted one does (on a CPU).

    Raises:
        TrainingError: a fold that the split does not have, or finished folds that were trained with other settings.
        DeviceError: CUDA was asked for and cannot be used.
        ImageError, AlignmentError: images that cannot be read or are missing.
        ParityError: an export that does not reproduce its model; the fold counts as unfinished.
    """
    wanted = sorted(set(folds)) or list(range(plan.split.count))
    if unknown := [fold for fold in wanted if not 0 <= fold < plan.split.count]:
        raise TrainingError(f"the split has no fold {few(unknown)}", hint=f"Its folds are 0 to {plan.split.count - 1}.")
    device = choose_device(device)
    if fresh:
        for fold in wanted:
            _discard(plan, fold)
    finished = [fold for fold in range(plan.split.count) if plan.finished(fold)]
    for fold in finished:
        _same_settings(plan, fold)
    samples = None
    for fold in wanted:
        if fold in finished:
            yield Done(fold, _kept_score(plan, fold), 0.0, resumed=True)
            continue
        started = time.monotonic()
        _discard(plan, fold)
        samples = samples or decode(plan.competition, plan.preprocess, plan.target.name)
        with bar(f"{plan.member} fold {fold}") as progress:
            score = _one(plan, train_fold, fold, samples, device, progress)
        yield Done(fold, score, time.monotonic() - started)


def join(plan: Plan) -> float | None:
    """Write `oof/<member>.parquet` and return the score over all its rows; None while folds of the split are unfinished.

    Raises:
        TrainingError: folds that were trained with other settings.
    """
    every = range(plan.split.count)
    if not all(plan.finished(fold) for fold in every):
        return None
    for fold in every:
        _same_settings(plan, fold)
    target = plan.target.name
    joined = concat(tables.read_table(plan.folder(fold) / "oof.parquet").predictions[target] for fold in every)
    scores = {str(fold): _kept_score(plan, fold) for fold in every}
    score = joined.score(plan.competition.score, _truth(plan, joined.ids))
    meta = _meta(plan) | {"folds": scores, "score": score}
    tables.write_table(plan.oof, {target: joined}, meta)
    return score


def _one(plan: Plan, train_fold: TrainFold, fold: int, samples: Samples, device: str, progress: Progress) -> float:
    """Train one fold and write all that belongs to it, the export last."""
    import torch

    held_out = samples.rows(plan.split.held_out(fold))
    given = Fold(fold, samples.rows(plan.split.training(fold)), plan.target.classes, device, plan.folder(fold), progress)
    seed = plan.config.seed * 1_000 + fold
    random.seed(seed)
    torch.manual_seed(seed)
    model = train_fold(plan.config, given)
    checkpoints.save(given.folder / PARTS[0], model, _card(plan, fold, None), plan.architecture)  # what comes next may fail
    predicted = _predict(plan, model, held_out, device)
    score = predicted.score(plan.competition.score, _truth(plan, predicted.ids))
    card = _card(plan, fold, score)
    checkpoints.save(given.folder / PARTS[0], model, card, plan.architecture)
    tables.write_table(given.folder / PARTS[2], {plan.target.name: predicted}, _meta(plan) | {"fold": fold, "score": score})
    about = {"fold": fold, "score": score, "device": device, "versions": _versions(), "settings": plan.settings}
    files.write_text(given.folder / PARTS[3], json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    pixels, _ = held_out.__getitems__(range(min(len(held_out), PARITY_SAMPLES)))
    exporting.export(model, card, plan.export(fold), samples=pixels)
    return score


def _predict(plan: Plan, model: torch.nn.Module, rows: Rows, device: str) -> Predictions:
    values = sessions.probabilities(logits(model, rows, plan.mean, plan.std, device=device), _output(plan.target))
    ids = tuple(rows.samples.ids[place] for place in rows.places)
    return Predictions(plan.target.name, "probabilities", ids, plan.target.classes, values, multilabel=plan.target.multilabel)


def _truth(plan: Plan, ids: Sequence[str]) -> Predictions:
    return plan.competition.truth()[plan.target.name].align(ids)


def _output(target: Target) -> Output:
    activation: Activation = "sigmoid" if target.multilabel else "softmax"
    return Output(target.name, target.classes, activation)


def _card(plan: Plan, fold: int, score: float | None) -> Card:
    return Card(
        member=plan.member,
        fold=fold,
        outputs=(_output(plan.target),),
        preprocess=plan.preprocess,
        mean=plan.mean,
        std=plan.std,
        split=plan.split.digest,
        metric=plan.competition.metric,
        score=score,
        recipe=plan.recipe,
    )


def _same_settings(plan: Plan, fold: int) -> None:
    """Refuse to go on from a fold that was trained otherwise: the folds of a member would not belong together."""
    there = _about(plan, fold)["settings"]
    differing = [name for name in {**there, **plan.settings} if there.get(name) != plan.settings.get(name)]
    if differing:
        changes = "; ".join(
            f"{name.removeprefix('config.')} was {there.get(name)!r}, is {plan.settings.get(name)!r}" for name in differing
        )
        raise TrainingError(
            f"fold {fold} of {plan.member!r} was trained with other settings: {changes}",
            hint="Use --fresh to train again, --member NAME to keep both, or go back to the old settings.",
        )


def _about(plan: Plan, fold: int) -> Mapping[str, Any]:
    path = plan.folder(fold) / "config.json"
    try:
        about: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"settings", "score"} <= set(about):
            raise ValueError("settings and score are missing")
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", hint="Use --fresh to train the fold again.") from error
    return about


def _kept_score(plan: Plan, fold: int) -> float:
    return float(_about(plan, fold)["score"])


def _discard(plan: Plan, fold: int) -> None:
    """Remove what an earlier or killed run left of a fold, the export first: from then on it counts as unfinished."""
    for path in (plan.export(fold), plan.oof, *(plan.folder(fold) / part for part in PARTS)):
        with files.explained(path):
            path.unlink(missing_ok=True)


def _meta(plan: Plan) -> dict[str, Any]:
    return {"member": plan.member, "split": plan.split.digest, "metric": plan.competition.metric, "recipe": plan.recipe}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("toolkit", "torch", "timm", "pytorch-lightning")}
