"""One fold: trained once per seed, judged on the rows it holds out, and all that belongs to it written, the export last."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from toolkit.base import provenance, sealed
from toolkit.core import activations, metrics, prediction_files
from toolkit.core.cards import Activation, Card, Output, Selected
from toolkit.core.lineage import Lineage, Seen, SeenIds
from toolkit.core.predictions import Predictions
from toolkit.errors import TrainingError, counted
from toolkit.models import checkpoints
from toolkit.models.export import export
from toolkit.training import label_fixes, pseudo_labels
from toolkit.training.fold import state_file, throughput
from toolkit.training.fold.fit import logits
from toolkit.training.fold.process_group import ALONE, Team
from toolkit.training.fold.samples import Fold, Progress, Rows, Samples
from toolkit.training.loggers import Trackers
from toolkit.training.parts import warm_start
from toolkit.training.parts.warm_start import Start
from toolkit.training.plan import OOF, PARTS, TrainFold, TrainingPlan, Watch
from toolkit.workspace.competition import Target

if TYPE_CHECKING:
    import torch

PARITY_SAMPLES = 64
GAP_SAMPLES = 512  # training rows that the gap to the held-out rows is measured on


@dataclass(frozen=True, eq=False)
class FoldTraining:
    """How every fold of a run is trained: the plan, the recipe's function, where, and who looks on or shares the batches."""

    plan: TrainingPlan
    train_fold: TrainFold
    device: str
    watch: Watch | None = None
    team: Team = ALONE


@dataclass(frozen=True, eq=False)
class _FoldRows:
    """One fold: the rows it trains on and holds out (None: nothing), a report of who taught it, and where it begins."""

    number: int | None
    training: Rows
    held_out: Rows | None
    taught: Mapping[str, Any]
    start: Start | None


@dataclass(frozen=True, eq=False)
class _Origin:
    """What a fold's models have seen when they are trained, and how they were chosen, as cards say it."""

    lineage: Lineage
    ids: SeenIds
    selected: str


@dataclass(frozen=True, eq=False)
class _Scored:
    """What the held-out rows say: a score per model and of their mean, and sentences for the reader."""

    scores: Sequence[float | None]
    mean: float | None
    notes: Sequence[str]


def train_one(
    training: FoldTraining, number: int | None, samples: Samples, progress: Progress, trackers: Trackers
) -> dict[str, Any]:
    """Train fold `number` (None: all rows), once per seed, and write all that belongs to it; what config.json says.

    In a team only its first process does more than train; the others return nothing.

    Raises:
        TrainingError: a recipe with a loop of its own in a team, or what training raises.
        ParityError: an export that does not reproduce its model; the fold counts as unfinished.
    """
    plan = training.plan
    rows = _rows(training, number, samples)
    models, runs = _train_seeds(training, rows, progress, trackers)
    if not training.team.leads:
        return {}
    origin = _origin(plan, rows, runs[0].outcome.selected)
    unscored = [_card(plan, number, None, origin) for _ in models]
    _save(plan, models, unscored, origin.ids)  # what comes next may fail
    scored = _score(training, rows, models, runs[0], origin, trackers)
    cards = [_card(plan, number, score, origin) for score in scored.scores]
    _save(plan, models, cards, origin.ids)
    about = _about(training, rows, runs, scored, origin)
    sealed.write_json(plan.folder(number) / "config.json", json.loads(json.dumps(about, default=str)), indent=1)
    _export(plan, models, cards, rows)
    for run in runs:
        state_file.forget(run.folder)
    return about


def _rows(training: FoldTraining, number: int | None, samples: Samples) -> _FoldRows:
    """The fold's rows, with the targets that teachers give where the settings ask for it."""
    plan = training.plan
    held_out = None if number is None else samples.rows(plan.split.held_out(number))
    with training.team.leading():
        rows, report = pseudo_labels.taught(plan, number, samples.rows(plan.split.training(number)), training.device)
    start = warm_start.start_of(plan.competition, plan.split, plan.config, number)
    return _FoldRows(number, rows, held_out, report, start)


def _origin(plan: TrainingPlan, rows: _FoldRows, how: str) -> _Origin:
    """What the fold's models have seen: their own rows, and what those knew that they began from or were taught by."""
    fold, start = rows.number, rows.start
    taught, told = pseudo_labels.inherited(plan, fold)
    name = str(plan.architecture.get("model_name", ""))
    local = (name,) if name.startswith("local-dir:") else ()  # timm loads what is there
    lineage = Lineage((Seen(plan.split.digest, fold),), local) | (start.lineage if start else Lineage()) | taught
    if fold is None:
        selected = told
    elif start and start.seen:
        selected = "seen"
    elif told in ("seen", "soft-oof") or how == "last":
        selected = told if told != "last" or not (start and start.chosen) else "inherited"
    else:
        selected = how
    ids = SeenIds.of(plan.split.ids if selected != "last" else plan.split.training(fold))  # who chose has been seen as well
    return _Origin(lineage, ids | start.ids if start and start.ids else ids, selected)


def _train_seeds(
    training: FoldTraining, rows: _FoldRows, progress: Progress, trackers: Trackers
) -> tuple[list[torch.nn.Module], list[Fold]]:
    """The models of all seeds, and the folds as `train_fold` got them."""
    plan, team = training.plan, training.team
    models: list[torch.nn.Module] = []
    runs: list[Fold] = []
    for seed in range(getattr(plan.config, "seeds", 1)):
        fold = _fold(training, rows, seed, progress)
        random.seed(fold.seed)
        _seed_torch(fold.seed)
        config = warm_start.configured(plan.config, rows.start)
        config = replace(config, seed=config.seed + seed) if seed else config
        models += [training.train_fold(config, trackers.attach(fold) if team.leads else fold), *fold.outcome.others]
        runs.append(fold)
        if fold.outcome.report.get("processes", 1) != team.size:
            raise TrainingError(
                f"{fold.title}: every process trained on whole batches, since {plan.recipe}.py has a loop of its own",
                hint="Spread folds over the processes, or train with toolkit.training.fit.",
                code="spread-folds",
            )
    return models, runs


def _fold(training: FoldTraining, rows: _FoldRows, seed: int, progress: Progress) -> Fold:
    """What `train_fold` gets for one of the fold's seeds."""
    plan, device, held_out, watch = training.plan, training.device, rows.held_out, training.watch
    fold = Fold(
        number=rows.number,
        training=rows.training,
        classes=plan.target.classes,
        device=device,
        folder=plan.folder(rows.number) / (f"seed{seed}" if seed else ""),
        progress=progress,
        seed=(plan.config.seed + seed) * 1_000 + (plan.split.count if rows.number is None else rows.number),
        key=f"{plan.key}.{seed}",
        judge=None if held_out is None else lambda model: _judge(plan, _predict(plan, model, held_out, device)),
        cache=plan.root / "cache" if plan.cache else None,
    )
    if watch is not None:
        unwatched = fold
        fold = replace(fold, watch=lambda row, model: watch(unwatched, row, model))
    return replace(fold, team=training.team)


def _seed_torch(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _score(
    training: FoldTraining,
    rows: _FoldRows,
    models: Sequence[torch.nn.Module],
    run: Fold,
    origin: _Origin,
    trackers: Trackers,
) -> _Scored:
    """Judge the models and their mean on the held-out rows, and write the fold's out-of-fold table."""
    plan, device = training.plan, training.device
    feeding = run.outcome.report.get("feeding", {})
    notes = [str(feeding["said"])] if feeding else []
    if rows.held_out is None:
        return _Scored([None] * len(models), None, notes)
    predictions = [_predict(plan, model, rows.held_out, device) for model in models]
    truth = plan.truth(predictions[0].ids)
    scores = [each.score(plan.competition.score, truth) for each in predictions]
    mean = replace(predictions[0], values=np.mean([np.asarray(each.values) for each in predictions], axis=0))
    score = mean.score(plan.competition.score, truth)
    meta: dict[str, Any] = plan.table_meta | {"fold": rows.number, "score": score, "selected": origin.selected}
    if origin.lineage.unknown:
        meta["unknown"] = list(origin.lineage.unknown)
    prediction_files.write_table(plan.folder(rows.number) / OOF, {plan.target.name: mean}, meta)
    notes.append(_fits(plan, models[0], rows.training, mean, device))
    trackers.confusion(truth, mean)
    return _Scored(scores, score, notes)


def _judge(plan: TrainingPlan, predicted: Predictions) -> dict[str, float]:
    """Mean loss and score, larger is better, against the truth as given."""
    truth = plan.truth(predicted.ids)
    assert predicted.values is not None
    loss = metrics.log_loss(truth.decided, predicted.values)
    return {"loss": loss, "score": plan.competition.score.gain(predicted.score(plan.competition.score, truth))}


def _fits(plan: TrainingPlan, model: torch.nn.Module, training: Rows, held_out: Predictions, device: str) -> str:
    """The verdict on the gap between some of the training rows and the held-out ones; none after epochs that were cut."""
    if batches := getattr(plan.config, "batches", None):
        return f"fit not judged: an epoch of {counted(batches, 'batches')} says nothing of it"
    places = np.linspace(0, len(training.places) - 1, min(GAP_SAMPLES, len(training.places))).astype(np.int64)
    seen = _judge(plan, _predict(plan, model, Rows(training.samples, training.places[places]), device))
    chance = 0.693 if plan.target.multilabel else float(np.log(len(plan.target.classes)))
    return throughput.verdict(seen | {"chance": chance}, _judge(plan, held_out))


def _predict(plan: TrainingPlan, model: torch.nn.Module, rows: Rows, device: str) -> Predictions:
    values = activations.probabilities(logits(model, rows, plan.mean, plan.std, device=device), _output(plan.target))
    ids = tuple(rows.samples.ids[place] for place in rows.places)
    return Predictions(plan.target.name, "probabilities", ids, plan.target.classes, values, multilabel=plan.target.multilabel)


def _output(target: Target) -> Output:
    activation: Activation = "sigmoid" if target.multilabel else "softmax"
    return Output(target.name, target.classes, activation)


def _card(plan: TrainingPlan, fold: int | None, score: float | None, origin: _Origin) -> Card:
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
        selected=cast("Selected", origin.selected),
        recipe=plan.recipe,
        labels_fix=label_fixes.digest(plan.competition),
        lineage=origin.lineage,
    )


def _about(training: FoldTraining, rows: _FoldRows, runs: Sequence[Fold], scored: _Scored, origin: _Origin) -> dict[str, Any]:
    """What config.json says of the fold."""
    plan = training.plan
    return {
        "fold": rows.number,
        "score": scored.mean,
        "selected": origin.selected,
        "lineage": asdict(origin.lineage),
        "began": str(rows.start.path) if rows.start else "",
        "notes": scored.notes,
        "device": training.device,
        "processes": training.team.size,
        "versions": {name: version(name) for name in ("toolkit", "torch", "timm", "pytorch-lightning")},
        "seeds": [run.seed for run in runs],
        "commit": provenance.git_commit(plan.root) or "",
        "models": len(scored.scores),
        "report": [run.outcome.report for run in runs],
        "taught": rows.taught,
        "settings": plan.settings,
    }


def _save(plan: TrainingPlan, models: Sequence[torch.nn.Module], cards: Sequence[Card], ids: SeenIds) -> None:
    """Write the checkpoints of a fold's models, each with its card."""
    for number, (model, card) in enumerate(zip(models, cards, strict=True)):
        checkpoints.save(_checkpoint(plan.folder(card.fold), number), model, card, plan.architecture, ids)


def _checkpoint(folder: Path, number: int) -> Path:
    return folder / (f"model.{number}.safetensors" if number else PARTS[0])


def _export(plan: TrainingPlan, models: Sequence[torch.nn.Module], cards: Sequence[Card], rows: _FoldRows) -> None:
    """Write the exports; the first model's is the last, since it says "finished"."""
    shown = rows.held_out or rows.training
    pixels, _ = shown.__getitems__(range(min(len(shown), PARITY_SAMPLES)))
    for number in reversed(range(len(models))):
        export(models[number], cards[number], plan.export(rows.number, number), samples=pixels)
